#include "model/text01/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace mm01 {
namespace {

std::string Golden(const std::string& name) {
  return std::string(MM01_SOURCE_DIR) + "/tests/goldens/config/" + name;
}

TextConfig Load(const std::string& name) {
  Result<TextConfig> config = LoadTextConfig(Golden(name));
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : TextConfig();
}

// A small valid configuration in the original spelling, for tests to spoil.
Json SmallOriginal() {
  return {{"model_type", "minimax_text_01"},
          {"vocab_size", 100},
          {"hidden_size", 64},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"intermediate_size", 96},
          {"num_local_experts", 4},
          {"num_experts_per_tok", 2},
          {"attn_type_list", {0, 1}},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 1e6},
          {"eos_token_id", 2}};
}

Json SmallPort() {
  return {{"model_type", "minimax"}, {"vocab_size", 100},        {"hidden_size", 64},
          {"num_hidden_layers", 3},  {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"intermediate_size", 96}, {"num_local_experts", 4},   {"num_experts_per_tok", 2},
          {"rms_norm_eps", 1e-5},    {"rope_theta", 1e6}};
}

TextConfig Parse(const Json& json) {
  Result<TextConfig> config = ParseTextConfig(json, "c");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : TextConfig();
}

std::string ErrorOf(const Json& json, Code code = Code::kInvalid) {
  const Result<TextConfig> config = ParseTextConfig(json, "c");
  EXPECT_EQ(config.status().code(), code) << config.status().message();
  return config.status().message();
}

Json With(Json json, const std::string& name, Json value) {
  json[name] = std::move(value);
  return json;
}

Json Without(Json json, const std::string& name) {
  json.erase(name);
  return json;
}

TEST(TextConfig, ReadsText01) {
  const TextConfig c = Load("text-01.json");
  EXPECT_EQ(c.kind, ConfigKind::kOriginal);
  EXPECT_EQ(c.vocab_size, 200064);
  EXPECT_EQ(c.hidden_size, 6144);
  EXPECT_EQ(c.num_heads, 64);
  EXPECT_EQ(c.num_kv_heads, 8);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.rotary_dim, 64);
  EXPECT_EQ(c.rope_theta, 1e7);
  EXPECT_EQ(c.ffn_size, 9216);
  EXPECT_EQ(c.num_experts, 32);
  EXPECT_EQ(c.num_experts_per_token, 2);
  EXPECT_EQ(c.shared_ffn_size, 0);
  EXPECT_EQ(c.num_layers(), 80);
  EXPECT_EQ(c.num_softmax_layers(), 10);
  for (size_t i = 0; i < 80; ++i) {
    EXPECT_EQ(c.layers[i], i % 8 == 7 ? LayerKind::kSoftmax : LayerKind::kLightning) << i;
  }
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.lightning_norm_eps, 1e-6);
  EXPECT_DOUBLE_EQ(c.mlp_residual.alpha, std::pow(160.0, 0.25));
  EXPECT_EQ(c.mlp_residual.beta, 1.0);
  EXPECT_TRUE(c.post_norm);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_EQ(c.max_positions, 10240000);
  EXPECT_TRUE(c.bos_ids.empty());
  EXPECT_TRUE(c.eos_ids.empty());
}

TEST(TextConfig, ThePortsSpellingDiffersInTheKindOnly) {
  TextConfig c = Load("text-01-port.json");
  EXPECT_EQ(c.kind, ConfigKind::kTransformers);
  c.kind = ConfigKind::kOriginal;
  EXPECT_EQ(c, Load("text-01.json"));
}

TEST(TextConfig, ReadsTheTextPartOfAVisionLanguageModel) {
  TextConfig c = Load("vl-01.json");
  EXPECT_EQ(c.max_positions, 8192);
  c.max_positions = 10240000;
  EXPECT_EQ(c, Load("text-01.json"));
}

