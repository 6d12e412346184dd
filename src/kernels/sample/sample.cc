#include "kernels/sample/sample.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace mm01 {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Candidate {
  double value;  // a logit, then its weight
  int32_t id;
};

bool Better(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

bool LowerId(const Candidate& a, const Candidate& b) {
  return a.id < b.id;
}

// Bounded, so that a difference of two values stays finite whatever the penalty is.
double Penalized(double x, double penalty) {
  return std::clamp(x > 0 ? x / penalty : x * penalty, -1e300, 1e300);
}

void CheckLogit(float x) {
  // False for NaN, too.
  Check(x <= std::numeric_limits<float>::max(), "a logit is NaN or +infinity");
}

int32_t Greedy(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    CheckLogit(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  Check(logits[best] > -kInfinity, "every token is masked");
  return static_cast<int32_t>(best);
}

// The unmasked tokens after the penalty, in order of id.
std::vector<Candidate> Unmasked(std::span<const float> logits, double penalty,
                                std::span<const int32_t> previous) {
  std::vector<bool> seen;
  if (penalty != 1) {
    seen.resize(logits.size());
    for (const int32_t id : previous) {
      Check(id >= 0 && static_cast<std::size_t>(id) < logits.size(),
            "a previous token is not in the vocabulary");
      seen[static_cast<std::size_t>(id)] = true;
    }
  }
  std::vector<Candidate> all;
  all.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    CheckLogit(logits[i]);
    if (std::isinf(logits[i])) continue;
    const double x = logits[i];
    all.push_back({!seen.empty() && seen[i] ? Penalized(x, penalty) : x, static_cast<int32_t>(i)});
  }
  Check(!all.empty(), "every token is masked");
  return all;
}

void KeepTopK(std::vector<Candidate>& tokens, std::size_t k) {
  if (k >= tokens.size()) return;
  const auto end = tokens.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(tokens.begin(), end, tokens.end(), Better);
  tokens.erase(end, tokens.end());
  std::sort(tokens.begin(), tokens.end(), LowerId);
}

double Sum(const std::vector<Candidate>& tokens) {
  double sum = 0;
  for (const Candidate& c : tokens) sum += c.value;
  return sum;
}

// Sorts the best tokens to the front, in stretches that double, until they hold enough weight.
void KeepTopP(std::vector<Candidate>& tokens, double top_p) {
  const double wanted = top_p * Sum(tokens);
  double mass = 0;
  std::size_t kept = 0;
  std::size_t sorted = 0;
  while (kept < tokens.size() && mass < wanted) {
    if (kept == sorted) {
      const std::size_t next = std::min(tokens.size(), std::max<std::size_t>(64, 2 * sorted));
      const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(sorted);
      const auto end = tokens.begin() + static_cast<std::ptrdiff_t>(next);
      if (end != tokens.end()) std::nth_element(begin, end, tokens.end(), Better);
      std::sort(begin, end, Better);
      sorted = next;
    }
    mass += tokens[kept++].value;
  }
  tokens.resize(std::max<std::size_t>(kept, 1));
  std::sort(tokens.begin(), tokens.end(), LowerId);
}

int32_t Draw(const std::vector<Candidate>& tokens, double uniform) {
  const double target = uniform * Sum(tokens);
  double mass = 0;
  int32_t last = tokens.front().id;
  for (const Candidate& c : tokens) {
    if (c.value == 0)
      continue;  // too small for a double: target may be 0 too, and must not find it
    mass += c.value;
    last = c.id;
    if (mass > target) break;
  }
  return last;
}

}  // namespace

Status SamplingParams::Validate() const {
  // Written so that NaN fails.
  if (!(temperature >= 0 && temperature < kInfinity)) {
    return Status::Invalid(
        fmt::format("temperature is {}, wanted a number of 0 or more", temperature));
  }
  if (top_k < 0) {
    return Status::Invalid(fmt::format("top_k is {}, wanted 0 (keep all) or more", top_k));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    return Status::Invalid(fmt::format("top_p is {}, wanted more than 0 and at most 1", top_p));
  }
  if (!(min_p >= 0 && min_p <= 1)) {
    return Status::Invalid(fmt::format("min_p is {}, wanted 0 to 1", min_p));
  }
  if (!(repetition_penalty > 0 && repetition_penalty < kInfinity)) {
    return Status::Invalid(
        fmt::format("repetition_penalty is {}, wanted a number above 0", repetition_penalty));
  }
  return Status::Ok();
}

int32_t Sample(std::span<const float> logits, const SamplingParams& params,
               std::span<const int32_t> previous, uint64_t request, uint64_t position) {
  Check(!logits.empty(), "no logits to sample from");
  const bool greedy = params.temperature == 0;
  if (greedy && params.repetition_penalty == 1) return Greedy(logits);

  std::vector<Candidate> tokens = Unmasked(logits, params.repetition_penalty, previous);
  // In order of id, so the first of the best is the one with the lowest id.
  const Candidate best = *std::min_element(tokens.begin(), tokens.end(), Better);
  if (greedy) return best.id;

  if (params.top_k > 0) KeepTopK(tokens, static_cast<std::size_t>(params.top_k));
  // The difference first: a logit over a tiny temperature may not fit a double.
  for (Candidate& c : tokens) c.value = std::exp((c.value - best.value) / params.temperature);
  if (params.top_p < 1) KeepTopP(tokens, params.top_p);
  if (params.min_p > 0) {
    // The largest weight is exp(0).
    std::erase_if(tokens, [&](const Candidate& c) { return c.value < params.min_p; });
  }
  return Draw(tokens, RandomUniform(params.seed, request, position));
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int n) {
  Check(n >= 0, "TopLogprobs of a negative number of tokens");
  const double log_sum = LogSumExp(logits);
  std::vector<Candidate> tokens;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isinf(logits[i])) tokens.push_back({logits[i], static_cast<int32_t>(i)});
  }
  const std::size_t count = std::min(static_cast<std::size_t>(n), tokens.size());
  std::partial_sort(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count),
                    tokens.end(), Better);
  std::vector<TokenLogprob> top(count);
  for (std::size_t i = 0; i < count; ++i) top[i] = {tokens[i].id, tokens[i].value - log_sum};
  return top;
}

double LogSumExp(std::span<const float> logits) {
  double max = -kInfinity;
  for (const float x : logits) {
    CheckLogit(x);
    max = std::max(max, static_cast<double>(x));
  }
  if (max == -kInfinity) return max;
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
  return max + std::log(sum);
}

}  // namespace mm01
