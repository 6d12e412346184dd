// Schedule: one item a (document, head). The pass walks its blocks once, carrying S; the gradients
// walk them forward for dQ, carrying S^T, and back for dK and dV, carrying G.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/lightning/lightning_backward_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <algorithm>
#include <cstring>

#include "kernels/activation/activation_backward.h"
#include "kernels/lightning/decay.h"
#include "kernels/lightning/lightning_backward.h"
#ifdef MM01_CUDA
#include "kernels/lightning/lightning_backward_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kB = kLightningBlock;

// Rows of one head.
struct Rows {
  float* data;
  int64_t stride;

  Rows From(int64_t row) const { return {data + row * stride, stride}; }
};

Rows HeadOf(const Tensor& t, int64_t row, int64_t head) {
  const auto view = t.As<float, 3>();
  return {view.data + row * view.stride[0] + head * view.stride[1], view.stride[0]};
}

Panels<float> AsPanels(const float* data, int64_t step) {
  return {.data = data, .step = step, .panel = kPanel};
}

// Working memory of one thread, d the head dim.
struct Room {
  float* state;   // [d, d]
  float* other;   // [d, d]  the state transposed
  float* scores;  // [B, B]
  float* turned;  // [B, B]  the scores transposed
  float* scaled;  // [B, d]  rows times their decay
  float* a;       // [d, B]  rows transposed
  float* b;       // [d, B]
  float* packed;  // strips of SmallGemm

  static int64_t Floats(int64_t d) {
    return 2 * d * d + 2 * kB * kB + 3 * kB * d +
           std::max(PackedFloats(kB, std::max(d, kB)), PackedFloats(d, kB));
  }
  Room(float* memory, int64_t d)
      : state(memory),
        other(state + d * d),
        scores(other + d * d),
        turned(scores + kB * kB),
        scaled(turned + kB * kB),
        a(scaled + kB * d),
        b(a + kB * d),
        packed(b + kB * d) {}
};

// One head of one document at work on a block of m rows.
struct Block {
  int64_t d, m;
  const Decay& decay;
  const Room& room;

  // c = or += x y, x [rows, inner] and y [inner, columns] in rows.
  void Multiply(int64_t rows, int64_t columns, int64_t inner, Rows x, Rows y, Rows c,
                bool add) const {
    SmallGemm(rows, columns, inner, x.data, x.stride, AsPanels(y.data, y.stride), c.data, c.stride,
              add, room.packed);
  }
  // out [columns][B] = x [m, columns] transposed; places beyond m are zero.
  void Transpose(Rows x, int64_t columns, float* out) const {
    for (int64_t r = 0; r < m; ++r) {
      const float* row = x.data + r * x.stride;
      for (int64_t i = 0; i < columns; ++i) out[i * kB + r] = row[i];
    }
    if (m == kB) return;
    for (int64_t i = 0; i < columns; ++i) std::fill(out + i * kB + m, out + (i + 1) * kB, 0.0f);
  }
  // room.scaled = rows of x times lambda^exponent(r), r = 0 .. m-1.
  template <typename F>
  Rows Scaled(Rows x, F&& exponent) const {
    const F32 lanes;
    for (int64_t r = 0; r < m; ++r) {
      const VF f = hn::Set(lanes, decay[exponent(r)]);
      for (int64_t i = 0; i < d; i += kLanes) {
        hn::StoreU(hn::Mul(f, hn::LoadU(lanes, x.data + r * x.stride + i)), lanes,
                   room.scaled + r * d + i);
      }
    }
    return {room.scaled, d};
  }
  Rows FromStart(Rows x) const {
    return Scaled(x, [](int64_t r) { return r + 1; });
  }
  Rows ToEnd(Rows x) const {
    return Scaled(x, [this](int64_t r) { return m - 1 - r; });
  }
  // room.scores = (x y^T) * M, with y^T [d][B].
  Rows Scores(Rows x, const float* y_transposed) const {
    Multiply(m, (m + kPanel - 1) / kPanel * kPanel, d, x, {const_cast<float*>(y_transposed), kB},
             {room.scores, kB}, false);
    for (int64_t r = 0; r < m; ++r) {
      float* row = room.scores + r * kB;
      for (int64_t c = 0; c <= r; ++c) row[c] *= decay[r - c];
      std::fill(row + r + 1, row + kB, 0.0f);
    }
    return {room.scores, kB};
  }
  Rows TurnedScores(Rows x, const float* y_transposed) const {
    Transpose(Scores(x, y_transposed), m, room.turned);
    return {room.turned, kB};
  }
  void ScaleState(float* s) const {
    const F32 lanes;
    const VF f = hn::Set(lanes, decay[m]);
    for (int64_t i = 0; i < d * d; i += kLanes) {
      hn::StoreU(hn::Mul(f, hn::LoadU(lanes, s + i)), lanes, s + i);
    }
  }
};

