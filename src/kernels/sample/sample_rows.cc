#include "kernels/sample/sample_rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "kernels/sample/digest.h"

namespace mm01 {
namespace {

constexpr int64_t kMost = 1024;             // tokens of a row that come back
constexpr int64_t kMostPrevious = 1 << 12;  // tokens that a penalty is for, as far as counted here
// Sums of up to 2^20 numbers in double, in two orders and of exp to one unit in the last place,
// differ by less than 2^20 2^-51 of the sum.
constexpr double kSumError = 1e-9;

// How many of the largest logits decide the draw, alone or with the sums; 0 if none do.
int64_t TokensThatDecide(const RowDraw& draw) {
  const SamplingParams& p = draw.params;
  if (!draw.is_wanted || p.repetition_penalty < 1) return 0;
  auto lowered = std::ssize(draw.changes);
  for (const auto& [id, change] : draw.changes) {
    if (change > 0) return 0;
  }
  if (p.repetition_penalty != 1) {
    if (std::ssize(draw.previous) > kMostPrevious) return 0;
    std::vector<int32_t> ids(draw.previous.begin(), draw.previous.end());
    std::ranges::sort(ids);
    lowered += std::unique(ids.begin(), ids.end()) - ids.begin();
  }
  const int64_t k = p.temperature == 0 ? 1 : p.top_k;
  if (k > 0) return k + lowered <= kMost ? k + lowered : 0;
  return lowered == 0 ? kMost : 0;
}

bool NeedsSums(const RowDraw& draw) {
  return draw.params.temperature > 0 && draw.params.top_k == 0;
}

// From the tokens of the digest alone.
int32_t SampleOfFew(const RowDraw& draw, Digest& few) {
  const auto place = [&](int32_t id) {
    const auto at = std::ranges::lower_bound(few.id, id);
    return at != few.id.end() && *at == id ? at - few.id.begin() : -1;
  };
  for (const auto& [id, change] : draw.changes) {
    if (const auto at = place(id); at >= 0) few.value[static_cast<size_t>(at)] += change;
  }
  std::vector<int32_t> previous;
  if (draw.params.repetition_penalty != 1) {
    for (const int32_t id : draw.previous) {
      if (const auto at = place(id); at >= 0) previous.push_back(static_cast<int32_t>(at));
    }
  }
  const int32_t at = Sample(few.value, draw.params, previous, draw.request, draw.position);
  return few.id[static_cast<size_t>(at)];
}

struct Weighted {
  double weight;
  int32_t id;
};

// Those that top-p and min-p keep, in order of id; empty where that is not certain.
std::vector<Weighted> Kept(const SamplingParams& p, const Digest& few, double total) {
  const double largest = *std::ranges::max_element(few.value);
  std::vector<Weighted> tokens;
  for (size_t i = 0; i < few.id.size(); ++i) {
    const double x = few.value[i];
    tokens.push_back({std::exp((x - largest) / p.temperature), few.id[i]});
  }
  std::ranges::stable_sort(tokens, std::ranges::greater(), &Weighted::weight);
  // What did not come back weighs at most as much as the last that did.
  const double rest = tokens.back().weight * (1 + kSumError);
  if (p.top_p < 1) {
    const double wanted = p.top_p * total, error = kSumError * total;
    double mass = 0;
    size_t kept = 0;
    while (kept < tokens.size() && mass < wanted - error) mass += tokens[kept++].weight;
    if (mass <= wanted + error || tokens[kept - 1].weight <= rest) return {};
    tokens.resize(kept);
  } else if (rest >= p.min_p) {
    return {};
  }
  std::erase_if(tokens, [&](const Weighted& t) { return t.weight < p.min_p; });
  std::ranges::sort(tokens, {}, &Weighted::id);
  return tokens;
}

// The token whose weights, added up in order of id from `mass` on, pass `target`; -1 where one lies
// within `error` of it, or none passes.
int32_t Pass(double mass, double target, double error, std::span<const Weighted> tokens) {
  for (const Weighted& t : tokens) {
    if (t.weight == 0) continue;
    const bool is_after = target - mass > (mass == 0 ? 0 : error);
    mass += t.weight;
    if (mass <= target - error) continue;
    return is_after && mass - target > error ? t.id : -1;
  }
  return -1;
}

// By the sums: at most one chunk of the row itself is fetched.
int32_t SampleBySums(Queue& queue, const RowDraw& draw, const Digest& few, const float* row,
                     int64_t vocabulary) {
  const SamplingParams& p = draw.params;
  const double total = std::accumulate(few.weight.begin(), few.weight.end(), 0.0);
  const double uniform = RandomUniform(p.seed, draw.request, draw.position);
  if (p.top_p < 1 || p.min_p > 0) {
    const std::vector<Weighted> kept = Kept(p, few, total);
    double sum = 0;
    for (const Weighted& t : kept) sum += t.weight;
    return Pass(0, uniform * sum, 0, kept);
  }
  const double target = uniform * total, error = kSumError * total;
  double mass = 0;
  size_t chunk = 0;
  while (chunk + 1 < few.weight.size() && mass + few.weight[chunk] <= target) {
    mass += few.weight[chunk++];
  }
  const int64_t first = static_cast<int64_t>(chunk) * kDigestChunk;
  std::vector<float> x(static_cast<size_t>(std::min(kDigestChunk, vocabulary - first)));
  queue.CopyToHost(x.data(), row + first, std::ssize(x) * SizeOf(DType::kF32));
  const double largest = *std::ranges::max_element(few.value);
  std::vector<Weighted> tokens;
  for (size_t i = 0; i < x.size(); ++i) {
    tokens.push_back({std::exp((static_cast<double>(x[i]) - largest) / p.temperature),
                      static_cast<int32_t>(first + static_cast<int64_t>(i))});
  }
  return Pass(mass, target, error, tokens);
}

}  // namespace

void SampleRows(Queue& queue, const Tensor& logits, std::span<const RowDraw> draws,
                std::span<int32_t> token) {
  const auto x = logits.As<const float, 2>();
  Check(std::ssize(draws) == x.dim(0) && token.size() == draws.size(),
        "SampleRows: shapes disagree");
  std::vector<int64_t> needs;
  std::vector<double> temperature;
  for (const RowDraw& draw : draws) {
    needs.push_back(TokensThatDecide(draw));
    temperature.push_back(needs.back() > 0 && NeedsSums(draw) ? draw.params.temperature : 0);
  }
  const int64_t most = needs.empty() ? 0 : std::ranges::max(needs);
  std::ranges::fill(token, -1);
  if (most == 0) return;
  std::vector<Digest> digests =
      DigestRows(queue, {.logits = logits, .most = most, .temperature = temperature});
  for (size_t r = 0; r < draws.size(); ++r) {
    Digest& few = digests[r];
    if (needs[r] == 0 || !few.sound) continue;
    if (most == 1) {
      token[r] = few.id.front();
    } else if (!NeedsSums(draws[r]) || std::ssize(few.id) < most) {
      token[r] = SampleOfFew(draws[r], few);
    } else {
      token[r] = SampleBySums(queue, draws[r], few, x.data + static_cast<int64_t>(r) * x.stride[0],
                              x.dim(1));
    }
  }
}

}  // namespace mm01
