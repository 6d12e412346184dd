// ConvertCheckpoint on the small golden model: what is written, and that failures leave nothing.
#include "model/text01/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/file.h"
#include "model/text01/tensor_names.h"

namespace mm01 {
namespace {

namespace fs = std::filesystem;

const std::string kTiny = MM01_SOURCE_DIR "/tests/goldens/text-tiny";

class ConvertTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("mm01_convert_") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(const char* name) const { return (folder_ / name).string(); }

  Result<ConvertReport> Convert(const std::string& from, const std::string& to,
                                ConvertOptions options) {
    return ConvertCheckpoint(queue_, from, to, options);
  }
  Checkpoint ConvertAndOpen(const std::string& from, const char* name, ConvertOptions options) {
    const auto report = Convert(from, Path(name), options);
    EXPECT_TRUE(report.ok()) << report.status().message();
    return Checkpoint::Open(Path(name)).value();
  }

  Queue queue_{2};
  fs::path folder_;
};

// A wanted tensor of either form, as float32.
std::vector<float> Floats(const Checkpoint& checkpoint, const std::string& name) {
  const CheckpointTensor t = checkpoint.Find(name);
  if (t.info->dtype == DType::kF32) return checkpoint.ReadAll<float>(t).value();
  std::vector<float> x;
  if (t.info->dtype == DType::kI8) {
    const auto q = checkpoint.ReadAll<int8_t>(t).value();
    const CheckpointTensor s = checkpoint.Find(name + "_scale");
    const std::vector<bf16> scales = [&] {
      std::vector<bf16> v(static_cast<size_t>(s.info->num_elements()));
      EXPECT_TRUE(checkpoint.Read(s, 0, std::as_writable_bytes(std::span(v))).ok());
      return v;
    }();
    const auto columns = static_cast<size_t>(t.info->shape[1]);
    const auto groups = static_cast<size_t>(s.info->shape[1]);
    for (size_t i = 0; i < q.size(); ++i) {
      const size_t group = i % columns / ((columns + groups - 1) / groups);
      x.push_back(static_cast<float>(q[i]) * ToFloat(scales[i / columns * groups + group]));
    }
    return x;
  }
  const auto values = checkpoint.ReadAll<bf16>(t).value();
  for (const bf16 v : values) x.push_back(ToFloat(v));
  return x;
}

TEST_F(ConvertTest, EveryWeightBecomesInt8AndTheRestStays) {
  const Checkpoint before = Checkpoint::Open(kTiny).value();
  const Checkpoint after = ConvertAndOpen(kTiny, "int8", {.type = {DType::kI8, 32}});
  const TextConfig config = LoadTextConfig(Path("int8")).value();
  for (const WantedTensor& t : WantedTensors(config)) {
    SCOPED_TRACE(t.name);
    const CheckpointTensor found = after.Find(t.name);
    ASSERT_TRUE(found);
    EXPECT_EQ(found.info->shape, t.shape);
    EXPECT_EQ(found.info->dtype, t.is_weight ? DType::kI8 : DType::kF32);
    EXPECT_EQ(static_cast<bool>(after.Find(t.name + "_scale")), t.is_weight);
    const std::vector<float> old_values = Floats(before, t.name), values = Floats(after, t.name);
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(values[i] - old_values[i], 2);
      norm += std::pow(old_values[i], 2);
    }
    // Steps of (largest of 32) / 127, some 2.5 sigma / 127, are off by their 12th root at most.
    EXPECT_LE(std::sqrt(difference / norm), t.is_weight ? 0.01 : 0.0);
  }
}

TEST_F(ConvertTest, ScalesCountColumnsInGroups) {
  const Checkpoint after = ConvertAndOpen(kTiny, "int8", {.type = {DType::kI8, 64}});
  const auto* scale = after.Find(ExpertTensorName(0, 0, "w2") + "_scale").info;
  ASSERT_NE(scale, nullptr);
  EXPECT_EQ(scale->dtype, DType::kBF16);
  EXPECT_EQ(scale->shape, (std::vector<int64_t>{64, 2}));  // 96 columns: 64 and 32
}

