// Schedule: one item a (sequence, head), which walks its blocks in order. Everything of a block
// fits the second-level cache at K = 128: S 64 KB, k and v rows 32 KB each, scores 16 KB.
#include "kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/lightning/lightning_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/gemm/tile-inl.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/lightning/decay.h"
#include "kernels/lightning/lightning.h"
#ifdef MM01_CUDA
#include "kernels/lightning/lightning_cuda.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mm01 {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kB = kLightningBlock;

// Working memory of one thread.
struct Room {
  float* scores;   // [B, B]
  float* k_decay;  // [K, B]
  float* packed;   // strips of SmallGemm

  static int64_t Floats(int64_t dim) {
    return kB * kB + dim * kB +
           std::max(PackedFloats(kB, std::max(dim, kB)), PackedFloats(dim, kB));
  }
  Room(float* memory, int64_t dim)
      : scores(memory), k_decay(scores + kB * kB), packed(k_decay + dim * kB) {}
};

// One head of one slot.
struct Slot {
  float* s;
  float* k_rows;
  float* v_rows;
  int64_t dim;

  Panels<float> State() const { return {.data = s, .step = dim, .panel = kPanel}; }
  Panels<float> Keys() const { return {.data = k_rows, .step = kPanel, .panel = dim * kPanel}; }
  Panels<float> Values() const { return {.data = v_rows, .step = dim, .panel = kPanel}; }
};

Slot SlotAt(const LightningState& state, int64_t slot, int64_t head) {
  const auto s = state.s.As<float, 4>();
  const auto k = state.k_rows.As<float, 3>();
  const auto v = state.v_rows.As<float, 3>();
  return {&s(slot, head, 0, 0), &k(slot, head, 0), &v(slot, head, 0), s.dim(2)};
}

void Scale(float* x, int64_t n, float factor) {
  const F32 d;
  const VF f = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, x + i), f), d, x + i);
}

// s = exp(-slope m) s + sum over r < m of exp(-slope (m-1-r)) k_r^T v_r
void Advance(const Slot& slot, const Decay& decay, int64_t m, float* s, const Room& room) {
  const int64_t dim = slot.dim;
  for (int64_t r = 0; r < m; ++r) {
    const float* column = slot.k_rows + r / kPanel * dim * kPanel + r % kPanel;
    for (int64_t i = 0; i < dim; ++i)
      room.k_decay[i * kB + r] = column[i * kPanel] * decay[m - 1 - r];
  }
  Scale(s, dim * dim, decay[m]);
  SmallGemm(dim, dim, m, room.k_decay, kB, slot.Values(), s, dim, true, room.packed);
}

// Rows begin .. end-1 of a block (places in it), the first of them q, k, v and out.
void Block(const Slot& slot, const Decay& decay, int64_t begin, int64_t end, const float* q,
           const float* k, const float* v, int64_t ld, float* out, int64_t ldo, bool empty,
           const Room& room) {
  const int64_t dim = slot.dim, m = end - begin;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t r = begin + i;
    float* column = slot.k_rows + r / kPanel * dim * kPanel + r % kPanel;
    for (int64_t j = 0; j < dim; ++j) column[j * kPanel] = k[i * ld + j];
    std::memcpy(slot.v_rows + r * dim, v + i * ld, static_cast<size_t>(dim) * sizeof(float));
  }
  PackRowsOf(m, dim, q, ld, room.packed);
  if (!empty) {
    PackedGemm(m, dim, dim, room.packed, slot.State(), out, ldo, false);
    for (int64_t i = 0; i < m; ++i) Scale(out + i * ldo, dim, decay[begin + i + 1]);
  }
  PackedGemm(m, end, dim, room.packed, slot.Keys(), room.scores, kB, false);
  for (int64_t i = 0; i < m; ++i) {
    const int64_t r = begin + i;
    float* row = room.scores + i * kB;
    for (int64_t c = 0; c <= r; ++c) row[c] *= decay[r - c];
    for (int64_t c = r + 1; c < end; ++c) row[c] = 0.0f;
  }
  SmallGemm(m, dim, end, room.scores, kB, slot.Values(), out, ldo, !empty, room.packed);
}

}  // namespace

