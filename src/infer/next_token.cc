#include "infer/next_token.h"

#include <algorithm>
#include <map>

#include "kernels/sample/sample_rows.h"

namespace mm01::infer {
namespace {

constexpr int64_t kHeadRows = 64;  // whose logits are in memory at a time

using Changes = std::vector<std::pair<int32_t, float>>;  // what is added to a token's logit

// By bias and penalties, in this order.
Changes ChangesOf(const Request& request, std::span<const int32_t> tokens) {
  Changes changes = request.logit_bias;
  if (request.presence_penalty == 0 && request.frequency_penalty == 0) return changes;
  std::map<int32_t, int> count;
  for (const int32_t token : tokens.subspan(request.prompt.size())) ++count[token];
  for (const auto& [token, times] : count) {
    changes.emplace_back(
        token, -static_cast<float>(request.presence_penalty + request.frequency_penalty * times));
  }
  return changes;
}

}  // namespace

TokenInfo Describe(std::span<const float> logits, int32_t token, int top) {
  TokenInfo info;
  info.token = token;
  if (top < 0) return info;
  info.logprob = static_cast<double>(logits[static_cast<size_t>(token)]) - LogSumExp(logits);
  if (top > 0) info.top = TopLogprobs(logits, top);
  return info;
}

std::vector<TokenInfo> DescribeTokens(Engine& engine, const Tensor& hidden,
                                      std::span<const int32_t> tokens, int top) {
  const int64_t rows = hidden.dim(0), vocabulary = engine.config().vocab_size;
  std::vector<TokenInfo> infos(tokens.size());
  for (int64_t at = 0; at < rows; at += kHeadRows) {
    const int64_t n = std::min(kHeadRows, rows - at);
    std::vector<float> logits(static_cast<size_t>(n * vocabulary));
    LogitsToHost(engine.model(), hidden.Rows(at, at + n), logits);
    engine.queue().pool().ParallelFor(n, [&](int64_t i, int) {
      const auto row = std::span(logits).subspan(static_cast<size_t>(i * vocabulary),
                                                 static_cast<size_t>(vocabulary));
      const auto place = static_cast<size_t>(at + i);
      infos[place] = Describe(row, tokens[place], std::max(0, top));
    });
  }
  return infos;
}

TokenInfo DrawNextToken(const Request& request, std::span<const int32_t> tokens,
                        std::span<float> logits) {
  std::vector<float> raw;  // what the model said, where somebody asks
  if (request.top_logprobs >= 0) raw.assign(logits.begin(), logits.end());
  for (const auto& [token, change] : ChangesOf(request, tokens)) {
    logits[static_cast<size_t>(token)] += change;
  }
  if (request.filter) request.filter->Mask(logits);
  const int32_t token = Sample(logits, request.generate.sampling, tokens, request.choice,
                               static_cast<uint64_t>(tokens.size()));
  return Describe(raw, token, request.top_logprobs);
}

void DrawFromRows(Queue& queue, const Tensor& logits, std::span<Draw> draws, bool on_device) {
  const auto vocabulary = static_cast<size_t>(logits.dim(1));
  std::vector<int32_t> drawn(draws.size(), -1);
  if (on_device) {
    std::vector<Changes> changes(draws.size());
    std::vector<RowDraw> rows;
    for (size_t i = 0; i < draws.size(); ++i) {
      const Request& r = draws[i].request;
      const bool is_wanted = !r.filter && r.top_logprobs < 0 && r.generate.max_tokens > 0;
      if (is_wanted) changes[i] = ChangesOf(r, draws[i].tokens);
      rows.push_back({.is_wanted = is_wanted,
                      .params = r.generate.sampling,
                      .previous = draws[i].tokens,
                      .changes = changes[i],
                      .request = r.choice,
                      .position = static_cast<uint64_t>(draws[i].tokens.size())});
    }
    SampleRows(queue, logits, rows, drawn);
  }
  // The rows of the others, in the CPU's memory.
  const bool on_cpu = queue.device() == Device::kCpu;
  std::vector<std::vector<float>> copies(draws.size());
  std::vector<std::span<float>> row(draws.size());
  for (size_t i = 0; i < draws.size(); ++i) {
    if (drawn[i] >= 0) {
      draws[i].info.token = drawn[i];
    } else if (draws[i].request.generate.max_tokens > 0) {
      row[i] = std::span(static_cast<float*>(logits.data) + i * vocabulary, vocabulary);
      if (on_cpu) continue;
      copies[i].resize(vocabulary);
      queue.CopyToHost(copies[i].data(), row[i].data(), std::ssize(row[i]) * SizeOf(DType::kF32));
      row[i] = copies[i];
    }
  }
  const auto draw = [&](size_t i) {
    Draw& d = draws[i];
    if (row[i].empty()) return;
    try {
      d.info = DrawNextToken(d.request, d.tokens, row[i]);
    } catch (...) {
      d.error = std::current_exception();
    }
  };
  // Filters belong to this thread.
  queue.pool().ParallelFor(std::ssize(draws), [&](int64_t i, int) {
    if (!draws[static_cast<size_t>(i)].request.filter) draw(static_cast<size_t>(i));
  });
  for (size_t i = 0; i < draws.size(); ++i) {
    if (draws[i].request.filter) draw(i);
  }
}

void DrawNextTokens(Engine& engine, const Tensor& hidden, std::span<Draw> draws) {
  Queue& queue = engine.queue();
  Scratch scratch(queue);
  const Tensor logits = scratch.GetRows(DType::kF32, std::ssize(draws), engine.config().vocab_size);
  Logits(engine.model(), hidden, logits);
  DrawFromRows(queue, logits, draws, queue.device() != Device::kCpu);
}

}  // namespace mm01::infer
