#include "kernels/moe/moe_backward.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "kernels/gemm/gemm_backward.h"
#ifdef MM01_CUDA
#include "kernels/moe/moe_backward_cuda.h"
#endif

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

// The mean over the rows, which are added in pieces.
std::vector<double> MeanSoftmax(Queue& queue, const View<const float, 2>& logits) {
  const int64_t tokens = logits.dim(0), pieces = (tokens + kRowsPerPiece - 1) / kRowsPerPiece;
  const auto experts = static_cast<size_t>(logits.dim(1));
  std::vector<std::vector<double>> sums(static_cast<size_t>(pieces));
  queue.pool().ParallelFor(pieces, [&](int64_t piece, int) {
    std::vector<double> sum(experts), p(experts);
    const int64_t end = std::min(tokens, (piece + 1) * kRowsPerPiece);
    for (int64_t t = piece * kRowsPerPiece; t < end; ++t) {
      Softmax(&logits(t, 0), logits.dim(1), p.data());
      for (size_t e = 0; e < experts; ++e) sum[e] += p[e];
    }
    sums[static_cast<size_t>(piece)] = sum;
  });
  std::vector<double> mean(experts);
  for (const auto& sum : sums) {
    for (size_t e = 0; e < experts; ++e) mean[e] += sum[e] / static_cast<double>(tokens);
  }
  return mean;
}

// The choices of a token by ascending expert.
void SortChoices(int32_t* expert, float* share, int64_t k) {
  for (int64_t i = 1; i < k; ++i) {
    for (int64_t j = i; j > 0 && expert[j] < expert[j - 1]; --j) {
      std::swap(expert[j], expert[j - 1]);
      std::swap(share[j], share[j - 1]);
    }
  }
}

void CheckDispatch(const TrainDispatchArgs& a) {
  const DispatchRoom& r = a.room;
  const int64_t tokens = a.logits.dim(0), k = r.expert.dim(1);
  Check(r.expert.dim(0) == tokens && r.share.shape == r.expert.shape &&
            r.row.shape == r.expert.shape && r.token.size() == tokens * k &&
            r.weight.size() == tokens * k && 0 < k && k <= a.logits.dim(1),
        "MakeTrainDispatch: shapes disagree");
}

}  // namespace

TrainDispatch MakeTrainDispatch(Queue& queue, const TrainDispatchArgs& a) {
  CheckDispatch(a);
  MM01_ON_CUDA(queue, MakeTrainDispatch(queue, a));
  const auto expert = a.room.expert.As<int32_t, 2>(), row = a.room.row.As<int32_t, 2>();
  const auto share = a.room.share.As<float, 2>();
  const auto token = a.room.token.As<int32_t, 1>();
  const auto weight = a.room.weight.As<float, 1>();
  const int64_t tokens = expert.dim(0), k = expert.dim(1);
  Route(queue, {.logits = a.logits, .experts = a.room.expert, .weights = a.room.share});
  TrainDispatch d;
  static_cast<DispatchRoom&>(d) = a.room;
  d.probability = MeanSoftmax(queue, a.logits.As<const float, 2>());
  d.counts.assign(static_cast<size_t>(a.logits.dim(1)), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    SortChoices(&expert(t, 0), &share(t, 0), k);
    for (int64_t i = 0; i < k; ++i) {
      int64_t& count = d.counts[static_cast<size_t>(expert(t, i))];
      const bool kept = a.capacity == 0 || count < a.capacity;
      row(t, i) = kept ? static_cast<int32_t>(count) : -1;  // within the expert, for now
      d.dropped += !kept;
      ++count;
    }
  }
  d.offset.push_back(0);
  for (const int64_t count : d.counts) {
    d.offset.push_back(d.offset.back() + (a.capacity == 0 ? count : std::min(count, a.capacity)));
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      if (row(t, i) < 0) continue;
      row(t, i) += static_cast<int32_t>(d.offset[static_cast<size_t>(expert(t, i))]);
      token(row(t, i)) = static_cast<int32_t>(t);
      weight(row(t, i)) = share(t, i);
    }
  }
  return d;
}

void GatherRows(Queue& queue, const TrainDispatch& d, const Tensor& x_tensor, bool weighted,
                const Tensor& out_tensor) {
  Check(out_tensor.dim(0) == d.num_rows() && out_tensor.dim(1) == x_tensor.dim(1) &&
            x_tensor.dim(0) == d.row.dim(0),
        "GatherRows: shapes disagree");
  MM01_ON_CUDA(queue, GatherRows(queue, d, x_tensor, weighted, out_tensor));
  const auto x = x_tensor.As<const float, 2>();
  const auto out = out_tensor.As<float, 2>();
  const auto token = d.token.As<const int32_t, 1>();
  const auto weight = d.weight.As<const float, 1>();
  queue.pool().ParallelFor(out.dim(0), [&](int64_t r, int) {
    const float* from = &x(token(r), 0);
    const float by = weighted ? weight(r) : 1.0f;
    std::transform(from, from + x.dim(1), &out(r, 0), [&](float v) { return by * v; });
  });
}

