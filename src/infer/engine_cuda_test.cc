// The whole model on a GPU against the same on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "infer/generate.h"
#include "infer/session.h"
#include "infer/snapshots.h"
#include "testing/near.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

// Text-01's head dims in a small model, so that the kernels for them run.
TextConfig ReleasedHeads() {
  TextConfig c = TinyConfig();
  c.hidden_size = 256;
  c.head_dim = 128;
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.rotary_dim = 64;
  c.ffn_size = 128;
  return c;
}

class EngineCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpu = FindCuda(); !gpu.ok()) GTEST_SKIP() << gpu.status().message();
  }

  std::unique_ptr<Engine> Load(const TextConfig& config, Device device, DType type,
                               int64_t rows = 512, int64_t context = 512) {
    WriteTinyModel(folder_.path(), config);
    const WeightType weights{type, type == DType::kI8 ? 64 : 0};
    auto engine = Engine::Load(folder_.path(), {.weights = weights,
                                                .device = device,
                                                .num_threads = 2,
                                                .context_tokens = context,
                                                .num_sequences = 4,
                                                .prefill_rows = rows});
    Check(engine.ok(), engine.status().message());
    return std::move(*engine);
  }

  // The logits after `prompt` tokens in one piece and `single` one by one.
  static std::vector<float> Logits(Engine& engine, int64_t prompt, int64_t single) {
    Session session = Session::Open(engine).value();
    const std::vector<int32_t> ids = TinyTokens(prompt + single);
    const std::span all(ids);
    EXPECT_TRUE(session.Read(all.first(static_cast<size_t>(prompt))).ok());
    for (int64_t i = 0; i < single; ++i) {
      EXPECT_TRUE(session.Read(all.subspan(static_cast<size_t>(prompt + i), 1)).ok());
    }
    return {session.logits().begin(), session.logits().end()};
  }

  void ExpectAgree(TextConfig config, DType type, double tolerance) {
    // A rounded router logit may choose another expert: here every token goes to all.
    if (type != DType::kF32) config.num_experts_per_token = config.num_experts;
    const auto cpu = Load(config, Device::kCpu, type), gpu = Load(config, Device::kCuda, type);
    for (const int64_t prompt : {1, 63, 64, 65, 200}) {
      SCOPED_TRACE(prompt);
      EXPECT_LE(RelativeError(Logits(*gpu, prompt, 0), Logits(*cpu, prompt, 0)), tolerance);
      EXPECT_LE(RelativeError(Logits(*gpu, prompt, 70), Logits(*cpu, prompt, 70)), tolerance);
    }
  }

  TempFolder folder_;
};

