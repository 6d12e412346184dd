#include "planner/memory.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "planner/flops.h"

namespace mm01 {
namespace {

constexpr WeightType kFloat32{DType::kF32, 0};
constexpr WeightType kBFloat16{DType::kBF16, 0};
constexpr WeightType kInt8{DType::kI8, 128};

// Of Text-01: the norms (80 x 2 x 6144 + 6144 + 70 x 8192) and routers (80 x 32 x 6144), which stay
// float32, and all the others.
constexpr int64_t kSmallParameters = 1'562'624 + 15'728'640;
constexpr int64_t kMatrixParameters = 456'089'655'296 - kSmallParameters;

TextConfig Load(const std::string& name) {
  Result<TextConfig> config =
      LoadTextConfig(std::string(MM01_SOURCE_DIR) + "/tests/goldens/config/" + name);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : TextConfig();
}

MemoryPlan Plan(const TextConfig& config, const MemoryOptions& options) {
  Result<MemoryPlan> plan = PlanMemory(config, options);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.ok() ? *plan : MemoryPlan();
}

TEST(PlanMemory, Text01sWeightsTakeTheBytesOfTheirType) {
  const TextConfig c = Load("text-01.json");
  EXPECT_EQ(Plan(c, {.weights = kFloat32}).weights, 4 * 456'089'655'296);
  EXPECT_EQ(Plan(c, {.weights = kBFloat16}).weights, 2 * kMatrixParameters + 4 * kSmallParameters);
  EXPECT_EQ(Plan(c, {.weights = kInt8}).weights,
            kMatrixParameters + kMatrixParameters / 64 + 4 * kSmallParameters);
  EXPECT_EQ(Plan(c, {.weights = {DType::kI8, 32}}).weights,
            kMatrixParameters + kMatrixParameters / 16 + 4 * kSmallParameters);
}

TEST(PlanMemory, Text01InInt8DiffersFromThePublishedSizeByScalesAndHead) {
  // The published 458.6 GB have no scales, and 2 bytes for each of embedding, head, router and
  // norms.
  const int64_t ours = Plan(Load("text-01.json"), {.weights = kInt8}).weights;
  const int64_t scales = kMatrixParameters / 64;
  const int64_t published = ours - scales + 2 * int64_t{1'229'193'216} - 2 * kSmallParameters;
  EXPECT_NEAR(static_cast<double>(published), 458.6e9, 0.05e9);
}

TEST(PlanMemory, Text01sStateIsTwiceThePublishedOneForTheRowsOfABlock) {
  const TextConfig c = Load("text-01.json");
  // 70 layers x 64 heads x (128 x 128 + 2 x 64 x 128) floats; the first term alone is 280 MiB.
  EXPECT_EQ(Plan(c, {.context_tokens = 1}).state, int64_t{560} << 20);
  EXPECT_EQ(Plan(c, {.context_tokens = 4'000'000}).state, int64_t{560} << 20);
  EXPECT_EQ(Plan(c, {.num_sequences = 3}).state, int64_t{1680} << 20);
}

TEST(PlanMemory, Text01sKvCacheTakesPagesOf64Tokens) {
  const TextConfig c = Load("text-01.json");
  const auto kv = [&](DType type, int64_t tokens, int64_t sequences) {
    return Plan(c, {.kv = type, .context_tokens = tokens, .num_sequences = sequences}).kv;
  };
  EXPECT_EQ(kv(DType::kBF16, 1'000'000, 1), 40'960 * int64_t{1'000'000});  // 38.1 GiB
  EXPECT_EQ(kv(DType::kF32, 1'000'000, 1), 81'920 * int64_t{1'000'000});
  EXPECT_EQ(kv(DType::kBF16, 1, 1), 40'960 * 64);
  EXPECT_EQ(kv(DType::kBF16, 65, 2), 40'960 * 128 * 2);
}

TEST(PlanMemory, OnlyTheKvCacheGrowsWithTheContext) {
  const TextConfig c = Load("all-lightning.json");
  const MemoryPlan near = Plan(c, {.context_tokens = 4096});
  const MemoryPlan far = Plan(c, {.context_tokens = 1 << 20});
  EXPECT_EQ(near.total(), far.total());
  EXPECT_EQ(near.kv, 0);
}

TEST(PlanMemory, CountsASmallModelByHand) {
  // all-lightning: 4 layers, D = 64, 4 heads of 16, 4 experts of 96 (top 2), vocabulary 259.
  const MemoryPlan plan = Plan(Load("all-lightning.json"), {.chunk_rows = 10});
  const int64_t layer = 5 * 64 * 64 + 64   // attention and its norm
                        + 4 * 3 * 64 * 96  // experts
                        + 16 * 64          // router, 4 rows in a panel of 16
                        + 2 * 64;          // norms
  EXPECT_EQ(plan.weights, 4 * (4 * layer + 2 * 272 * 64 + 64)) << "259 rows fill 17 panels of 16";
  EXPECT_EQ(plan.state, 4 * 4 * (16 * 16 + 2 * 64 * 16) * 4);
  // A token: 4 x 64, and for each of 2 experts 2 x 64 + 2 x 96, and 4 router logits.
  EXPECT_EQ(plan.workspace, 4 * (10 * (256 + 2 * 320 + 4) + 259));
}

TEST(PlanMemory, TiedEmbeddingsAreCountedOnce) {
  TextConfig c = Load("all-lightning.json");
  const int64_t untied = Plan(c, {}).weights;
  c.tied_embeddings = true;
  EXPECT_EQ(untied - Plan(c, {}).weights, 4 * 272 * 64);
}

TEST(PlanMemory, RefusesCountsThatMakeNoSense) {
  const TextConfig c = Load("text-01.json");
  EXPECT_EQ(PlanMemory(c, {.context_tokens = 0}).status().message(),
            "the context in tokens is 0, wanted 1 or more");
  EXPECT_EQ(PlanMemory(c, {.num_sequences = -1}).status().code(), Code::kInvalid);
  EXPECT_EQ(PlanMemory(c, {.chunk_rows = 0}).status().code(), Code::kInvalid);
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const MemoryOptions& o :
       {MemoryOptions{.context_tokens = huge}, MemoryOptions{.num_sequences = huge},
        MemoryOptions{.chunk_rows = huge},
        MemoryOptions{.context_tokens = huge, .num_sequences = huge}}) {
    EXPECT_EQ(PlanMemory(c, o).status().code(), Code::kTooLarge);
  }
}

TEST(MemoryPlan, PrintsOneLineForEachPart) {
  const MemoryPlan plan{.weights = 3 << 20, .state = 1 << 10, .kv = 0, .workspace = 1 << 20};
  EXPECT_EQ(plan.ToTable(),
            "weights         3.00 MiB\n"
            "state           1.00 KiB\n"
            "KV cache             0 B\n"
            "workspace       1.00 MiB\n"
            "total           4.00 MiB\n");
}

TEST(CheckFits, RefusesWithTheNumbers) {
  const MemoryPlan plan{.weights = 3 << 20, .state = 1 << 10, .kv = 0, .workspace = 1 << 20};
  EXPECT_TRUE(CheckFits(plan, plan.total()).ok());
  const Status status = CheckFits(plan, 2 << 20);
  EXPECT_EQ(status.code(), Code::kTooLarge);
  EXPECT_EQ(status.message(),
            "4.00 MiB are needed (weights 3.00 MiB, state 1.00 KiB, KV cache 0 B, workspace 1.00 "
            "MiB) and 2.00 MiB are available");
}

TEST(BytesTouchedPerToken, Text01ReadsItsActivatedWeightsTheStateAndTheCache) {
  const TextConfig c = Load("text-01.json");
  const BytesTouched b = BytesTouchedPerToken(c, kFloat32, DType::kF32, 1'000'000);
  EXPECT_EQ(b.weights, 4 * (45'944'920'064 + 1'229'193'216 + 6144));
  EXPECT_EQ(b.kv, 81'920 * int64_t{1'000'000});
  // 1,000,000 is a multiple of 64, so a whole block of rows lies behind the border.
  EXPECT_EQ(b.state, int64_t{560} << 20);
  EXPECT_EQ(b.total(), b.weights + b.kv + b.state);

  // One row of k and v: 70 layers x 64 heads x (128 x 128 + 2 x 128) floats.
  const BytesTouched next = BytesTouchedPerToken(c, kBFloat16, DType::kBF16, 1'000'001);
  EXPECT_EQ(next.state, 70 * 64 * (16384 + 256) * 4);
  EXPECT_EQ(next.kv, 40'960 * int64_t{1'000'001});
  EXPECT_EQ(next.weights, 2 * (45'944'920'064 + 1'229'193'216 + 6144) + 2 * kSmallParameters);
}

TEST(DefaultKvType, IsFloat32BesideFloat32Alone) {
  EXPECT_EQ(DefaultKvType(kFloat32), DType::kF32);
  EXPECT_EQ(DefaultKvType(kBFloat16), DType::kBF16);
  EXPECT_EQ(DefaultKvType(kInt8), DType::kBF16);
}

}  // namespace
}  // namespace mm01