TEST(TextConfig, AnEmptyOrAllZeroPatternHasNoSoftmaxLayers) {
  const TextConfig c = Load("all-lightning.json");
  EXPECT_EQ(c.layers, std::vector<LayerKind>(4, LayerKind::kLightning));
  EXPECT_EQ(c.head_dim, 16) << "hidden_size 64 over 4 heads";
  EXPECT_EQ(Parse(With(SmallOriginal(), "attn_type_list", {0, 0})).num_softmax_layers(), 0);
}

TEST(TextConfig, ReadsADenseFfnWithASharedExpertAndTiedEmbeddings) {
  const TextConfig c = Load("dense-shared.json");
  EXPECT_EQ(c.num_experts, 0);
  EXPECT_EQ(c.num_experts_per_token, 0);
  EXPECT_EQ(c.ffn_size, 80);
  EXPECT_EQ(c.shared_ffn_size, 32);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_FALSE(c.post_norm) << "the original's default";
  EXPECT_EQ(c.rotary_dim, 8);
  EXPECT_EQ(c.lightning_norm_eps, 1e-5);
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{2, 3}));
}

TEST(TextConfig, OneExpertIsNotADenseFfn) {
  const Json json = With(With(SmallOriginal(), "num_local_experts", 1), "num_experts_per_tok", 1);
  EXPECT_EQ(Parse(json).num_experts, 1);
  EXPECT_EQ(Parse(With(SmallOriginal(), "num_local_experts", 0)).num_experts, 0);
}

TEST(TextConfig, ThePortAlternatesWhereItNamesNoLayersAndIsAlwaysPostNorm) {
  const TextConfig c = Parse(SmallPort());
  EXPECT_EQ(c.layers, (std::vector<LayerKind>{LayerKind::kSoftmax, LayerKind::kLightning,
                                              LayerKind::kSoftmax}));
  EXPECT_TRUE(c.post_norm);
  ErrorOf(With(SmallPort(), "postnorm", false), Code::kUnsupported);
}

TEST(TextConfig, WithoutAModelTypeTheLayerListTellsTheKind) {
  EXPECT_EQ(Parse(Without(SmallOriginal(), "model_type")).kind, ConfigKind::kOriginal);
  const Json types = {"full_attention", "linear_attention", "linear_attention"};
  EXPECT_EQ(Parse(With(Without(SmallPort(), "model_type"), "layer_types", types)).kind,
            ConfigKind::kTransformers);
  EXPECT_EQ(ErrorOf(Without(SmallPort(), "model_type")),
            "c: model_type is missing, wanted \"minimax_text_01\" or \"minimax\"");
  EXPECT_EQ(ErrorOf(With(SmallPort(), "model_type", "llama"), Code::kUnsupported),
            "c: model_type is \"llama\", wanted \"minimax_text_01\" or \"minimax\"");
}

TEST(TextConfig, ReadsEverySpellingOfTheResidualFactors) {
  for (const char* name : {"layernorm_linear_attention_alpha", "linear_attn_alpha_factor",
                           "layernorm_lightning_attention_alpha"}) {
    EXPECT_EQ(Parse(With(SmallOriginal(), name, 1.5)).lightning_residual.alpha, 1.5) << name;
  }
  for (const char* name :
       {"layernorm_full_attention_beta", "full_attn_beta_factor", "layernorm_attention_beta"}) {
    EXPECT_EQ(Parse(With(SmallOriginal(), name, 2)).softmax_residual.beta, 2.0) << name;
  }
  EXPECT_EQ(Parse(With(SmallOriginal(), "mlp_alpha_factor", 3)).mlp_residual.alpha, 3.0);
  EXPECT_TRUE(Parse(With(SmallOriginal(), "residual_post_norm", true)).post_norm);
}