void LightningTarget(Queue& queue, const LightningArgs& a) {
  const auto q = a.q.As<const float, 3>(), k = a.k.As<const float, 3>();
  const auto v = a.v.As<const float, 3>();
  const auto out = a.out.As<float, 3>();
  const auto cu = a.cu_seqlens.As<const int64_t, 1>();
  const auto position = a.position.As<const int64_t, 1>();
  const auto slot_of = a.slot.As<const int32_t, 1>();
  const auto slope = a.slope.As<const float, 1>();
  const int64_t num_seqs = slot_of.dim(0), heads = q.dim(1), dim = q.dim(2);
  Check(cu.dim(0) == num_seqs + 1 && position.dim(0) == num_seqs, "Lightning: N disagrees");
  Check(k.shape == q.shape && v.shape == q.shape && out.shape == q.shape && slope.dim(0) == heads,
        "Lightning: q, k, v, out [T, H, K] and slope [H] disagree");
  Check(k.stride == q.stride && v.stride == q.stride, "Lightning: q, k and v differ in strides");
  Check(dim % kPanel == 0 && a.state.s.dim(1) == heads && a.state.s.dim(2) == dim,
        "Lightning: the state is of another shape");
  Check(cu(0) == 0 && cu(num_seqs) == q.dim(0), "Lightning: cu_seqlens does not cover T");

  Scratch scratch(queue);
  float* memory = scratch.Get<float>(Room::Floats(dim) * queue.num_threads());
  queue.pool().ParallelFor(num_seqs * heads, [&](int64_t item, int thread) {
    const int64_t seq = item / heads, head = item % heads;
    const Room room(memory + thread * Room::Floats(dim), dim);
    const Slot slot = SlotAt(a.state, slot_of(seq), head);
    const Decay decay(slope(head));
    int64_t pos = position(seq);
    for (int64_t row = cu(seq); row < cu(seq + 1);) {
      const int64_t begin = pos % kB;
      const int64_t end = std::min(kB, begin + cu(seq + 1) - row);
      const bool empty = pos - begin == 0;  // no border has been crossed: S is zero, and not there
      Block(slot, decay, begin, end, &q(row, head, 0), &k(row, head, 0), &v(row, head, 0),
            q.stride[0], &out(row, head, 0), out.stride[0], empty, room);
      if (end == kB) {
        if (empty) std::fill(slot.s, slot.s + dim * dim, 0.0f);
        Advance(slot, decay, kB, slot.s, room);
      }
      row += end - begin;
      pos += end - begin;
    }
  });
}

void LightningFinalStateTarget(Queue& queue, const LightningState& state, int64_t slot,
                               int64_t position, const Tensor& slope_tensor,
                               const Tensor& out_tensor) {
  const auto out = out_tensor.As<float, 3>();
  const auto slope = slope_tensor.As<const float, 1>();
  const int64_t heads = out.dim(0), dim = out.dim(1);
  Check(state.s.dim(1) == heads && state.s.dim(2) == dim, "LightningFinalState: shapes disagree");
  Scratch scratch(queue);
  float* memory = scratch.Get<float>(Room::Floats(dim) * queue.num_threads());
  queue.pool().ParallelFor(heads, [&](int64_t head, int thread) {
    const Slot from = SlotAt(state, slot, head);
    float* s = &out(head, 0, 0);
    if (position < kB) {
      std::fill(s, s + dim * dim, 0.0f);
    } else {
      std::memcpy(s, from.s, static_cast<size_t>(dim * dim) * sizeof(float));
    }
    const Room room(memory + thread * Room::Floats(dim), dim);
    if (position % kB > 0) Advance(from, Decay(slope(head)), position % kB, s, room);
  });
}

void LightningAddIncomingTarget(Queue& queue, const Tensor& q_tensor, const Tensor& slope_tensor,
                                const Tensor& s_tensor, const Tensor& out_tensor) {
  const auto q = q_tensor.As<const float, 3>();
  const auto out = out_tensor.As<float, 3>();
  const auto s = s_tensor.As<const float, 3>();
  const auto slope = slope_tensor.As<const float, 1>();
  const int64_t rows = q.dim(0), heads = q.dim(1), dim = q.dim(2);
  Check(out.shape == q.shape && s.dim(0) == heads && s.dim(1) == dim,
        "LightningAddIncoming: shapes disagree");
  const int64_t blocks = (rows + kB - 1) / kB;
  const int64_t floats = kB * dim + PackedFloats(kB, dim);
  Scratch scratch(queue);
  float* memory = scratch.Get<float>(floats * queue.num_threads());
  queue.pool().ParallelFor(heads * blocks, [&](int64_t item, int thread) {
    const int64_t head = item / blocks, begin = item % blocks * kB;
    const int64_t m = std::min(kB, rows - begin);
    float* part = memory + thread * floats;
    const Panels<float> state{.data = &s(head, 0, 0), .step = dim, .panel = kPanel};
    SmallGemm(m, dim, dim, &q(begin, head, 0), q.stride[0], state, part, dim, false,
              part + kB * dim);
    for (int64_t i = 0; i < m; ++i) {
      const double t = static_cast<double>(begin + i + 1);
      const auto factor = static_cast<float>(std::exp(-static_cast<double>(slope(head)) * t));
      for (int64_t j = 0; j < dim; ++j) out(begin + i, head, j) += factor * part[i * dim + j];
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mm01
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mm01 {

HWY_EXPORT(LightningTarget);
HWY_EXPORT(LightningFinalStateTarget);
HWY_EXPORT(LightningAddIncomingTarget);

void Lightning(Queue& queue, const LightningArgs& args) {
  MM01_ON_CUDA(queue, Lightning(queue, args));
  HWY_DYNAMIC_DISPATCH(LightningTarget)(queue, args);
}

void LightningFinalState(Queue& queue, const LightningState& state, int64_t slot, int64_t position,
                         const Tensor& slope, const Tensor& out) {
  MM01_ON_CUDA(queue, LightningFinalState(queue, state, slot, position, slope, out));
  HWY_DYNAMIC_DISPATCH(LightningFinalStateTarget)(queue, state, slot, position, slope, out);
}

void LightningAddIncoming(Queue& queue, const Tensor& q, const Tensor& slope, const Tensor& s_in,
                          const Tensor& out) {
  MM01_ON_CUDA(queue, LightningAddIncoming(queue, q, slope, s_in, out));
  HWY_DYNAMIC_DISPATCH(LightningAddIncomingTarget)(queue, q, slope, s_in, out);
}

}  // namespace mm01
#endif