TEST_F(EngineCudaTest, StepsAreAsLongAsContextAndMemoryAllow) {
  WriteTinyModel(folder_.path(), TinyConfig());
  const auto load = [&](int64_t context, int64_t limit) {
    auto engine = Engine::Load(folder_.path(), {.device = Device::kCuda,
                                                .num_threads = 1,
                                                .context_tokens = context,
                                                .memory_limit_bytes = limit});
    Check(engine.ok(), engine.status().message());
    return std::move(*engine);
  };
  EXPECT_EQ(*load(100, 0)->options().prefill_rows, 512);
  EXPECT_EQ(*load(3000, 0)->options().prefill_rows, 3000);
  const auto whole = load(40'000, 0);
  EXPECT_EQ(*whole->options().prefill_rows, 16384);
  const int64_t enough = whole->plan().total() + whole->plan().workspace;
  EXPECT_EQ(*load(40'000, enough)->options().prefill_rows, 16384);
  EXPECT_EQ(*load(40'000, enough - 1)->options().prefill_rows, 8192);
}

TEST_F(EngineCudaTest, Float32EqualsTheCpu) {
  ExpectAgree(TinyConfig(), DType::kF32, 1e-5);
  ExpectAgree(ReleasedHeads(), DType::kF32, 1e-5);
}

TEST_F(EngineCudaTest, Bf16IsNear) {
  ExpectAgree(TinyConfig(), DType::kBF16, 2e-2);
  ExpectAgree(ReleasedHeads(), DType::kBF16, 2e-2);
}

TEST_F(EngineCudaTest, Int8IsNear) {
  ExpectAgree(TinyConfig(), DType::kI8, 2e-2);
  ExpectAgree(ReleasedHeads(), DType::kI8, 2e-2);
}

TEST_F(EngineCudaTest, ARecordedStepGivesTheBitsOfAPlainOne) {
  const auto engine = Load(ReleasedHeads(), Device::kCuda, DType::kBF16);
  const std::vector<float> first = Logits(*engine, 64, 1);  // no step recorded yet
  Logits(*engine, 64, 20);
  EXPECT_EQ(Logits(*engine, 64, 1), first);
}

TEST_F(EngineCudaTest, SavedOnTheGpuGoesOnThereAndOnTheCpu) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto gpu = Load(ReleasedHeads(), Device::kCuda, type);
    const auto cpu = Load(ReleasedHeads(), Device::kCpu, type);
    const std::string path = folder_.path() + "/saved";
    const std::vector<int32_t> ids = TinyTokens(150);
    Session session = Session::Open(*gpu).value();
    ASSERT_TRUE(session.Read(ids).ok());
    ASSERT_TRUE(session.Save(path).ok());
    const std::vector<int32_t> next = {7, 11, 13};
    ASSERT_TRUE(session.Read(next).ok());
    const std::vector<float> want(session.logits().begin(), session.logits().end());
    Result<Session> again = Session::Load(*gpu, path);
    ASSERT_TRUE(again.ok()) << again.status().message();
    ASSERT_TRUE(again->Read(next).ok());
    EXPECT_EQ(std::vector<float>(again->logits().begin(), again->logits().end()), want);
    Result<Session> there = Session::Load(*cpu, path);
    ASSERT_TRUE(there.ok()) << there.status().message();
    ASSERT_TRUE(there->Read(next).ok());
    const std::vector<float> on_cpu(there->logits().begin(), there->logits().end());
    EXPECT_LE(RelativeError(on_cpu, want), type == DType::kF32 ? 1e-5 : 2e-2);
  }
}

// S and the pages are large enough to go by way of pinned memory.
TEST_F(EngineCudaTest, ASequenceGoesOnFromASnapshotToTheBit) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto engine = Load(ReleasedHeads(), Device::kCuda, type, 2048, 4096);
    TextState& state = engine->state();
    Snapshots snapshots(state, 1 << 30);
    const std::vector<int32_t> tokens = TinyTokens(1800);
    std::vector<PrefixKey> keys;
    ExtendPrefixKeys(PrefixRoot("model", ""), tokens, &keys);
    const auto open = [&] {
      const int32_t slot = *state.Open();
      Check(state.Reserve(slot, std::ssize(tokens)).ok(), "there is room");
      return slot;
    };
    const auto read = [&](int32_t slot, std::span<const int32_t> ids) {
      Scratch scratch(engine->queue());
      const auto rows = std::ssize(ids);
      const Tensor hidden =
          scratch.GetRows(engine->weights().activations(), rows, engine->config().hidden_size);
      Forward(engine->model(), {.ids = {ids.begin(), ids.end()}, .sequences = {{slot, rows}}},
              hidden);
      std::vector<float> logits(static_cast<size_t>(engine->config().vocab_size));
      LogitsToHost(engine->model(), hidden.Rows(rows - 1, rows), logits);
      return logits;
    };
    const int32_t slot = open();
    read(slot, std::span(tokens).first(704));
    ASSERT_TRUE(snapshots.Take(engine->queue(), state, slot, keys));
    read(slot, std::span(tokens).subspan(704, 960));
    ASSERT_TRUE(snapshots.Take(engine->queue(), state, slot, keys));
    const std::vector<float> wanted = read(slot, std::span(tokens).subspan(1664));
    state.Close(slot);

    // Slots and pages of others hold other numbers now.
    read(open(), TinyTokens(1800, 96, 2));
    const auto found = snapshots.Find(keys, 1800);
    ASSERT_TRUE(found);
    ASSERT_EQ(found->position, 1664);
    const int32_t again = open();
    Restoring restoring(found);
    EXPECT_FALSE(restoring.Go(engine->queue(), state, again, 5 * state.page_bytes()));
    EXPECT_TRUE(restoring.Go(engine->queue(), state, again, 1 << 30));
    EXPECT_EQ(read(again, std::span(tokens).subspan(1664)), wanted);
  }
}

// Pages, slots and the scratch of a step are taken before the first of many tokens.
TEST_F(EngineCudaTest, AMillionTokensGrowNothing) {
  constexpr int64_t kFirst = 65'536, kAll = 1'048'576;
  const auto engine = Engine::Load(
      MM01_SOURCE_DIR "/models/nano",
      {.device = Device::kCuda, .num_threads = 2, .context_tokens = kAll, .prefill_rows = 16'384});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  const std::vector<int32_t> ids = TinyTokens(kAll);
  Session session = Session::Open(**engine).value();
  ASSERT_TRUE(session.Read(std::span(ids).first(kFirst)).ok());
  const int64_t first = FindCuda()->free_bytes;
  ASSERT_TRUE(session.Read(std::span(ids).subspan(kFirst)).ok());
  EXPECT_EQ(session.length(), kAll);
  EXPECT_LT(first - FindCuda()->free_bytes, int64_t{64} << 20);
  for (const float logit : session.logits()) EXPECT_FALSE(std::isnan(logit));
}

}  // namespace
}  // namespace mm01::infer
