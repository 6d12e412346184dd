#include "kernels/moe/moe_backward.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace mm01 {
namespace {

constexpr int64_t kRowsPerPiece = 64;

// The softmax of a row of n logits.
void Softmax(const float* logits, int64_t n, double* out) {
  const auto top = static_cast<double>(*std::max_element(logits, logits + n));
  double sum = 0.0;
  for (int64_t e = 0; e < n; ++e) sum += out[e] = std::exp(static_cast<double>(logits[e]) - top);
  for (int64_t e = 0; e < n; ++e) out[e] /= sum;
}

}  // namespace

TrainDispatch MakeTrainDispatch(const Tensor& experts_tensor, const Tensor& weights_tensor,
                                int64_t num_experts, int64_t capacity) {
  const auto experts = experts_tensor.As<const int32_t, 2>();
  const auto weights = weights_tensor.As<const float, 2>();
  const int64_t tokens = experts.dim(0), k = experts.dim(1);
  TrainDispatch d{.k = k};
  d.counts.assign(static_cast<size_t>(num_experts), 0);
  std::vector<int64_t> choice(static_cast<size_t>(k));
  for (int64_t t = 0; t < tokens; ++t) {
    std::iota(choice.begin(), choice.end(), 0);
    std::ranges::sort(choice, {}, [&](int64_t i) { return experts(t, i); });
    for (const int64_t i : choice) {
      d.expert.push_back(experts(t, i));
      d.share.push_back(weights(t, i));
      int64_t& count = d.counts[static_cast<size_t>(experts(t, i))];
      const bool kept = capacity == 0 || count < capacity;
      d.row.push_back(kept ? count : -1);  // within the expert, for now
      d.dropped += !kept;
      ++count;
    }
  }
  d.offset.push_back(0);
  for (const int64_t count : d.counts) {
    d.offset.push_back(d.offset.back() + (capacity == 0 ? count : std::min(count, capacity)));
  }
  d.token.resize(static_cast<size_t>(d.offset.back()));
  d.weight.resize(d.token.size());
  for (size_t i = 0; i < d.row.size(); ++i) {
    if (d.row[i] < 0) continue;
    d.row[i] += d.offset[static_cast<size_t>(d.expert[i])];
    d.token[static_cast<size_t>(d.row[i])] = static_cast<int64_t>(i) / k;
    d.weight[static_cast<size_t>(d.row[i])] = d.share[i];
  }
  return d;
}

void CombineRows(Queue& queue, const TrainDispatch& d, const Tensor& rows_tensor, bool weighted,
                 const Tensor& y_tensor) {
  const auto rows = rows_tensor.As<const float, 2>();
  const auto y = y_tensor.As<float, 2>();
  Check(
      rows.dim(0) == d.num_rows() && y.dim(0) * d.k == std::ssize(d.row) && rows.dim(1) == y.dim(1),
      "CombineRows: shapes disagree");
  queue.pool().ParallelFor(y.dim(0), [&](int64_t t, int) {
    float* out = &y(t, 0);
    bool first = true;
    for (int64_t i = t * d.k; i < (t + 1) * d.k; ++i) {
      const int64_t r = d.row[static_cast<size_t>(i)];
      if (r < 0) continue;
      const float* row = &rows(r, 0);
      const float weight = weighted ? d.share[static_cast<size_t>(i)] : 1.0f;
      if (first) {
        for (int64_t j = 0; j < y.dim(1); ++j) out[j] = weight * row[j];
      } else {
        for (int64_t j = 0; j < y.dim(1); ++j) out[j] += weight * row[j];
      }
      first = false;
    }
    if (first) std::fill(out, out + y.dim(1), 0.0f);
  });
}

