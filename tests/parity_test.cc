// The program against numbers that the transformers library computed (tests/goldens).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "eval/compare.h"
#include "io/safetensors.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using eval::CompareReport;
using eval::Comparison;

const std::string kSource = MM01_SOURCE_DIR;

std::unique_ptr<infer::Engine> Load(const std::string& folder, infer::EngineOptions options = {}) {
  options.num_threads = 1;
  options.context_tokens = 1024;
  Result<std::unique_ptr<infer::Engine>> engine = infer::Engine::Load(folder, options);
  Check(engine.ok(), engine.status().message());
  return std::move(*engine);
}

CompareReport Compare(const std::string& model, const std::string& reference, double tolerance,
                      infer::EngineOptions options = {}) {
  const Result<CompareReport> report = eval::Compare(*Load(model, options), reference, tolerance);
  Check(report.ok(), report.status().message());
  return *report;
}

bool Has(const CompareReport& report, const std::string& name) {
  return std::ranges::any_of(report.tensors, [&](const Comparison& c) { return c.name == name; });
}

void ExpectAllWithin(const CompareReport& report, double tolerance) {
  for (const Comparison& c : report.tensors) {
    EXPECT_LE(c.relative_error, tolerance) << c.name;
    EXPECT_EQ(c.num_unequal, 0) << c.name;
    EXPECT_GT(c.num_values, 0) << c.name;
  }
  EXPECT_TRUE(report.ok()) << report.first_deviating;
}

TEST(ParityTest, TextTinyAgreesInEveryTensor) {
  const std::string folder = kSource + "/tests/goldens/text-tiny";
  const CompareReport report = Compare(folder, folder + "/reference.safetensors", 1e-5);
  for (const char* name : {"logits", "generated", "hidden.0", "hidden.8", "router.0", "router.7"}) {
    EXPECT_TRUE(Has(report, name)) << name;
  }
  ExpectAllWithin(report, 1e-5);
}

TEST(ParityTest, Text128AgreesInLogitsAndRouters) {
  const std::string folder = kSource + "/tests/goldens/text-128";
  const CompareReport report = Compare(folder, folder + "/reference.safetensors", 1e-5);
  for (const char* name : {"logits", "generated", "router.0", "router.7"}) {
    EXPECT_TRUE(Has(report, name)) << name;
  }
  ExpectAllWithin(report, 1e-5);
}

TEST(ParityTest, Bf16StaysWithinAHundredth) {
  const std::string folder = kSource + "/tests/goldens/text-128";
  const CompareReport report = Compare(folder, folder + "/reference.safetensors", 1e-2,
                                       {.weights = WeightType{DType::kBF16, 0}});
  for (const Comparison& c : report.tensors) {
    if (c.name == "logits") {
      EXPECT_LE(c.relative_error, 1e-2);
    }
  }
}

// A copy of text-tiny in which one number of one tensor is another.
class BrokenModelTest : public testing::Test {
 protected:
  std::string FirstDeviating(const std::string& tensor) {
    const std::string golden = kSource + "/tests/goldens/text-tiny";
    const std::string model = folder_ / "model.safetensors";
    const auto replace = std::filesystem::copy_options::overwrite_existing;
    std::filesystem::copy_file(golden + "/config.json", folder_ / "config.json", replace);
    std::filesystem::copy_file(golden + "/model.safetensors", model, replace);
    const SafetensorsFile stored = SafetensorsFile::Open(model).value();
    const TensorInfo* info = stored.Find(tensor);
    Check(info != nullptr, "text-tiny has no " + tensor);
    const float wrong = 3.0f;
    std::fstream file(model, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(info->offset + 7 * static_cast<int64_t>(sizeof(float)));
    file.write(reinterpret_cast<const char*>(&wrong), sizeof(wrong));
    file.close();
    const CompareReport report = Compare(folder_.path(), golden + "/reference.safetensors", 1e-5);
    EXPECT_FALSE(report.ok());
    return report.first_deviating;
  }

  TempFolder folder_;
};

TEST_F(BrokenModelTest, IsFoundAndItsFirstWrongLayerIsNamed) {
  EXPECT_EQ(FirstDeviating("model.layers.3.self_attn.out_proj.weight"), "router.3");
  EXPECT_EQ(FirstDeviating("model.layers.5.block_sparse_moe.experts.0.w2.weight"), "hidden.6");
  EXPECT_EQ(FirstDeviating("model.layers.7.self_attn.k_proj.weight"), "router.7");
  EXPECT_EQ(FirstDeviating("lm_head.weight"), "logits");
}

// Half rotation and DeepNorm, which the library's model has not: tools/nano_reference.py.
TEST(NanoParityTest, TheModelThatShipsFollowsTheFormulas) {
  const std::string folder = kSource + "/models/nano";
  const CompareReport report = Compare(folder, folder + "/reference.safetensors", 1e-5,
                                       {.weights = WeightType{DType::kF32, 0}, .kv = DType::kF32});
  for (const char* name : {"logsumexp", "nll", "top_values", "top_ids", "greedy_from_200"}) {
    EXPECT_TRUE(Has(report, name)) << name;
  }
  ExpectAllWithin(report, 1e-5);
}

}  // namespace
}  // namespace mm01
