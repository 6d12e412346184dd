#include "eval/perplexity.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>

#include "kernels/sample/sample.h"

namespace mm01::eval {
namespace {

constexpr int64_t kLogitRows = 64;  // rows of logits at a time: 51 MB at a vocabulary of 200,064

// Position 0, 1, 2-3, 4-7, ...: how many bits the position has.
size_t BucketOf(int64_t position) {
  return std::bit_width(static_cast<uint64_t>(position));
}

void Count(Perplexity& p, int64_t position, double nats) {
  const size_t bucket = BucketOf(position);
  while (p.buckets.size() <= bucket) {
    const size_t b = p.buckets.size();
    p.buckets.push_back({.begin = b == 0 ? 0 : int64_t{1} << (b - 1), .end = int64_t{1} << b});
  }
  p.buckets[bucket].nats += nats;
  ++p.buckets[bucket].num_tokens;
  p.nats += nats;
  ++p.num_tokens;
}

// Rows of hidden states predict the tokens that follow them; the last one of a document predicts
// none.
void ScoreRows(infer::Engine& engine, const Tensor& hidden, std::span<const int32_t> next,
               int64_t position, Perplexity& p) {
  const int64_t vocabulary = engine.config().vocab_size;
  std::vector<float> logits(static_cast<size_t>(kLogitRows * vocabulary));
  std::vector<double> nats(next.size());
  const auto count = static_cast<int64_t>(next.size());
  for (int64_t at = 0; at < count; at += kLogitRows) {
    const int64_t rows = std::min(kLogitRows, count - at);
    LogitsToHost(engine.model(), hidden.Rows(at, at + rows),
                 std::span(logits).first(static_cast<size_t>(rows * vocabulary)));
    engine.queue().pool().ParallelFor(rows, [&](int64_t r, int) {
      const auto row = std::span(logits).subspan(static_cast<size_t>(r * vocabulary),
                                                 static_cast<size_t>(vocabulary));
      const auto token = static_cast<size_t>(next[static_cast<size_t>(at + r)]);
      nats[static_cast<size_t>(at + r)] = LogSumExp(row) - static_cast<double>(row[token]);
    });
  }
  for (int64_t i = 0; i < count; ++i) Count(p, position + i + 1, nats[static_cast<size_t>(i)]);
}

}  // namespace

Result<Perplexity> MeasurePerplexity(infer::Engine& engine,
                                     std::span<const std::vector<int32_t>> documents,
                                     const std::function<bool(int64_t, int64_t)>& progress) {
  int64_t total = 0, done = 0;
  for (const auto& d : documents) total += static_cast<int64_t>(d.size());
  Perplexity p;
  TextState& state = engine.state();
  const int64_t width = engine.config().hidden_size;
  for (size_t i = 0; i < documents.size(); ++i) {
    const std::vector<int32_t>& tokens = documents[i];
    for (int32_t id : tokens) {
      if (id < 0 || id >= engine.weights().vocab_used) {
        return Status::Invalid(fmt::format("document {} has token {}, wanted 0 to {}", i, id,
                                           engine.weights().vocab_used - 1));
      }
    }
    MM01_ASSIGN_OR_RETURN(const int32_t slot, state.Open());
    const auto length = static_cast<int64_t>(tokens.size());
    const Status room = state.Reserve(slot, length);
    for (int64_t at = 0; room.ok() && at < length;) {
      const int64_t rows = std::min(*engine.options().prefill_rows, length - at);
      Scratch scratch(engine.queue());
      const Tensor hidden = scratch.GetRows(engine.weights().activations(), rows, width);
      Forward(
          engine.model(),
          {.ids = {tokens.begin() + at, tokens.begin() + at + rows}, .sequences = {{slot, rows}}},
          hidden);
      const int64_t predicting = std::min(rows, length - at - 1);
      ScoreRows(
          engine, hidden,
          std::span(tokens).subspan(static_cast<size_t>(at + 1), static_cast<size_t>(predicting)),
          at, p);
      at += rows;
      done += rows;
      if (progress && !progress(done, total)) {
        state.Close(slot);
        return Status::Cancelled(fmt::format("stopped after {} of {} tokens", done, total));
      }
    }
    state.Close(slot);
    MM01_RETURN_IF_ERROR(room);
    ++p.num_documents;
  }
  std::erase_if(p.buckets, [](const PositionBucket& b) { return b.num_tokens == 0; });
  return p;
}

}  // namespace mm01::eval
