// The next token of a request, from the logits of the model.
//
// In this order: log-probabilities of the model itself, logit_bias, presence and frequency
// penalties over the tokens written, the request's filter, and then Sample (kernels/sample), whose
// repetition penalty is over prompt and text. The draw is a function of (seed, choice, position)
// and the logits, so it does not depend on who else is served.
#pragma once

#include <cstdint>
#include <exception>
#include <span>
#include <vector>

#include "infer/service.h"

namespace mm01::infer {

// What may be said about `token`, drawn from or found at `logits` [V]: its log-probability and the
// `top` most probable, or nothing for top < 0.
TokenInfo Describe(std::span<const float> logits, int32_t token, int top);

// The same of given tokens, one for each row of `hidden` [R, hidden_size]; `top` below 0 counts as
// 0.
std::vector<TokenInfo> DescribeTokens(Engine& engine, const Tensor& hidden,
                                      std::span<const int32_t> tokens, int top);

// `tokens` is the prompt and what has been written. Changes `logits`. The filter is asked, but not
// told what was drawn. May run for several requests at once; one without a filter on any thread.
TokenInfo DrawNextToken(const Request& request, std::span<const int32_t> tokens,
                        std::span<float> logits);

// A draw of a step, and what came of it.
struct Draw {
  const Request& request;
  std::span<const int32_t> tokens;
  TokenInfo info = {};
  std::exception_ptr error = nullptr;  // of this request alone, a filter's for example
};

// The next token of each row of `logits` [R, V], on the queue's device; none where max_tokens is 0.
// `on_device`: by SampleRows where that can, so that few rows come to the CPU's memory. The tokens
// are the same. Changes the logits where they lie in the CPU's memory.
void DrawFromRows(Queue& queue, const Tensor& logits, std::span<Draw> draws, bool on_device);

// The same of each row of `hidden` [R, hidden_size] for the draw at its place; none where
// max_tokens is 0. On the engine's thread.
void DrawNextTokens(Engine& engine, const Tensor& hidden, std::span<Draw> draws);

}  // namespace mm01::infer
