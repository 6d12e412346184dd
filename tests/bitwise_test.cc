// A row's numbers depend on its sequence alone, to the last bit: not on chunks, threads, pauses, or
// who else is in the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "infer/session.h"
#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using infer::Engine;
using infer::Session;
using Ids = std::vector<int32_t>;

constexpr WeightType kFloat32{};
constexpr WeightType kBf16{DType::kBF16, 0};
constexpr int64_t kLength = 300;  // more than the largest chunk, and no multiple of anything

struct Types {
  WeightType weights;
  DType kv;

  friend std::ostream& operator<<(std::ostream& out, const Types& t) {
    return out << ToString(t.weights.dtype) << " weights, " << ToString(t.kv) << " kv";
  }
};

// Two softmax layers, and sizes that fill no panel.
TextConfig Model() {
  TextConfig config = TinyConfig();
  config.layers.push_back(LayerKind::kSoftmax);
  config.hidden_size = 72;
  config.vocab_size = 100;
  config.ffn_size = 40;
  return config;
}

std::unique_ptr<Engine> Load(const std::string& folder, const Types& types, int threads,
                             int64_t prefill_rows = 512) {
  Result<std::unique_ptr<Engine>> engine = Engine::Load(folder, {.weights = types.weights,
                                                                 .kv = types.kv,
                                                                 .num_threads = threads,
                                                                 .context_tokens = 512,
                                                                 .num_sequences = 3,
                                                                 .prefill_rows = prefill_rows});
  Check(engine.ok(), engine.status().message());
  return std::move(*engine);
}

// What a step reads of one sequence.
struct Part {
  int32_t slot = 0;
  Ids ids;
};

// One step; the logits of its rows, by part.
std::vector<std::vector<float>> RunStep(Engine& engine, const std::vector<Part>& parts) {
  TextBatch batch;
  for (const Part& p : parts) {
    Check(engine.state().Reserve(p.slot, static_cast<int64_t>(p.ids.size())).ok(), "no room");
    batch.ids.insert(batch.ids.end(), p.ids.begin(), p.ids.end());
    batch.sequences.push_back({p.slot, static_cast<int64_t>(p.ids.size())});
  }
  const auto rows = static_cast<int64_t>(batch.ids.size());
  const int64_t width = engine.config().hidden_size, vocabulary = engine.config().vocab_size;
  std::vector<float> hidden(static_cast<size_t>(rows * width));
  std::vector<float> logits(static_cast<size_t>(rows * vocabulary));
  Forward(engine.model(), batch, Tensor(hidden.data(), {rows, width}));
  Logits(engine.model(), Tensor(hidden.data(), {rows, width}),
         Tensor(logits.data(), {rows, vocabulary}));
  std::vector<std::vector<float>> out;
  auto at = logits.begin();
  for (const Part& p : parts) {
    const auto end = at + static_cast<int64_t>(p.ids.size()) * vocabulary;
    out.emplace_back(at, end);
    at = end;
  }
  return out;
}

Ids Slice(const Ids& ids, int64_t begin, int64_t count) {
  const auto end = std::min(begin + count, static_cast<int64_t>(ids.size()));
  return {ids.begin() + begin, ids.begin() + end};
}

void Append(std::vector<float>& all, const std::vector<float>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

// The logits of every token of a sequence read alone.
std::vector<float> ReadInChunks(Engine& engine, const Ids& ids, int64_t chunk) {
  const int32_t slot = *engine.state().Open();
  std::vector<float> logits;
  for (int64_t at = 0; at < static_cast<int64_t>(ids.size()); at += chunk) {
    Append(logits, RunStep(engine, {{slot, Slice(ids, at, chunk)}})[0]);
  }
  engine.state().Close(slot);
  return logits;
}

class BitwiseTest : public testing::TestWithParam<Types> {
 protected:
  BitwiseTest() { WriteTinyModel(folder_.path(), Model()); }

  TempFolder folder_;
  const Ids ids_ = TinyTokens(kLength, 100);
};

TEST_P(BitwiseTest, ChunksAndThreadsDoNotShow) {
  const std::vector<float> want = ReadInChunks(*Load(folder_.path(), GetParam(), 1), ids_, kLength);
  for (const int threads : {1, 2}) {
    const auto engine = Load(folder_.path(), GetParam(), threads);
    for (const int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{256}, kLength}) {
      // Token by token, two busy threads mostly wait for each other: past two borders will do.
      const int64_t length = chunk == 1 && threads == 2 ? 135 : kLength;
      const auto end = want.begin() + length * 100;
      EXPECT_TRUE(SameBits(ReadInChunks(*engine, Slice(ids_, 0, length), chunk),
                           std::vector<float>(want.begin(), end)))
          << "chunks of " << chunk << ", " << threads << " threads";
    }
  }
}