void CombineRows(Queue& queue, const TrainDispatch& d, const Tensor& rows_tensor, bool weighted,
                 const Tensor& y_tensor) {
  Check(rows_tensor.dim(0) == d.num_rows() && y_tensor.dim(0) == d.row.dim(0) &&
            rows_tensor.dim(1) == y_tensor.dim(1),
        "CombineRows: shapes disagree");
  MM01_ON_CUDA(queue, CombineRows(queue, d, rows_tensor, weighted, y_tensor));
  const auto rows = rows_tensor.As<const float, 2>();
  const auto y = y_tensor.As<float, 2>();
  const auto row_of = d.row.As<const int32_t, 2>();
  const auto share = d.share.As<const float, 2>();
  queue.pool().ParallelFor(y.dim(0), [&](int64_t t, int) {
    float* out = &y(t, 0);
    bool first = true;
    for (int64_t i = 0; i < row_of.dim(1); ++i) {
      if (row_of(t, i) < 0) continue;
      const float* row = &rows(row_of(t, i), 0);
      const float weight = weighted ? share(t, i) : 1.0f;
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

void CombineAddNorm(Queue& queue, const TrainDispatch& d, const Tensor& rows,
                    const AddNormArgs& norm) {
  Check(
      rows.dim(0) == d.num_rows() && norm.x.dim(0) == d.row.dim(0) && rows.dim(1) == norm.x.dim(1),
      "CombineAddNorm: shapes disagree");
  MM01_ON_CUDA(queue, CombineAddNorm(queue, d, rows, norm));
  CombineRows(queue, d, rows, true, norm.branch);
  AddNorm(queue, norm);
}

void CombineGradients(Queue& queue, const TrainDispatch& d, const CombineGradientsArgs& a) {
  Check(a.rows.dim(0) == d.num_rows() && a.d_x.dim(0) == d.row.dim(0) &&
            a.rows.dim(1) == a.d_x.dim(1) && a.d_logits.dim(0) == a.d_x.dim(0) &&
            a.router.dim(0) == a.d_logits.dim(1) && a.router.dim(1) == a.d_x.dim(1),
        "CombineGradients: shapes disagree");
  MM01_ON_CUDA(queue, CombineGradients(queue, d, a));
  CombineRows(queue, d, a.rows, false, a.d_x);
  MatMul(queue, {.a = a.d_logits, .b = a.router, .c = a.d_x, .add = true});
}

void RouteBackward(Queue& queue, const TrainDispatch& d, const Tensor& weighted_gradient,
                   const Tensor& d_logits_tensor) {
  const auto weighted = weighted_gradient.As<const float, 1>();
  const auto d_logits = d_logits_tensor.As<float, 2>();
  Check(weighted.dim(0) == d.num_rows() && d_logits.dim(0) == d.row.dim(0) &&
            d_logits.dim(1) == std::ssize(d.counts),
        "RouteBackward: shapes disagree");
  MM01_ON_CUDA(queue, RouteBackward(queue, d, weighted_gradient, d_logits_tensor));
  const auto expert = d.expert.As<const int32_t, 2>(), row = d.row.As<const int32_t, 2>();
  const auto share = d.share.As<const float, 2>();
  queue.pool().ParallelFor(d_logits.dim(0), [&](int64_t t, int) {
    std::fill_n(&d_logits(t, 0), d_logits.dim(1), 0.0f);
    const auto gradient = [&](int64_t i) {
      return row(t, i) < 0 ? 0.0 : static_cast<double>(weighted(row(t, i)));
    };
    double sum = 0.0;
    for (int64_t i = 0; i < row.dim(1); ++i) sum += gradient(i);
    for (int64_t i = 0; i < row.dim(1); ++i) {
      d_logits(t, expert(t, i)) =
          static_cast<float>(gradient(i) - static_cast<double>(share(t, i)) * sum);
    }
  });
}

void Balance::AddLayer(const TrainDispatch& d) {
  tokens_ = d.row.dim(0);
  Check(std::ssize(d.counts) == num_experts_ && tokens_ > 0, "Balance: the experts disagree");
  std::vector<double> share;
  for (const int64_t count : d.counts) {
    share.push_back(static_cast<double>(count) / static_cast<double>(tokens_));
  }
  share_.push_back(share);
  mean_.push_back(d.probability);
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
  MM01_ON_CUDA(queue, BalanceBackward(queue, logits_tensor, weight, scale, d_logits_tensor));
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
