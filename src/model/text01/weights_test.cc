// Every form of a checkpoint gives the same weights, and a broken one gives one clear error.
#include "model/text01/weights.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

constexpr WeightType kFloat32{};
constexpr WeightType kBf16{DType::kBF16, 0};
constexpr WeightType kInt8{DType::kI8, 32};

std::vector<float> Rows(const Weight& w) {
  std::vector<float> all(static_cast<size_t>(w.n() * w.k()));
  for (int64_t n = 0; n < w.n(); ++n) {
    w.GetRow(n, std::span(all).subspan(static_cast<size_t>(n * w.k()), static_cast<size_t>(w.k())));
  }
  return all;
}

// All numbers of a model in a row.
std::vector<float> Numbers(const TextWeights& w) {
  std::vector<float> all;
  const auto add = [&](const std::vector<float>& v) { all.insert(all.end(), v.begin(), v.end()); };
  const auto expert = [&](const ExpertWeights& e) {
    for (const Weight* m : {&e.w1, &e.w3, &e.w2}) add(Rows(*m));
  };
  add(Rows(w.embedding));
  for (const TextLayer& l : w.layers) {
    for (const auto* v : {&l.input_norm, &l.mlp_norm, &l.lightning.norm, &l.lightning.slope}) {
      add(v->values());
    }
    for (const Weight* m :
         {&l.lightning.qkv, &l.lightning.gate, &l.lightning.out, &l.softmax.q, &l.softmax.k,
          &l.softmax.v, &l.softmax.out, &l.mlp.router, &l.mlp.shared_coefficient}) {
      add(Rows(*m));
    }
    for (const ExpertWeights& e : l.mlp.experts) expert(e);
    expert(l.mlp.shared);
  }
  add(w.final_norm.values());
  add(Rows(w.lm_head));
  return all;
}

class WeightsTest : public testing::Test {
 protected:
  void Write(const TinyForm& form = {}, int num_shards = 1) {
    tensors_ = MakeTinyTensors(config_, form);
    WriteTinyCheckpoint(folder_.path(), config_, tensors_, num_shards);
  }
  void WriteAgain() { WriteTinyCheckpoint(folder_.path(), config_, tensors_); }

  Result<TextWeights> Load(WeightType type = kFloat32) {
    Queue queue(1);
    MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(folder_.path()));
    return LoadWeights(queue, checkpoint, config_, type, Shard::Whole(config_));
  }
  std::vector<float> LoadNumbers(WeightType type = kFloat32) {
    const Result<TextWeights> weights = Load(type);
    EXPECT_TRUE(weights.ok()) << weights.status().message();
    return weights.ok() ? Numbers(*weights) : std::vector<float>();
  }
  void ExpectError(const Status& status, Code code, const std::vector<std::string>& parts) {
    EXPECT_EQ(status.code(), code) << status.message();
    for (const std::string& part : parts) {
      EXPECT_NE(status.message().find(part), std::string::npos)
          << status.message() << "\nwanted " << part;
    }
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
  }

  TextConfig config_ = TinyConfig();
  TempFolder folder_;
  TinyTensors tensors_;
};

