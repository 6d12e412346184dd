// Lightning forward and backward on a GPU: which sweeps they are, and which kernel takes them.
#include "kernels/lightning/lightning_backward_cuda.h"

#include <algorithm>
#include <limits>
#include <span>

#include "base/check.h"
#include "kernels/lightning/lightning_backward_sweep.cuh"

namespace mm01::cuda {
namespace {

// Up to so many heads leave most of the GPU idle where documents are few.
constexpr int kFewHeads = 16;

// The tensors of a call in the order that its sweeps know them by, and what all sweeps share.
SweepParams ParamsOf(std::span<const Tensor* const> tensors, const Tensor& slope,
                     const Tensor& cu_seqlens) {
  const Tensor& q = *tensors[0];
  SweepParams p{};
  for (const Tensor* t : tensors) {
    Check(t->rank == 3 && t->shape == q.shape && t->dtype == q.dtype && t->stride[2] == 1,
          "Lightning: rows are not all [T, H, K] of one type");
    p.tensor[p.num_tensors++] = {t->data, t->stride[0], t->stride[1]};
  }
  Check(q.dtype == DType::kF32 || q.dtype == DType::kBF16,
        "Lightning: rows are float32 or bf16, not " + ToString(q.dtype));
  Check(slope.dim(0) == q.dim(1) && q.dim(2) % 16 == 0 && q.dim(2) > 0,
        "Lightning: slope [H] or the head dim does not fit");
  const int64_t documents = cu_seqlens.dim(0) - 1;
  Check(documents >= 0 && q.dim(0) < std::numeric_limits<int32_t>::max() &&
            (documents + q.dim(0) / kSegmentRows) * q.dim(1) * SweepParams::kMaxSweeps *
                    (q.dim(2) / 16) <
                std::numeric_limits<int32_t>::max(),
        "Lightning: rows, or heads of all documents, do not fit 32 bits");
  p.slope = slope.As<const float, 1>().data;
  p.cu_seqlens = cu_seqlens.As<const int64_t, 1>().data;
  p.rows = static_cast<int32_t>(q.dim(0));
  p.documents = static_cast<int32_t>(documents);
  p.parts = p.documents;
  p.heads = static_cast<int32_t>(q.dim(1));
  p.dim = static_cast<int32_t>(q.dim(2));
  return p;
}

// Null where nobody has the state, or wants it.
float* StateOf(const Tensor& s, const SweepParams& p) {
  if (s.empty()) return nullptr;
  Check(s.rank == 4 && s.dim(0) == p.documents && s.dim(1) == p.heads && s.dim(2) == p.dim &&
            s.dim(3) == p.dim && s.size() == s.dim(0) * s.stride[0],
        "Lightning: states are not [N, H, K, V]");
  return s.As<float, 4>().data;
}

float* BordersOf(const Tensor& borders, const SweepParams& p) {
  if (borders.empty()) return nullptr;
  const int64_t state = int64_t{p.heads} * p.dim * p.dim;
  Check(borders.dtype == DType::kF32 && borders.size() >= p.rows / kSegmentRows * state,
        "Lightning: borders are fewer than LightningBorders says");
  return static_cast<float*>(borders.data);
}

// A rule of the model's shape alone, so that a document's bits are.
bool HasSegments(int64_t rows, int64_t heads) {
  return heads <= kFewHeads && rows > kSegmentRows;
}

void Run(Queue& queue, DType dtype, const SweepParams& p) {
  if (p.num_items() == 0) return;
  const auto aligned = [&](int64_t bytes) {
    return std::all_of(p.tensor, p.tensor + p.num_tensors, [&](const SweepTensor& t) {
      const int64_t size = SizeOf(dtype);
      return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 &&
             t.row_stride * size % bytes == 0 && t.head_stride * size % bytes == 0;
    });
  };
  if (dtype == DType::kBF16 && p.dim == 128 && p.rows > 0 && aligned(16)) {
    if (HasSegments(p.rows, p.heads)) {
      LaunchSegmentedSweeps(queue, p);
    } else {
      LaunchSweeps(queue, p);
    }
  } else {
    Check(aligned(4 * SizeOf(dtype)), "Lightning: rows must begin at multiples of 4 elements");
    LaunchSweepsGeneric(queue, dtype, p);
  }
}

}  // namespace

int64_t LightningBorders(DType type, int64_t rows, int64_t heads, int64_t dim) {
  const bool cut = type == DType::kBF16 && dim == 128 && HasSegments(rows, heads);
  return cut ? rows / kSegmentRows : 0;
}

void LightningPass(Queue& queue, const LightningPassArgs& a) {
  enum { kQ, kK, kV, kOut };
  const Tensor* const tensors[] = {&a.q, &a.k, &a.v, &a.out};
  SweepParams p = ParamsOf(tensors, a.slope, a.cu_seqlens);
  p.sweep[p.num_sweeps++] = {.x = kQ,
                             .y = kK,
                             .z = kV,
                             .u = kOut,
                             .pre = -1,
                             .back = false,
                             .transposed = false,
                             .state_in = StateOf(a.s_in, p),
                             .state_out = StateOf(a.s_out, p),
                             .borders = BordersOf(a.borders, p)};
  Run(queue, a.q.dtype, p);
}

void LightningBackward(Queue& queue, const LightningBackwardArgs& a) {
  enum { kQ, kK, kV, kDOut, kDq, kDk, kDv, kPreQ, kPreK, kPreV };
  const Tensor* const tensors[] = {&a.q,  &a.k,  &a.v,     &a.d_out, &a.dq,
                                   &a.dk, &a.dv, &a.pre_q, &a.pre_k, &a.pre_v};
  const bool has_pre = !a.pre_q.empty();
  SweepParams p =
      ParamsOf(std::span(tensors).first(has_pre ? kPreV + 1 : kPreQ), a.slope, a.cu_seqlens);
  const auto pre = [&](int32_t tensor) { return has_pre ? tensor : -1; };
  p.sweep[p.num_sweeps++] = {.x = kDOut,
                             .y = kV,
                             .z = kK,
                             .u = kDq,
                             .pre = pre(kPreQ),
                             .back = false,
                             .transposed = true,
                             .state_in = StateOf(a.s_in, p),
                             .state_out = nullptr,
                             .borders = BordersOf(a.borders, p),
                             .borders_known = !a.borders.empty()};
  p.sweep[p.num_sweeps++] = {.x = kV,
                             .y = kDOut,
                             .z = kQ,
                             .u = kDk,
                             .pre = pre(kPreK),
                             .back = true,
                             .transposed = true,
                             .state_in = StateOf(a.d_s_out, p),
                             .state_out = nullptr};
  p.sweep[p.num_sweeps++] = {.x = kK,
                             .y = kQ,
                             .z = kDOut,
                             .u = kDv,
                             .pre = pre(kPreV),
                             .back = true,
                             .transposed = false,
                             .state_in = StateOf(a.d_s_out, p),
                             .state_out = StateOf(a.d_s_in, p)};
  Check(a.pre_k.empty() != has_pre && a.pre_v.empty() != has_pre,
        "Lightning: some of q, k and v have no rows before SiLU");
  Check(a.d_s_in.empty() || a.d_s_in.data != a.d_s_out.data,
        "Lightning: d_s_in and d_s_out are the same memory");
  Run(queue, a.q.dtype, p);
}

}  // namespace mm01::cuda