TEST(TextConfig, SpellingsOfOneFieldMustAgree) {
  Json json = With(SmallOriginal(), "layernorm_mlp_alpha", 2);
  EXPECT_EQ(Parse(With(json, "mlp_alpha_factor", 2.0)).mlp_residual.alpha, 2.0);
  EXPECT_EQ(ErrorOf(With(json, "mlp_alpha_factor", 3)),
            "c: layernorm_mlp_alpha is 2 but mlp_alpha_factor is 3, wanted one value");
  EXPECT_EQ(ErrorOf(With(With(SmallOriginal(), "rotary_dim", 8), "partial_rotary_factor", 1.0)),
            "c: rotary_dim is 8 but partial_rotary_factor 1 of head_dim 16 is 16");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "rope_parameters", {{"rope_theta", 5.0}})),
            "c: rope_theta is 1000000 but 5 in rope_parameters, wanted one value");
}

TEST(TextConfig, RotaryDimIsTheHeadDimUnlessAFieldSaysLess) {
  EXPECT_EQ(Parse(SmallOriginal()).rotary_dim, 16);
  EXPECT_EQ(Parse(With(SmallOriginal(), "rotary_dim", 6)).rotary_dim, 6);
  EXPECT_EQ(Parse(With(SmallPort(), "partial_rotary_factor", 0.25)).rotary_dim, 4);
  EXPECT_EQ(
      Parse(With(SmallPort(), "rope_parameters", {{"partial_rotary_factor", 0.5}})).rotary_dim, 8);
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "rotary_dim", 7)),
            "c: rotary_dim is 7, wanted an even number from 2 to 16 (head_dim)");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "rotary_dim", 18)),
            "c: rotary_dim is 18, wanted 0 to 16");
}

TEST(TextConfig, RefusesWhatItDoesNotCompute) {
  const Code unsupported = Code::kUnsupported;
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "hidden_act", "gelu"), unsupported),
            "c: hidden_act is \"gelu\", wanted \"silu\"");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "sliding_window", 4096), unsupported),
            "c: sliding_window is 4096, wanted null");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "rope_scaling", {{"type", "yarn"}}), unsupported),
            "c: rope_scaling: rope_type is \"yarn\", wanted \"default\"");
  EXPECT_EQ(ErrorOf(With(SmallPort(), "rope_parameters", {{"rope_type", "linear"}}), unsupported),
            "c: rope_parameters: rope_type is \"linear\", wanted \"default\"");
  ErrorOf(With(SmallOriginal(), "shared_intermediate_size", {32, 0}), unsupported);
  ErrorOf(With(With(SmallOriginal(), "shared_intermediate_size", 32), "shared_moe_mode", "softmax"),
          unsupported);
}

TEST(TextConfig, EveryIntegerFieldRefusesWhatIsNoSensibleInteger) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Json> bad = {-1,
                                 int64_t{1} << 31,
                                 std::numeric_limits<int64_t>::min(),
                                 "4",
                                 4.5,
                                 std::numeric_limits<uint64_t>::max(),
                                 nan,
                                 true,
                                 Json::array({"x"}),
                                 Json::object()};
  for (const char* name :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rotary_dim", "intermediate_size", "num_local_experts",
        "num_experts_per_tok", "shared_intermediate_size", "eos_token_id", "bos_token_id"}) {
    for (const Json& value : bad) {
      const std::string error = ErrorOf(With(SmallOriginal(), name, value));
      EXPECT_NE(error.find(name), std::string::npos) << error;
      EXPECT_NE(error.find("wanted"), std::string::npos) << error;
    }
  }
  for (const char* name : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                           "num_key_value_heads", "head_dim", "intermediate_size", "rotary_dim",
                           "num_experts_per_tok"}) {
    EXPECT_NE(ErrorOf(With(SmallOriginal(), name, 0)).find(name), std::string::npos);
  }
}

TEST(TextConfig, EveryNumberFieldRefusesWhatIsNoPositiveNumber) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const char* name : {"rms_norm_eps", "lightning_norm_eps", "rope_theta",
                           "layernorm_mlp_alpha", "layernorm_linear_attention_beta"}) {
    for (const Json& value : std::vector<Json>{0, -1.0, inf, nan, "1", false, Json::array()}) {
      const std::string error = ErrorOf(With(SmallOriginal(), name, value));
      EXPECT_EQ(error.find("c: " + std::string(name) + " is "), 0u) << error;
    }
  }
  ErrorOf(With(SmallOriginal(), "partial_rotary_factor", 1.5));
  ErrorOf(With(SmallOriginal(), "partial_rotary_factor", nan));
}