void TransposeSquare(const float* in, int64_t d, float* out) {
  for (int64_t i = 0; i < d; i += kPanel) {
    for (int64_t j = 0; j < d; j += kPanel) {
      for (int64_t r = i; r < i + kPanel; ++r) {
        for (int64_t c = j; c < j + kPanel; ++c) out[c * d + r] = in[r * d + c];
      }
    }
  }
}

void LoadState(const Tensor& states, int64_t document, int64_t head, int64_t d, float* s) {
  if (states.empty()) {
    std::fill(s, s + d * d, 0.0f);
  } else {
    std::memcpy(s, &states.As<const float, 4>()(document, head, 0, 0),
                static_cast<size_t>(d * d) * sizeof(float));
  }
}

void StoreState(const float* s, int64_t document, int64_t head, int64_t d, const Tensor& states) {
  if (states.empty()) return;
  std::memcpy(&states.As<float, 4>()(document, head, 0, 0), s,
              static_cast<size_t>(d * d) * sizeof(float));
}

// Runs fn(document, head, first row, rows, decay, room) for all heads of all documents.
template <typename F>
void ForHeads(Queue& queue, const Tensor& q, const Tensor& slopes, const Tensor& cu_seqlens,
              F&& fn) {
  const auto cu = cu_seqlens.As<const int64_t, 1>();
  const auto slope = slopes.As<const float, 1>();
  const int64_t heads = q.dim(1), d = q.dim(2), documents = cu.dim(0) - 1;
  Check(documents >= 0 && cu(0) == 0 && cu(documents) == q.dim(0),
        "Lightning: cu_seqlens does not cover T");
  Check(slope.dim(0) == heads && d % kPanel == 0, "Lightning: slope [H] or head dim does not fit");
  Scratch scratch(queue);
  float* memory = scratch.Get<float>(Room::Floats(d) * queue.num_threads());
  queue.pool().ParallelFor(documents * heads, [&](int64_t item, int thread) {
    const int64_t document = item / heads, head = item % heads;
    const Room room(memory + thread * Room::Floats(d), d);
    fn(document, head, cu(document), cu(document + 1) - cu(document), Decay(slope(head)), room);
  });
}

}  // namespace

void LightningPassTarget(Queue& queue, const LightningPassArgs& args) {
  const int64_t d = args.q.dim(2);
  ForHeads(queue, args.q, args.slope, args.cu_seqlens,
           [&](int64_t document, int64_t head, int64_t first, int64_t rows, const Decay& decay,
               const Room& room) {
             const Rows q = HeadOf(args.q, first, head), k = HeadOf(args.k, first, head);
             const Rows v = HeadOf(args.v, first, head), out = HeadOf(args.out, first, head);
             const Rows state{room.state, d};
             LoadState(args.s_in, document, head, d, room.state);
             for (int64_t t = 0; t < rows; t += kB) {
               const Block block{d, std::min(kB, rows - t), decay, room};
               const int64_t m = block.m;
               block.Transpose(k.From(t), d, room.a);
               const Rows scores = block.Scores(q.From(t), room.a);
               block.Multiply(m, d, m, scores, v.From(t), out.From(t), false);
               block.Multiply(m, d, d, block.FromStart(q.From(t)), state, out.From(t), true);
               block.ScaleState(room.state);
               const Rows scaled = block.ToEnd(v.From(t));
               block.Multiply(d, d, m, {room.a, kB}, scaled, state, true);
             }
             StoreState(room.state, document, head, d, args.s_out);
           });
}