TEST_F(WeightsTest, EveryFormOfACheckpointHoldsTheSameModel) {
  Write();
  const std::vector<float> want = LoadNumbers();
  ASSERT_GT(want.size(), 100'000u);
  Write({.names = TinyNames::kPort});
  EXPECT_TRUE(SameBits(LoadNumbers(), want)) << "fused experts";
  Write({.names = TinyNames::kPortPerExpert});
  EXPECT_TRUE(SameBits(LoadNumbers(), want)) << "experts one by one";
  Write({.prefix = "language_model."});
  EXPECT_TRUE(SameBits(LoadNumbers(), want)) << "a vision-language checkpoint";
  Write({.decay_buffers = true});
  EXPECT_TRUE(SameBits(LoadNumbers(), want)) << "stored decay buffers";
}

TEST_F(WeightsTest, ShardsUnderAnIndexHoldTheSameModel) {
  Write();
  const std::vector<float> want = LoadNumbers();
  TempFolder sharded;
  WriteTinyCheckpoint(sharded.path(), config_, tensors_, 3);
  Queue queue(2);
  const Result<Checkpoint> checkpoint = Checkpoint::Open(sharded.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  const auto weights = LoadWeights(queue, *checkpoint, config_, kFloat32, Shard::Whole(config_));
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  EXPECT_TRUE(SameBits(Numbers(*weights), want));
}

TEST_F(WeightsTest, Int8OfTheSameGroupsIsTakenOverAsItIs) {
  Write();
  const std::vector<float> quantized_here = LoadNumbers(kInt8);
  Write({.type = kInt8});
  EXPECT_TRUE(SameBits(LoadNumbers(kInt8), quantized_here));
  EXPECT_TRUE(SameBits(LoadNumbers(kFloat32), quantized_here)) << "scaled back exactly";
  Write({.names = TinyNames::kPort, .type = kInt8});
  EXPECT_TRUE(SameBits(LoadNumbers(kInt8), quantized_here)) << "scales of fused experts";
}

TEST_F(WeightsTest, Bf16OfABf16CheckpointLosesNothing) {
  Write({.type = kBf16, .rounded = true});
  const std::vector<float> want = LoadNumbers(kFloat32);
  EXPECT_TRUE(SameBits(LoadNumbers(kBf16), want));
}

TEST_F(WeightsTest, TheStoredTypeIsFound) {
  for (const WeightType type : {kFloat32, kBf16, kInt8, WeightType{DType::kI8, 128}}) {
    std::vector<StoredTensor> stored;
    for (const auto& [name, t] : MakeTinyTensors(config_, {.type = type})) {
      stored.push_back({name, t.info.dtype, t.info.shape});
    }
    const Result<TensorMap> map = LocateTensors(config_, stored, "x");
    ASSERT_TRUE(map.ok()) << map.status().message();
    // 64 columns in groups of 128 are one scale, as in groups of 64.
    const int64_t group = type.group == 128 ? 64 : type.group;
    EXPECT_EQ(StoredWeightType(*map), (WeightType{type.dtype, group}));
  }
}

TEST_F(WeightsTest, MissingExtraAndMisshapenTensorsAreNamed) {
  Write();
  const TinyTensors good = tensors_;
  tensors_.erase("model.layers.1.self_attn.output_gate.weight");
  WriteAgain();
  ExpectError(Load().status(), Code::kNotFound,
              {folder_.path(), "1 tensor is missing", "layers.1.self_attn.output_gate.weight"});

  tensors_ = good;
  TinyRoom(tensors_, "model.layers.4.self_attn.extra", DType::kF32, {2});
  WriteAgain();
  ExpectError(Load().status(), Code::kInvalid, {"layers.4.self_attn.extra", "no place"});

  tensors_ = good;
  TinyRoom(tensors_, "model.norm.weight", DType::kF32, {63});
  WriteAgain();
  ExpectError(Load().status(), Code::kInvalid, {"model.norm.weight", "[63]", "[64]"});

  tensors_ = good;
  TinyRoom(tensors_, "model.norm.weight", DType::kI32, {64});
  WriteAgain();
  ExpectError(Load().status(), Code::kInvalid, {"model.norm.weight", "int32"});
}

TEST_F(WeightsTest, Int8WithoutItsScalesIsAnError) {
  Write({.type = kInt8});
  tensors_.erase("lm_head.weight_scale");
  WriteAgain();
  ExpectError(Load(kInt8).status(), Code::kNotFound, {"lm_head.weight_scale"});
}

TEST_F(WeightsTest, AFileCutShortAfterItWasOpenedIsAnError) {
  Write();
  const std::string path = folder_ / "model.safetensors";
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  Queue queue(2);
  const Status status =
      LoadWeights(queue, *checkpoint, config_, kFloat32, Shard::Whole(config_)).status();
  ExpectError(status, Code::kIo, {path});
}

TEST_F(WeightsTest, ValuesThatAreNoNumbersCannotBeQuantized) {
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
    Write();
    const std::string name = "model.layers.2.self_attn.k_proj.weight";
    TinyPut(tensors_.at(name), 17 * 64 + 5, std::vector<float>{bad});
    WriteAgain();
    ExpectError(Load(kInt8).status(), Code::kInvalid,
                {folder_.path(), name, "holds an infinity or a NaN"});
    EXPECT_TRUE(Load(kFloat32).ok());
  }
}

TEST_F(WeightsTest, ProgressEndsAtTheWholeCheckpoint) {
  Write();
  Queue queue(1);
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  int64_t last = 0, whole = 0;
  const auto weights = LoadWeights(queue, *checkpoint, config_, kFloat32, Shard::Whole(config_),
                                   [&](int64_t done, int64_t total) {
                                     EXPECT_GT(done, last);
                                     last = done;
                                     whole = total;
                                   });
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(last, whole);
  EXPECT_EQ(whole, checkpoint->total_bytes());
}

TEST_F(WeightsTest, AShardIsTheWholeCutOut) {
  Write({.names = TinyNames::kPort});
  Queue queue(1);
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  const Shard shard{.heads = {2, 4}, .kv_heads = {1, 2}, .experts = {1, 3}};
  const auto part = LoadWeights(queue, *checkpoint, config_, kFloat32, shard);
  const Result<TextWeights> whole = Load();
  ASSERT_TRUE(part.ok() && whole.ok());

  const std::vector<float> qkv = Rows(whole->layers[0].lightning.qkv);
  EXPECT_TRUE(SameBits(Rows(part->layers[0].lightning.qkv),
                       std::vector<float>(qkv.begin() + 2 * 3 * 16 * 64, qkv.end())));
  const std::vector<float> k = Rows(whole->layers[2].softmax.k);
  EXPECT_TRUE(
      SameBits(Rows(part->layers[2].softmax.k), std::vector<float>(k.begin() + 16 * 64, k.end())));
  std::vector<float> right_half, out = Rows(whole->layers[2].softmax.out);
  for (size_t i = 0; i < out.size(); ++i) {
    if (i % 64 >= 32) right_half.push_back(out[i]);
  }
  EXPECT_TRUE(SameBits(Rows(part->layers[2].softmax.out), right_half));
  ASSERT_EQ(part->layers[3].mlp.experts.size(), 2u);
  EXPECT_TRUE(
      SameBits(Rows(part->layers[3].mlp.experts[1].w3), Rows(whole->layers[3].mlp.experts[2].w3)));
  const std::vector<float>& slope = whole->layers[0].lightning.slope.values();
  EXPECT_EQ(part->layers[0].lightning.slope.values(), (std::vector<float>{slope[2], slope[3]}));
}

TEST_F(WeightsTest, BytesAreThoseOfTheMatricesInTheirPanels) {
  config_.layers = {LayerKind::kSoftmax};
  config_.num_experts = 0;
  config_.num_experts_per_token = 0;
  Write();
  const int64_t attention = 64 * 64 + 32 * 64 + 32 * 64 + 64 * 64, ffn = 3 * 48 * 64;
  EXPECT_EQ(Load()->bytes(), 4 * (2 * 96 * 64 + attention + ffn + 3 * 64));
}

TEST_F(WeightsTest, TiedEmbeddingsServeAsTheHead) {
  config_.tied_embeddings = true;
  Write();
  const Result<TextWeights> weights = Load();
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  EXPECT_TRUE(weights->lm_head.empty());
  EXPECT_EQ(&weights->head(), &weights->embedding);
}

TEST_F(WeightsTest, RandomWeightsAreAFunctionOfTheSeed) {
  Queue one(1), two(2);
  const auto a = Numbers(RandomWeights(one, config_, kFloat32, 3));
  EXPECT_TRUE(SameBits(Numbers(RandomWeights(two, config_, kFloat32, 3)), a));
  EXPECT_FALSE(SameBits(Numbers(RandomWeights(one, config_, kFloat32, 4)), a));
}

}  // namespace
}  // namespace mm01
