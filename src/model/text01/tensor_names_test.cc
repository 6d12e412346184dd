#include "model/text01/tensor_names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

namespace mm01 {
namespace {

TextConfig Load(const std::string& name) {
  Result<TextConfig> config =
      LoadTextConfig(std::string(MM01_SOURCE_DIR) + "/tests/goldens/config/" + name);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : TextConfig();
}

// Two layers, lightning and softmax: D = 64, 4 heads of 16, 2 kv heads, 3 experts of F = 96.
TextConfig Small() {
  TextConfig c;
  c.vocab_size = 100;
  c.hidden_size = 64;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 8;
  c.ffn_size = 96;
  c.num_experts = 3;
  c.num_experts_per_token = 2;
  c.layers = {LayerKind::kLightning, LayerKind::kSoftmax};
  EXPECT_TRUE(c.Validate().ok());
  return c;
}

std::vector<StoredTensor> Stored(const TextConfig& config) {
  std::vector<StoredTensor> stored;
  for (const WantedTensor& w : WantedTensors(config))
    stored.push_back({w.name, DType::kBF16, w.shape});
  return stored;
}

StoredTensor& Named(std::vector<StoredTensor>& stored, const std::string& name) {
  return *std::find_if(stored.begin(), stored.end(), [&](auto& t) { return t.name == name; });
}

TensorMap Locate(const TextConfig& config, const std::vector<StoredTensor>& stored) {
  Result<TensorMap> map = LocateTensors(config, stored, "m");
  EXPECT_TRUE(map.ok()) << map.status().message();
  return map.ok() ? *map : TensorMap();
}

std::string ErrorOf(const std::vector<StoredTensor>& stored, Code code) {
  const Result<TensorMap> map = LocateTensors(Small(), stored, "m");
  EXPECT_EQ(map.status().code(), code) << map.status().message();
  return map.status().message();
}

constexpr const char* kW1 = "model.layers.0.block_sparse_moe.experts.1.w1.weight";

TEST(WantedTensors, Text01HasTheReleasedShapes) {
  struct Row {
    const char* name;
    std::vector<int64_t> shape;
  };
  const std::vector<WantedTensor> wanted = WantedTensors(Load("text-01.json"));
  // 70 lightning layers of 4 attention tensors, 10 softmax layers of 4; 2 norms, 1 router and 96
  // expert matrices in each of 80; embedding, last norm, head.
  EXPECT_EQ(wanted.size(), 80u * 4 + 80u * 99 + 3);
  int64_t parameters = 0;
  for (const WantedTensor& w : wanted) {
    parameters += w.shape.size() == 1 ? w.shape[0] : w.shape[0] * w.shape[1];
  }
  EXPECT_EQ(parameters, 456'089'655'296);

  for (const Row& row :
       std::vector<Row>{{"model.embed_tokens.weight", {200064, 6144}},
                        {"model.layers.0.input_layernorm.weight", {6144}},
                        {"model.layers.79.post_attention_layernorm.weight", {6144}},
                        {"model.layers.6.self_attn.qkv_proj.weight", {24576, 6144}},
                        {"model.layers.6.self_attn.output_gate.weight", {8192, 6144}},
                        {"model.layers.6.self_attn.out_proj.weight", {6144, 8192}},
                        {"model.layers.6.self_attn.norm.weight", {8192}},
                        {"model.layers.7.self_attn.q_proj.weight", {8192, 6144}},
                        {"model.layers.7.self_attn.k_proj.weight", {1024, 6144}},
                        {"model.layers.7.self_attn.v_proj.weight", {1024, 6144}},
                        {"model.layers.7.self_attn.o_proj.weight", {6144, 8192}},
                        {"model.layers.0.block_sparse_moe.gate.weight", {32, 6144}},
                        {"model.layers.79.block_sparse_moe.experts.31.w1.weight", {9216, 6144}},
                        {"model.layers.79.block_sparse_moe.experts.31.w2.weight", {6144, 9216}},
                        {"model.layers.79.block_sparse_moe.experts.31.w3.weight", {9216, 6144}},
                        {"model.norm.weight", {6144}},
                        {"lm_head.weight", {200064, 6144}}}) {
    const auto it = std::find_if(wanted.begin(), wanted.end(),
                                 [&](const WantedTensor& w) { return w.name == row.name; });
    ASSERT_NE(it, wanted.end()) << row.name;
    EXPECT_EQ(it->shape, row.shape) << row.name;
  }
}

TEST(WantedTensors, ADenseModelWithASharedExpertAndTiedEmbeddingsHasNoExpertsAndNoHead) {
  std::vector<std::string> names;
  for (const WantedTensor& w : WantedTensors(Load("dense-shared.json"))) names.push_back(w.name);
  const auto has = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  EXPECT_TRUE(has("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_TRUE(has("model.layers.1.mlp.up_proj.weight"));
  EXPECT_TRUE(has("model.layers.1.mlp.down_proj.weight"));
  EXPECT_TRUE(has("model.layers.0.shared_mlp.down_proj.weight"));
  EXPECT_TRUE(has("model.layers.0.coefficient.weight"));
  EXPECT_FALSE(has("model.layers.0.block_sparse_moe.gate.weight"));
  EXPECT_FALSE(has("lm_head.weight"));
}

TEST(LocateTensors, FindsTheOriginalNames) {
  const TensorMap map = Locate(Small(), Stored(Small()));
  const TensorLocation& w1 = map.at(kW1);
  EXPECT_EQ(w1.source, kW1);
  EXPECT_EQ(w1.dtype, DType::kBF16);
  EXPECT_EQ(w1.first_row, 0);
  EXPECT_EQ(w1.rows, 96);
  EXPECT_EQ(w1.columns, 64);
  EXPECT_EQ(w1.scale, "");
  EXPECT_EQ(map.at("model.norm.weight").rows, 1);
  EXPECT_EQ(map.at("model.norm.weight").columns, 64);
  EXPECT_EQ(map.size(), WantedTensors(Small()).size());
}

TEST(LocateTensors, FindsThePortsFusedExperts) {
  std::vector<StoredTensor> stored;
  for (const StoredTensor& t : Stored(Small())) {
    if (t.name.find("block_sparse_moe") == std::string::npos) stored.push_back(t);
  }
  for (const std::string layer : {"0", "1"}) {
    const std::string mlp = "model.layers." + layer + ".mlp.";
    stored.push_back({mlp + "gate.weight", DType::kF32, {3, 64}});
    stored.push_back({mlp + "experts.gate_up_proj", DType::kF32, {3, 192, 64}});
    stored.push_back({mlp + "experts.down_proj", DType::kF32, {3, 64, 96}});
  }
  const TensorMap map = Locate(Small(), stored);
  EXPECT_EQ(map.at(kW1).source, "model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(map.at(kW1).first_row, 192);
  EXPECT_EQ(map.at(kW1).rows, 96);
  EXPECT_EQ(map.at(ExpertTensorName(0, 1, "w3")).first_row, 288);
  EXPECT_EQ(map.at(ExpertTensorName(1, 2, "w2")).source, "model.layers.1.mlp.experts.down_proj");
  EXPECT_EQ(map.at(ExpertTensorName(1, 2, "w2")).first_row, 128);
  EXPECT_EQ(map.at(LayerTensorName(1, "block_sparse_moe.gate")).source,
            "model.layers.1.mlp.gate.weight");

  stored.back().shape = {3, 96, 64};
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor does not fit: \"model.layers.1.mlp.experts.down_proj\" is [3, 96, 64], "
            "wanted [3, 64, 96]");
}

TEST(LocateTensors, TakesInt8WithScalesForWeightsAlone) {
  for (const int64_t group : {32, 64, 128}) {
    std::vector<StoredTensor> stored = Stored(Small());
    const std::string w2 = ExpertTensorName(0, 0, "w2");
    Named(stored, w2).dtype = DType::kI8;
    stored.push_back({w2 + "_scale", DType::kBF16, {64, (96 + group - 1) / group}});
    const TensorMap map = Locate(Small(), stored);
    EXPECT_EQ(map.at(w2).dtype, DType::kI8);
    EXPECT_EQ(map.at(w2).scale, w2 + "_scale");
    EXPECT_EQ(map.at(w2).group, group);
  }
  std::vector<StoredTensor> stored = Stored(Small());
  Named(stored, kW1).dtype = DType::kI8;
  EXPECT_EQ(ErrorOf(stored, Code::kNotFound),
            "m: 1 tensor is missing: " + std::string(kW1) + "_scale");
  stored.push_back({kW1 + std::string("_scale"), DType::kBF16, {96, 3}});
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor does not fit: \"" + std::string(kW1) +
                "_scale\" is bf16 [96, 3], wanted bf16 with one scale for each 32, 64 or 128 of 64 "
                "columns");
  stored = Stored(Small());
  Named(stored, "model.norm.weight").dtype = DType::kI8;
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor does not fit: \"model.norm.weight\" is int8, wanted float32, bf16 or "
            "float16");
}

TEST(LocateTensors, AScaleBesideAFloatWeightHasNoPlace) {
  std::vector<StoredTensor> stored = Stored(Small());
  stored.push_back({"lm_head.weight_scale", DType::kBF16, {100, 2}});
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor has no place in this configuration: \"lm_head.weight_scale\"");
}

TEST(LocateTensors, IgnoresBuffersThatThePortComputes) {
  std::vector<StoredTensor> stored = Stored(Small());
  for (const char* buffer : {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}) {
    stored.push_back({std::string("model.layers.0.self_attn.") + buffer, DType::kF32, {4, 1, 1}});
  }
  Locate(Small(), stored);
}

TEST(LocateTensors, IgnoresTheVisionTowerBesideALanguageModelAlone) {
  std::vector<StoredTensor> stored = Stored(Small());
  stored.push_back({"image_newline", DType::kBF16, {64}});
  ErrorOf(stored, Code::kInvalid);
  for (StoredTensor& t : stored) {
    if (t.name != "image_newline") t.name = "language_model." + t.name;
  }
  stored.push_back({"vision_tower.vision_model.pre_layrnorm.bias", DType::kBF16, {1024}});
  stored.push_back({"multi_modal_projector.linear_1.weight", DType::kBF16, {64, 1024}});
  EXPECT_EQ(Locate(Small(), stored).at(kW1).source, "language_model." + std::string(kW1));

  stored.push_back({kW1, DType::kBF16, {96, 64}});
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor is stored twice: \"" + std::string(kW1) + "\"");
}

TEST(LocateTensors, TiedEmbeddingsNeedNoHeadAndIgnoreOne) {
  const TextConfig c = Load("dense-shared.json");
  std::vector<StoredTensor> stored = Stored(c);
  Locate(c, stored);
  stored.push_back({"lm_head.weight", DType::kBF16, {100, 48}});
  EXPECT_FALSE(Locate(c, stored).contains("lm_head.weight"));
}

TEST(LocateTensors, NamesThreeTensorsAndCountsTheOthers) {
  std::vector<StoredTensor> stored = Stored(Small());
  std::erase_if(stored, [](auto& t) { return t.name.find("experts") != std::string::npos; });
  EXPECT_EQ(ErrorOf(stored, Code::kNotFound),
            "m: 18 tensors are missing: model.layers.0.block_sparse_moe.experts.0.w1.weight, "
            "model.layers.0.block_sparse_moe.experts.0.w2.weight, "
            "model.layers.0.block_sparse_moe.experts.0.w3.weight and 15 more");

  stored = Stored(Small());
  Named(stored, "lm_head.weight").name = "head.weight\n";
  EXPECT_EQ(ErrorOf(stored, Code::kNotFound),
            "m: 1 tensor is missing: lm_head.weight; 1 tensor has no place in this configuration: "
            "\"head.weight\\x0a\"");

  stored = Stored(Small());
  for (StoredTensor& t : stored) {
    if (t.shape.size() == 1) t.shape.push_back(1);
  }
  const std::string error = ErrorOf(stored, Code::kInvalid);
  EXPECT_EQ(error.find("m: 6 tensors do not fit: \"model.layers.0.input_layernorm.weight\" is "
                       "[64, 1], wanted [64], "),
            0u)
      << error;
}

TEST(LocateTensors, RefusesTypesThatHoldNoWeights) {
  std::vector<StoredTensor> stored = Stored(Small());
  Named(stored, "lm_head.weight").dtype = DType::kI64;
  EXPECT_EQ(ErrorOf(stored, Code::kInvalid),
            "m: 1 tensor does not fit: \"lm_head.weight\" is int64, wanted float32, bf16 or "
            "float16, or int8 with scales");
}

}  // namespace
}  // namespace mm01