void LightningBackwardTarget(Queue& queue, const LightningBackwardArgs& args) {
  const int64_t d = args.q.dim(2);
  ForHeads(queue, args.q, args.slope, args.cu_seqlens,
           [&](int64_t document, int64_t head, int64_t first, int64_t rows, const Decay& decay,
               const Room& room) {
             const Rows q = HeadOf(args.q, first, head), k = HeadOf(args.k, first, head);
             const Rows v = HeadOf(args.v, first, head), d_out = HeadOf(args.d_out, first, head);
             const Rows dq = HeadOf(args.dq, first, head), dk = HeadOf(args.dk, first, head);
             const Rows dv = HeadOf(args.dv, first, head);
             const Rows state{room.state, d}, other{room.other, d};

             LoadState(args.s_in, document, head, d, room.other);
             TransposeSquare(room.other, d, room.state);  // S^T
             for (int64_t t = 0; t < rows; t += kB) {
               const Block block{d, std::min(kB, rows - t), decay, room};
               const int64_t m = block.m;
               block.Transpose(v.From(t), d, room.a);
               const Rows scores = block.Scores(d_out.From(t), room.a);
               block.Multiply(m, d, m, scores, k.From(t), dq.From(t), false);
               block.Multiply(m, d, d, block.FromStart(d_out.From(t)), state, dq.From(t), true);
               block.ScaleState(room.state);
               const Rows scaled = block.ToEnd(k.From(t));
               block.Multiply(d, d, m, {room.a, kB}, scaled, state, true);
             }

             LoadState(args.d_s_out, document, head, d, room.state);  // G
             for (int64_t t = (rows - 1) / kB * kB; rows > 0 && t >= 0; t -= kB) {
               const Block block{d, std::min(kB, rows - t), decay, room};
               const int64_t m = block.m;
               block.Transpose(v.From(t), d, room.a);
               Rows turned = block.TurnedScores(d_out.From(t), room.a);
               block.Multiply(m, d, m, turned, q.From(t), dk.From(t), false);
               TransposeSquare(room.state, d, room.other);
               block.Multiply(m, d, d, block.ToEnd(v.From(t)), other, dk.From(t), true);

               block.Transpose(k.From(t), d, room.a);
               turned = block.TurnedScores(q.From(t), room.a);
               block.Multiply(m, d, m, turned, d_out.From(t), dv.From(t), false);
               block.Multiply(m, d, d, block.ToEnd(k.From(t)), state, dv.From(t), true);

               block.ScaleState(room.state);
               block.Transpose(q.From(t), d, room.a);
               const Rows scaled = block.FromStart(d_out.From(t));
               block.Multiply(d, d, m, {room.a, kB}, scaled, state, true);
             }
             StoreState(room.state, document, head, d, args.d_s_in);
           });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {
namespace {

void CheckShapes(const Tensor& q, std::initializer_list<const Tensor*> alike,
                 std::initializer_list<const Tensor*> states, int64_t documents) {
  for (const Tensor* t : alike) {
    Check(t->rank == 3 && t->shape == q.shape, "Lightning: rows are not all [T, H, K]");
  }
  for (const Tensor* t : states) {
    Check(t->empty() || (t->rank == 4 && t->dim(0) == documents && t->dim(1) == q.dim(1) &&
                         t->dim(2) == q.dim(2) && t->dim(3) == q.dim(2)),
          "Lightning: states are not [N, H, K, V]");
  }
}

// d [T, H, K], the gradient of SiLU(pre), becomes that of pre.
void ThroughSilu(Queue& queue, const Tensor& pre, const Tensor& d) {
  if (pre.empty()) return;
  const auto of_head = [](const Tensor& rows, int64_t head) {
    const auto view = rows.As<float, 3>();
    Tensor t(view.data + head * view.stride[1], {view.dim(0), view.dim(2)});
    t.stride[0] = view.stride[0];
    return t;
  };
  for (int64_t h = 0; h < d.dim(1); ++h) {
    const Tensor gradient = of_head(d, h);
    SiluBackward(queue, {.x = of_head(pre, h), .d_out = gradient, .d_x = gradient});
  }
}

}  // namespace

HWY_EXPORT(LightningPassTarget);
HWY_EXPORT(LightningBackwardTarget);

int64_t LightningBorders([[maybe_unused]] Device device, [[maybe_unused]] DType type,
                         [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t heads,
                         [[maybe_unused]] int64_t dim) {
#ifdef MM01_CUDA
  if (device == Device::kCuda) return cuda::LightningBorders(type, rows, heads, dim);
#endif
  return 0;
}

void LightningPass(Queue& queue, const LightningPassArgs& a) {
  MM01_ON_CUDA(queue, LightningPass(queue, a));
  CheckShapes(a.q, {&a.k, &a.v, &a.out}, {&a.s_in, &a.s_out}, a.cu_seqlens.dim(0) - 1);
  HWY_DYNAMIC_DISPATCH(LightningPassTarget)(queue, a);
}

void LightningBackward(Queue& queue, const LightningBackwardArgs& a) {
  MM01_ON_CUDA(queue, LightningBackward(queue, a));
  CheckShapes(a.q, {&a.k, &a.v, &a.d_out, &a.dq, &a.dk, &a.dv}, {&a.s_in, &a.d_s_out, &a.d_s_in},
              a.cu_seqlens.dim(0) - 1);
  for (const Tensor* pre : {&a.pre_q, &a.pre_k, &a.pre_v}) {
    Check(pre->empty() == a.pre_q.empty(),
          "Lightning: some of q, k and v have no rows before SiLU");
    if (!pre->empty()) CheckShapes(a.q, {pre}, {}, 0);
  }
  HWY_DYNAMIC_DISPATCH(LightningBackwardTarget)(queue, a);
  ThroughSilu(queue, a.pre_q, a.dq);
  ThroughSilu(queue, a.pre_k, a.dk);
  ThroughSilu(queue, a.pre_v, a.dv);
}

}  // namespace mm01
#endif