TEST(TextConfig, NamesWhatIsMissing) {
  for (const char* name : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                           "intermediate_size", "num_experts_per_tok", "rms_norm_eps", "rope_theta",
                           "attn_type_list"}) {
    const std::string error = ErrorOf(Without(SmallOriginal(), name));
    EXPECT_EQ(error.find("c: " + std::string(name) + " is missing"), 0u) << error;
    EXPECT_EQ(ErrorOf(With(SmallOriginal(), name, nullptr)), error);
  }
}

TEST(TextConfig, RefusesPatternsThatDoNotFitTheLayers) {
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "attn_type_list", {0, 1, 1})),
            "c: attn_type_list has 3 entries, wanted 2 (num_hidden_layers) or none");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "attn_type_list", {0, 2})),
            "c: attn_type_list[1] is 2, wanted 0 (lightning) or 1 (softmax)");
  EXPECT_EQ(ErrorOf(With(SmallPort(), "layer_types", {"full_attention", 1, "chunked"})),
            "c: layer_types[1] is 1, wanted \"linear_attention\" or \"full_attention\"");
  EXPECT_EQ(ErrorOf(With(SmallPort(), "layer_types", Json::array())),
            "c: layer_types is an array of 0, wanted an array of 3 (num_hidden_layers)");
  const Json types = {"linear_attention", "linear_attention"};
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "layer_types", types)),
            "c: attn_type_list and layer_types disagree, wanted one pattern of layers");
}

TEST(TextConfig, RefusesSizesThatNoModelHas) {
  const Json wide =
      With(With(With(SmallOriginal(), "hidden_size", 65536), "vocab_size", 65536), "head_dim", 16);
  EXPECT_EQ(ErrorOf(wide),
            "c: vocab_size x hidden_size is 65536 x 65536, wanted a product of at "
            "most 2147483648");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "num_local_experts", 32769)),
            "c: num_local_experts is 32769, wanted 0 to 32768");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "num_key_value_heads", 3)),
            "c: num_key_value_heads is 3, wanted a divisor of 4 (num_attention_heads)");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "eos_token_id", 100)),
            "c: eos_token_id is 100, wanted 0 to 99 (vocab_size - 1)");
  EXPECT_EQ(ErrorOf(With(SmallOriginal(), "num_attention_heads", 5)),
            "c: head_dim is missing, wanted one as hidden_size 64 is no multiple of "
            "num_attention_heads 5");
}

TEST(TextConfig, WhatToJsonWritesReadsBackTheSame) {
  for (const char* name : {"text-01.json", "text-01-port.json", "vl-01.json", "all-lightning.json",
                           "dense-shared.json"}) {
    const TextConfig c = Load(name);
    const std::string text = ToJson(c).dump();
    Result<Json> json = ParseJson(text, name);
    ASSERT_TRUE(json.ok());
    EXPECT_EQ(Parse(*json), c) << text;
  }
  TextConfig port = Load("all-lightning.json");
  port.kind = ConfigKind::kTransformers;
  port.rotary_dim = 0;
  EXPECT_EQ(Parse(ToJson(port)), port);
}

TEST(LoadTextConfig, SaysWhichFileIsMissingOrNoObject) {
  EXPECT_EQ(LoadTextConfig("/no/such/model").status().code(), Code::kNotFound);
  const std::string message = LoadTextConfig("/no/such/model").status().message();
  EXPECT_NE(message.find("/no/such/model/config.json"), std::string::npos) << message;
  EXPECT_EQ(ErrorOf(Json::array({1})), "c holds an array of 1, wanted an object");
}

}  // namespace
}  // namespace mm01