void RouteBackward(Queue& queue, const TrainDispatch& d, const Tensor& d_weight_tensor,
                   const Tensor& d_logits_tensor) {
  const auto d_weight = d_weight_tensor.As<const float, 1>();
  const auto d_logits = d_logits_tensor.As<float, 2>();
  Check(d_weight.dim(0) == d.num_rows() && d_logits.dim(0) * d.k == std::ssize(d.row) &&
            d_logits.dim(1) == std::ssize(d.counts),
        "RouteBackward: shapes disagree");
  queue.pool().ParallelFor(d_logits.dim(0), [&](int64_t t, int) {
    std::fill_n(&d_logits(t, 0), d_logits.dim(1), 0.0f);
    const auto gradient = [&](int64_t i) {
      const int64_t r = d.row[static_cast<size_t>(i)];
      return r < 0 ? 0.0 : static_cast<double>(d_weight(r));
    };
    double mean = 0.0;
    for (int64_t i = t * d.k; i < (t + 1) * d.k; ++i) {
      mean += static_cast<double>(d.share[static_cast<size_t>(i)]) * gradient(i);
    }
    for (int64_t i = t * d.k; i < (t + 1) * d.k; ++i) {
      const auto at = static_cast<size_t>(i);
      d_logits(t, d.expert[at]) =
          static_cast<float>(static_cast<double>(d.share[at]) * (gradient(i) - mean));
    }
  });
}

void Balance::AddLayer(Queue& queue, const Tensor& logits_tensor, const TrainDispatch& dispatch) {
  const auto logits = logits_tensor.As<const float, 2>();
  const auto experts = static_cast<size_t>(num_experts_);
  tokens_ = logits.dim(0);
  Check(logits.dim(1) == num_experts_ && dispatch.counts.size() == experts && tokens_ > 0,
        "Balance: logits are not [T, E]");
  const int64_t pieces = (tokens_ + kRowsPerPiece - 1) / kRowsPerPiece;
  std::vector<std::vector<double>> sums(static_cast<size_t>(pieces));
  queue.pool().ParallelFor(pieces, [&](int64_t piece, int) {
    std::vector<double> sum(experts), p(experts);
    const int64_t end = std::min(tokens_, (piece + 1) * kRowsPerPiece);
    for (int64_t t = piece * kRowsPerPiece; t < end; ++t) {
      Softmax(&logits(t, 0), num_experts_, p.data());
      for (size_t e = 0; e < experts; ++e) sum[e] += p[e];
    }
    sums[static_cast<size_t>(piece)] = sum;
  });
  std::vector<double> share, mean(experts);
  for (const int64_t count : dispatch.counts) {
    share.push_back(static_cast<double>(count) / static_cast<double>(tokens_));
  }
  for (const auto& sum : sums) {
    for (size_t e = 0; e < experts; ++e) mean[e] += sum[e] / static_cast<double>(tokens_);
  }
  share_.push_back(share);
  mean_.push_back(mean);
}

std::vector<double> Balance::Weights(int64_t layer) const {
  const auto experts = static_cast<double>(num_experts_), tokens = static_cast<double>(tokens_);
  const auto layers = static_cast<double>(share_.size());
  std::vector<double> weights;
  for (size_t e = 0; e < static_cast<size_t>(num_experts_); ++e) {
    if (form_ == AuxiliaryForm::kPaper) {
      weights.push_back(share_[static_cast<size_t>(layer)][e] / experts / tokens);
    } else {
      double sum = 0.0;
      for (const auto& share : share_) sum += share[e];
      weights.push_back(experts * (sum / layers) / layers / tokens);
    }
  }
  return weights;
}

double Balance::Loss() const {
  double loss = 0.0;
  for (size_t l = 0; l < mean_.size(); ++l) {
    const std::vector<double> weights = Weights(static_cast<int64_t>(l));
    for (size_t e = 0; e < weights.size(); ++e) {
      loss += weights[e] * mean_[l][e] * static_cast<double>(tokens_);
    }
  }
  return loss;
}

void BalanceBackward(Queue& queue, const Tensor& logits_tensor, const std::vector<double>& weight,
                     double scale, const Tensor& d_logits_tensor) {
  const auto logits = logits_tensor.As<const float, 2>();
  const auto d_logits = d_logits_tensor.As<float, 2>();
  Check(logits.shape == d_logits.shape && logits.dim(1) == std::ssize(weight),
        "BalanceBackward: shapes disagree");
  queue.pool().ParallelFor(logits.dim(0), [&](int64_t t, int) {
    std::vector<double> p(weight.size());
    Softmax(&logits(t, 0), logits.dim(1), p.data());
    double mean = 0.0;
    for (size_t e = 0; e < p.size(); ++e) mean += p[e] * weight[e];
    for (size_t e = 0; e < p.size(); ++e) {
      float& d = d_logits(t, static_cast<int64_t>(e));
      d = static_cast<float>(static_cast<double>(d) + scale * p[e] * (weight[e] - mean));
    }
  });
}

}  // namespace mm01
