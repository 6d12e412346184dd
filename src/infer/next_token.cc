#include "infer/next_token.h"

#include <algorithm>
#include <map>

namespace mm01::infer {
namespace {

constexpr int64_t kHeadRows = 64;  // whose logits are in memory at a time

void Penalize(const Request& request, std::span<const int32_t> written, std::span<float> logits) {
  if (request.presence_penalty == 0 && request.frequency_penalty == 0) return;
  std::map<int32_t, int> count;
  for (const int32_t token : written) ++count[token];
  for (const auto& [token, times] : count) {
    logits[static_cast<size_t>(token)] -=
        static_cast<float>(request.presence_penalty + request.frequency_penalty * times);
  }
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
  for (const auto& [token, bias] : request.logit_bias) logits[static_cast<size_t>(token)] += bias;
  Penalize(request, tokens.subspan(request.prompt.size()), logits);
  if (request.filter) request.filter->Mask(logits);
  const int32_t token = Sample(logits, request.generate.sampling, tokens, request.choice,
                               static_cast<uint64_t>(tokens.size()));
  return Describe(raw, token, request.top_logprobs);
}

void DrawNextTokens(Engine& engine, const Tensor& hidden, std::span<Draw> draws) {
  const auto vocabulary = static_cast<size_t>(engine.config().vocab_size);
  std::vector<float> logits(draws.size() * vocabulary);
  LogitsToHost(engine.model(), hidden, logits);
  const auto draw = [&](size_t i) {
    Draw& d = draws[i];
    if (d.request.generate.max_tokens == 0) return;
    try {
      const auto row = std::span(logits).subspan(i * vocabulary, vocabulary);
      d.info = DrawNextToken(d.request, d.tokens, row);
    } catch (...) {
      d.error = std::current_exception();
    }
  };
  // Filters belong to this thread.
  engine.queue().pool().ParallelFor(std::ssize(draws), [&](int64_t i, int) {
    if (!draws[static_cast<size_t>(i)].request.filter) draw(static_cast<size_t>(i));
  });
  for (size_t i = 0; i < draws.size(); ++i) {
    if (draws[i].request.filter) draw(i);
  }
}

}  // namespace mm01::infer
