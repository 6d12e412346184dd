#include "planner/flops.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/text01/tensor_names.h"

namespace mm01 {
namespace {

TextConfig Load(const std::string& name) {
  Result<TextConfig> config =
      LoadTextConfig(std::string(MM01_SOURCE_DIR) + "/tests/goldens/config/" + name);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : TextConfig();
}

TEST(CountParameters, Text01HasThePublishedNumbers) {
  const TextConfig c = Load("text-01.json");
  const LayerParameters lightning = CountLayerParameters(c, LayerKind::kLightning);
  const LayerParameters softmax = CountLayerParameters(c, LayerKind::kSoftmax);
  EXPECT_EQ(lightning.experts, 5'435'817'984);          // 32 x 3 x 6144 x 9216
  EXPECT_EQ(lightning.activated_experts, 339'738'624);  // 2 x 3 x 6144 x 9216
  EXPECT_EQ(lightning.router, 196'608);                 // 32 x 6144
  EXPECT_EQ(lightning.norms, 12'288);                   // 2 x 6144
  EXPECT_EQ(lightning.shared, 0);
  EXPECT_EQ(lightning.attention, 251'666'432);  // 5 x 6144 x 8192 + 8192
  EXPECT_EQ(softmax.attention, 113'246'208);    // 2 x 6144 x (8192 + 1024)

  const ParameterCount n = CountParameters(c);
  EXPECT_EQ(n.embedding, 1'229'193'216);
  EXPECT_EQ(n.lm_head, 1'229'193'216);
  EXPECT_EQ(n.total, 456'089'655'296);
  EXPECT_EQ(n.activated, 45'944'920'064);
}

TEST(CountParameters, TheTotalIsTheSumOfTheWantedTensors) {
  for (const char* name :
       {"text-01.json", "vl-01.json", "all-lightning.json", "dense-shared.json"}) {
    const TextConfig c = Load(name);
    int64_t sum = 0;
    for (const WantedTensor& w : WantedTensors(c)) {
      int64_t size = 1;
      for (const int64_t n : w.shape) size *= n;
      sum += size;
    }
    EXPECT_EQ(CountParameters(c).total, sum) << name;
  }
}

TEST(CountParameters, ADenseModelActivatesAllButTheEmbedding) {
  const ParameterCount n = CountParameters(Load("dense-shared.json"));
  EXPECT_EQ(n.lm_head, 0);
  EXPECT_EQ(n.activated, n.total - n.embedding);
}

TEST(FlopsPerToken, Text01CostsWhatTheFactsSay) {
  const TextConfig c = Load("text-01.json");
  const Flops last = FlopsPerToken(c, 1'024'000);
  EXPECT_EQ(last.weights, 2.0 * 45'944'920'064);
  EXPECT_EQ(last.head, 2.0 * 1'229'193'216);
  // 10 layers x 64 heads x 4 x 128 a token of context; its mean over a prefill is half of that, the
  // published 0.164 MFLOP x n.
  EXPECT_EQ(last.softmax, 327'680.0 * 1'024'000);
  EXPECT_NEAR(last.softmax / 2, 168e9, 0.5e9);
  // 70 x 64 heads x 4 x 128 x (128 + 64) at the end of a block, 1 + 128 at its begin.
  EXPECT_EQ(last.lightning, 440'401'920.0);
  EXPECT_EQ(FlopsPerToken(c, 1'024'001).lightning, 295'895'040.0);
  EXPECT_EQ(last.total(), last.weights + last.head + last.softmax + last.lightning);
}

TEST(FlopsPerToken, AModelWithoutSoftmaxLayersCostsTheSameAtEveryBorder) {
  const TextConfig c = Load("all-lightning.json");
  EXPECT_EQ(FlopsPerToken(c, 64).total(), FlopsPerToken(c, 64 << 20).total());
  EXPECT_EQ(FlopsPerToken(c, 1).softmax, 0);
  EXPECT_THROW((void)FlopsPerToken(c, 0), Bug);
}

TEST(PrefillFlops, AreTheSumOfTheTokens) {
  const TextConfig c = Load("text-01.json");
  double sum = 0;
  for (int64_t n = 6401; n <= 12'800; ++n) {
    const Flops token = FlopsPerToken(c, n);
    sum += token.total() - token.head;
  }
  EXPECT_NEAR(PrefillFlops(c, 6400, 6400) / sum, 1, 1e-4);
  EXPECT_NEAR((PrefillFlops(c, 6400, 3200) + PrefillFlops(c, 9600, 3200)) / sum, 1, 1e-4);
  EXPECT_EQ(PrefillFlops(c, 6400, 0), 0);
}

}  // namespace
}  // namespace mm01
