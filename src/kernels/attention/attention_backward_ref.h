// The formulas of attention_backward.h, in double. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mm01 {

struct AttentionPassReference {
  using Doubles = std::vector<double>;

  int64_t heads, kv_heads, dim;
  Doubles q, k, v;  // [T, H, K], [T, G, K]
  std::vector<int64_t> cu_seqlens;

  Doubles out, lse;    // of Pass
  Doubles dq, dk, dv;  // of Backward, after Pass

  void Pass() {
    out.assign(q.size(), 0.0);
    lse.assign(q.size() / static_cast<size_t>(dim), 0.0);
    ForRows([&](int64_t t, int64_t h, int64_t begin) {
      Doubles score;
      for (int64_t s = begin; s <= t; ++s) score.push_back(Score(t, s, h));
      const double top = *std::max_element(score.begin(), score.end());
      double sum = 0.0;
      for (const double x : score) sum += std::exp(x - top);
      lse[At(t * heads + h)] = top + std::log(sum);
      for (int64_t s = begin; s <= t; ++s) {
        const double p = P(t, s, h);
        for (int64_t i = 0; i < dim; ++i) out[Query(t, h, i)] += p * v[Key(s, h, i)];
      }
    });
  }

  void Backward(const Doubles& d_out) {
    dq.assign(q.size(), 0.0);
    dk.assign(k.size(), 0.0);
    dv = dk;
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
    ForRows([&](int64_t t, int64_t h, int64_t begin) {
      double delta = 0.0;
      for (int64_t i = 0; i < dim; ++i) delta += d_out[Query(t, h, i)] * out[Query(t, h, i)];
      for (int64_t s = begin; s <= t; ++s) {
        double dp = 0.0;
        for (int64_t i = 0; i < dim; ++i) dp += d_out[Query(t, h, i)] * v[Key(s, h, i)];
        const double p = P(t, s, h), ds = p * (dp - delta) * scale;
        for (int64_t i = 0; i < dim; ++i) {
          dq[Query(t, h, i)] += ds * k[Key(s, h, i)];
          dk[Key(s, h, i)] += ds * q[Query(t, h, i)];
          dv[Key(s, h, i)] += p * d_out[Query(t, h, i)];
        }
      }
    });
  }

 private:
  static size_t At(int64_t i) { return static_cast<size_t>(i); }
  size_t Query(int64_t t, int64_t h, int64_t i) const { return At((t * heads + h) * dim + i); }
  size_t Key(int64_t s, int64_t h, int64_t i) const {
    return At((s * kv_heads + h / (heads / kv_heads)) * dim + i);
  }
  double Score(int64_t t, int64_t s, int64_t h) const {
    double dot = 0.0;
    for (int64_t i = 0; i < dim; ++i) dot += q[Query(t, h, i)] * k[Key(s, h, i)];
    return dot / std::sqrt(static_cast<double>(dim));
  }
  double P(int64_t t, int64_t s, int64_t h) const {
    return std::exp(Score(t, s, h) - lse[At(t * heads + h)]);
  }
  // fn(t, h, first row of t's document)
  template <typename F>
  void ForRows(F&& fn) const {
    for (size_t n = 0; n + 1 < cu_seqlens.size(); ++n) {
      for (int64_t t = cu_seqlens[n]; t < cu_seqlens[n + 1]; ++t) {
        for (int64_t h = 0; h < heads; ++h) fn(t, h, cu_seqlens[n]);
      }
    }
  }
};

}  // namespace mm01