TEST_F(ConvertTest, ShardsHoldTheSameBytesUnderAnIndex) {
  const Checkpoint before = Checkpoint::Open(kTiny).value();
  const Checkpoint after =
      ConvertAndOpen(kTiny, "shards", {.type = {DType::kF32, 0}, .shard_bytes = 500'000});
  EXPECT_GT(after.files().size(), 3u);
  EXPECT_TRUE(fs::exists(folder_ / "shards" / "model.safetensors.index.json"));
  for (const WantedTensor& t : WantedTensors(LoadTextConfig(kTiny).value())) {
    EXPECT_EQ(Floats(before, t.name), Floats(after, t.name)) << t.name;
  }
}

TEST_F(ConvertTest, Int8OfTheSameGroupsIsCopied) {
  const Checkpoint once = ConvertAndOpen(kTiny, "once", {.type = {DType::kI8, 32}});
  const Checkpoint twice = ConvertAndOpen(Path("once"), "twice", {.type = {DType::kI8, 32}});
  const std::string once_bytes = ReadFile(Path("once/model.safetensors"), 1 << 24).value();
  EXPECT_EQ(once_bytes, ReadFile(Path("twice/model.safetensors"), 1 << 24).value());
}

TEST_F(ConvertTest, BF16RoundsToNearest) {
  const Checkpoint before = Checkpoint::Open(kTiny).value();
  const Checkpoint after = ConvertAndOpen(kTiny, "bf16", {.type = {DType::kBF16, 0}});
  const std::vector<float> x = Floats(before, kLmHeadName), y = Floats(after, kLmHeadName);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], ToFloat(ToBF16(x[i])));
}

TEST_F(ConvertTest, AFolderThatIsNotEmptyIsLeftAlone) {
  fs::create_directory(Path("full"));
  ASSERT_TRUE(WriteFileAtomically(Path("full/notes.txt"), "mine").ok());
  const auto report = Convert(kTiny, Path("full"), {.type = {DType::kI8, 32}});
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.status().message(),
            Path("full") + ": has 1 entry, wanted a new or empty folder");
  EXPECT_EQ(std::distance(fs::directory_iterator(Path("full")), {}), 1);
}

TEST_F(ConvertTest, StoppingLeavesNothingBehind) {
  const auto report = Convert(kTiny, Path("stopped"),
                              {.type = {DType::kF32, 0},
                               .shard_bytes = 500'000,
                               .progress = [](int64_t done, int64_t) { return done < 1'000'000; }});
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.status().code(), Code::kCancelled);
  EXPECT_FALSE(fs::exists(Path("stopped")));
}

TEST_F(ConvertTest, AnInfinityIsNamedAndNotQuantized) {
  fs::create_directory(Path("inf"));
  fs::copy_file(kTiny + "/config.json", Path("inf/config.json"));
  std::string bytes = ReadFile(kTiny + "/model.safetensors", 1 << 24).value();
  const SafetensorsFile file = SafetensorsFile::Open(kTiny + "/model.safetensors").value();
  const float infinity = INFINITY;
  bytes.replace(static_cast<size_t>(file.Find(kLmHeadName)->offset), sizeof(float),
                reinterpret_cast<const char*>(&infinity), sizeof(float));
  ASSERT_TRUE(WriteFileAtomically(Path("inf/model.safetensors"), bytes).ok());
  const auto report = Convert(Path("inf"), Path("out"), {.type = {DType::kI8, 32}});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.status().message().find(kLmHeadName), std::string::npos);
  EXPECT_FALSE(fs::exists(Path("out")));
}

TEST_F(ConvertTest, GroupsOfOtherSizesAreRefused) {
  const auto report = Convert(kTiny, Path("out"), {.type = {DType::kI8, 48}});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.status().message().find("groups of 48, wanted"), std::string::npos);
}

}  // namespace
}  // namespace mm01