TEST_P(BitwiseTest, CompanyInTheBatchDoesNotShow) {
  const auto engine = Load(folder_.path(), GetParam(), 1);
  const Ids texts[] = {ids_, TinyTokens(77, 100, 2), TinyTokens(130, 100, 3)};
  std::vector<float> want[3], got[3];
  for (int n = 0; n < 3; ++n) want[n] = ReadInChunks(*engine, texts[n], kLength);

  int32_t slots[3];
  int64_t read[3] = {};
  for (int32_t& slot : slots) slot = *engine->state().Open();
  // Prompts and single tokens side by side; one rests now and then.
  constexpr int64_t kRows[] = {1, 40, 1, 0, 3, 65, 1, 17};
  for (size_t step = 0; read[0] + read[1] + read[2] < 300 + 77 + 130; ++step) {
    std::vector<Part> parts;
    std::vector<size_t> who;
    for (size_t i = 0; i < 3; ++i) {
      const size_t n = (i + step) % 3;  // in changing order
      const Ids part = Slice(texts[n], read[n], kRows[(step * 3 + 5 * n) % 8]);
      if (part.empty()) continue;
      read[n] += static_cast<int64_t>(part.size());
      parts.push_back({slots[n], part});
      who.push_back(n);
    }
    if (parts.empty()) continue;
    const auto logits = RunStep(*engine, parts);
    for (size_t i = 0; i < who.size(); ++i) Append(got[who[i]], logits[i]);
  }
  for (int n = 0; n < 3; ++n) EXPECT_TRUE(SameBits(got[n], want[n])) << "sequence " << n;
}

TEST_P(BitwiseTest, APauseInAFileDoesNotShow) {
  const auto engine = Load(folder_.path(), GetParam(), 1),
             other = Load(folder_.path(), GetParam(), 2, 64);
  const std::vector<float> all = ReadInChunks(*engine, ids_, kLength);
  const std::vector<float> want(all.end() - 100, all.end());
  for (const int64_t pause : {1, 63, 64, 65, 200}) {
    const std::string file = folder_ / "state";
    {
      Session session = Session::Open(*engine).value();
      ASSERT_TRUE(session.Read(Slice(ids_, 0, pause)).ok());
      ASSERT_TRUE(session.Save(file).ok());
    }
    Session session = Session::Load(*other, file).value();
    ASSERT_TRUE(session.Read(Slice(ids_, pause, kLength)).ok());
    EXPECT_TRUE(SameBits(std::vector(session.logits().begin(), session.logits().end()), want))
        << "after " << pause;
  }
}

TEST_P(BitwiseTest, TokensTakenBackDoNotShow) {
  const auto engine = Load(folder_.path(), GetParam(), 1);
  const Ids drafts = TinyTokens(50, 100, 4);
  for (const auto& [length, num_drafts, kept] : {std::tuple<int64_t, int64_t, int64_t>{70, 5, 0},
                                                 {70, 5, 3},
                                                 {64, 7, 0},
                                                 {1, 50, 20},
                                                 {127, 0, 0}}) {
    Ids text = Slice(ids_, 0, length);
    const Ids first = Slice(drafts, 0, num_drafts), rest = Slice(ids_, length, 90);
    const int32_t slot = *engine->state().Open();
    RunStep(*engine, {{slot, text}});
    if (num_drafts > 0) RunStep(*engine, {{slot, first}});
    engine->state().Truncate(slot, length + kept);
    const std::vector<float> got = RunStep(*engine, {{slot, rest}})[0];
    engine->state().Close(slot);

    text.insert(text.end(), first.begin(), first.begin() + kept);
    text.insert(text.end(), rest.begin(), rest.end());
    const std::vector<float> all = ReadInChunks(*engine, text, kLength);
    EXPECT_TRUE(
        SameBits(got, std::vector<float>(all.end() - static_cast<int64_t>(got.size()), all.end())))
        << num_drafts << " drafts after " << length << " tokens, " << kept << " kept";
  }
}

std::string NameOf(const testing::TestParamInfo<Types>& info) {
  return "Weights" + ToString(info.param.weights.dtype) + "Kv" + ToString(info.param.kv);
}

INSTANTIATE_TEST_SUITE_P(EveryType, BitwiseTest,
                         testing::Values(Types{kFloat32, DType::kF32},
                                         Types{kFloat32, DType::kBF16}, Types{kBf16, DType::kF32},
                                         Types{kBf16, DType::kBF16},
                                         Types{{DType::kI8, 32}, DType::kF32},
                                         Types{{DType::kI8, 64}, DType::kBF16}),
                         NameOf);

TEST(BitwiseWeightsTest, Bf16WeightsOfABf16CheckpointAreItsFloat32Weights) {
  const TempFolder folder;
  WriteTinyModel(folder.path(), Model(), {.type = kBf16, .rounded = true});
  const Ids ids = TinyTokens(150, 100);
  for (const DType kv : {DType::kF32, DType::kBF16}) {
    const auto wide = Load(folder.path(), {kFloat32, kv}, 1),
               narrow = Load(folder.path(), {kBf16, kv}, 1);
    EXPECT_TRUE(SameBits(ReadInChunks(*narrow, ids, 64), ReadInChunks(*wide, ids, 150)));
  }
}

TEST(BitwiseWeightsTest, StoredInt8IsWhatFloat32QuantizesTo) {
  const TempFolder stored, plain;
  constexpr WeightType kInt8{DType::kI8, 32};
  WriteTinyModel(stored.path(), Model(), {.names = TinyNames::kPort, .type = kInt8});
  WriteTinyModel(plain.path(), Model());
  const Ids ids = TinyTokens(70, 100);
  EXPECT_TRUE(SameBits(ReadInChunks(*Load(stored.path(), {kInt8, DType::kBF16}, 1), ids, 70),
                       ReadInChunks(*Load(plain.path(), {kInt8, DType::kBF16}, 1), ids, 70)));
}

}  // namespace
}  // namespace mm01
