#include "infer/next_token.h"

#include <map>

namespace mm01::infer {
namespace {

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

}  // namespace mm01::infer
