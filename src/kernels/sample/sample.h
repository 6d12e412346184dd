// The next token, drawn from logits.
//
// The filters run in the order of the transformers library; each sees what the one before it left:
//
//   1. repetition penalty r   x_i = x_i / r if x_i > 0, else x_i r, once for each id in `previous`
//   2. temperature t          w_i = exp((x_i - max x) / t)
//   3. top-k                  the k largest
//   4. top-p                  the fewest of the largest whose share of the weight left reaches p
//   5. min-p                  those of at least min_p times the largest weight
//
// and then one token with a chance in proportion to w_i. Equal tokens rank by id, lower first, so
// that top-k keeps k tokens and no more. At least one token always stays. Numerics  Worked in
// double. The draw walks the kept tokens in order of id with one random number,
//           which is a function of (seed, request, position) and nothing else: the same logits give
//           the same token in any batch and on any number of threads.
// Masks     A logit of -infinity is a token that cannot be drawn. NaN, +infinity or nothing but
// masked
//           tokens means that the model before us is broken: Bug.
// Cost      O(vocabulary) a token, and 16 bytes of working memory an unmasked token; greedy without
// a
//           penalty takes none. Top-p sorts only about as many tokens as it keeps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace mm01 {

struct SamplingParams {
  double temperature = 1;         // >= 0; 0 takes the largest logit after the penalty
  int top_k = 0;                  // >= 0; 0 keeps all
  double top_p = 1;               // in (0, 1]; 1 keeps all
  double min_p = 0;               // in [0, 1]; 0 keeps all
  double repetition_penalty = 1;  // > 0; 1 is none
  uint64_t seed = 0;

  Status Validate() const;  // names the field, the value found and the range wanted
};

// The id drawn, an index into `logits`. `previous` holds the tokens that the penalty is for, in any
// order and with repeats; it is not read without a penalty. `params` has passed Validate.
int32_t Sample(std::span<const float> logits, const SamplingParams& params,
               std::span<const int32_t> previous, uint64_t request, uint64_t position);

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0;  // nats, of the model itself: no penalty, temperature or filter

  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

// The n most probable tokens, best first, equal ones by id; fewer if fewer are unmasked.
std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int n);

// log(sum exp(x_i)), added up in double in order of i. -infinity if every token is masked.
double LogSumExp(std::span<const float> logits);

}  // namespace mm01
