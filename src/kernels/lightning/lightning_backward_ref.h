// The recurrence of lightning.h and its gradients token by token, in double. For tests.
//
//   S_t = lambda S_(t-1) + k_t^T v_t,  o_t = q_t S_t
//   dq_t = S_t do_t;  G_t = lambda G_(t+1) + q_t^T do_t;  dk_t = G_t v_t;  dv_t = k_t G_t
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace mm01 {

using Doubles = std::vector<double>;

// q, k, v, out, gradients: [T, H, K]; states [N, H, K, K], empty for zero.
struct LightningReference {
  int64_t heads, dim;
  Doubles q, k, v, slope;
  std::vector<int64_t> cu_seqlens;
  Doubles s_in;

  Doubles out, s_out;          // of Pass
  Doubles dq, dk, dv, d_s_in;  // of Backward

  int64_t documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }

  void Pass() {
    out.assign(q.size(), 0.0);
    s_out = s_in.empty() ? ZeroStates() : s_in;
    Walk([&](int64_t, int64_t at, double decay, double* s) { Step(at, decay, s, &out, nullptr); },
         s_out, false);
  }

  void Backward(const Doubles& d_out, const Doubles& d_s_out) {
    dq.assign(q.size(), 0.0);
    dk = dv = dq;
    Doubles s = s_in.empty() ? ZeroStates() : s_in;
    Walk([&](int64_t, int64_t at, double decay,
             double* state) { Step(at, decay, state, nullptr, &d_out); },
         s, false);
    d_s_in = d_s_out.empty() ? ZeroStates() : d_s_out;
    // G enters a step as the gradient of S_t without what o_t adds.
    Walk(
        [&](int64_t, int64_t at, double decay, double* g) {
          for (int64_t i = 0; i < dim; ++i) {
            for (int64_t j = 0; j < dim; ++j) {
              double& cell = g[i * dim + j];
              cell += q[Index(at + i)] * d_out[Index(at + j)];
              dk[Index(at + i)] += cell * v[Index(at + j)];
              dv[Index(at + j)] += cell * k[Index(at + i)];
              cell *= decay;
            }
          }
        },
        d_s_in, true);
  }

 private:
  static size_t Index(int64_t i) { return static_cast<size_t>(i); }
  Doubles ZeroStates() const { return Doubles(Index(documents() * heads * dim * dim), 0.0); }

  void Step(int64_t at, double decay, double* s, Doubles* o, const Doubles* d_out) {
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < dim; ++j) {
        double& cell = s[i * dim + j];
        cell = decay * cell + k[Index(at + i)] * v[Index(at + j)];
        if (o) (*o)[Index(at + j)] += q[Index(at + i)] * cell;
        if (d_out) dq[Index(at + i)] += cell * (*d_out)[Index(at + j)];
      }
    }
  }

  template <typename F>
  void Walk(F&& step, Doubles& states, bool backward) {
    for (int64_t n = 0; n < documents(); ++n) {
      const int64_t begin = cu_seqlens[Index(n)], end = cu_seqlens[Index(n + 1)];
      for (int64_t h = 0; h < heads; ++h) {
        double* s = states.data() + (n * heads + h) * dim * dim;
        const double decay = std::exp(-slope[Index(h)]);
        for (int64_t i = 0; i < end - begin; ++i) {
          const int64_t t = backward ? end - 1 - i : begin + i;
          step(n, (t * heads + h) * dim, decay, s);
        }
      }
    }
  }
};

}  // namespace mm01
