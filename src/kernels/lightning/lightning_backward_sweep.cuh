// Lightning attention forward and backward as one op, the sweep.
//
//   W_c = exp(-slope) W_{c-1} + y_c^T z_c          the state, [Y, Z]
//   u_r = x_r W_r
//
// over the rows of a sequence, from its first row on or from its last row back. With S and G as in
// lightning_backward.h, G being the gradient of the state after a row:
//
//   u      x      y      z      W      order
//   out    q      k      v      S      on
//   dq     d_out  v      k      S^T    on
//   dk     v      d_out  q      G^T    back
//   dv     k      q      d_out  G      back
//
// A sweep back has the decay elsewhere: G leaves out the row that it stands at, so u_r = x_r (G_r +
// y_r^T z_r) and G_{r-1} = exp(-slope) (G_r + y_r^T z_r).
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "kernels/lightning/lightning_kernels.cuh"
#include "tensor/dtype.h"

namespace mm01::cuda {

// Rows of heads, [T, H, dim]; strides in elements.
struct SweepTensor {
  void* data;
  int64_t row_stride, head_stride;
};

struct Sweep {
  int32_t x, y, z, u;          // of SweepParams::tensor
  int32_t pre;                 // u is to be times SiLU' of this one; -1: as it is
  bool back;                   // from the last row
  bool transposed;             // W^T is what lies in memory
  const float* state_in;       // [N, H, K, V] before the first row of the sweep; null: zero
  float* state_out;            // after its last row; null: not wanted
  float* borders = nullptr;    // [borders, H, K, V] between segments; null: nobody keeps them
  bool borders_known = false;  // they are there already
};

// Rows of one document that a sweep does without a break. A document of n rows has a segment for
// each kSegmentRows, counted from its first row. Segment i of document d has the place
// d + cu_seqlens[d] / kSegmentRows + i, which leaves places over, and the border behind it the
// place less d.
constexpr int32_t kSegmentRows = 2048;
struct SweepSegment {
  int32_t first_row, count;
  int32_t document;  // -1: a place that is left over
  bool first, last;  // of the document
};

// Rows and items (a head of a document, or of a segment, in a sweep) are fewer than 2^31.
struct SweepParams {
  static constexpr int kMaxTensors = 10, kMaxSweeps = 3;
  SweepTensor tensor[kMaxTensors];
  Sweep sweep[kMaxSweeps];
  int32_t num_tensors, num_sweeps;
  const float* slope;         // [H]
  const int64_t* cu_seqlens;  // [N + 1]
  int32_t rows, documents, heads, dim;
  SweepSegment* segments;  // [parts]; null: documents are whole
  int32_t parts;           // segments or documents

  __host__ __device__ int32_t num_items() const { return parts * heads * num_sweeps; }
};

// bf16, head dim 128, rows at multiples of 16 bytes; TMA and wgmma.
void LaunchSweeps(Queue& queue, const SweepParams& p);
// The same where heads are so few that documents are cut into segments, which run side by side.
void LaunchSegmentedSweeps(Queue& queue, const SweepParams& p);
// What the rows of each segment that is not its document's last in the order of the sweep add to
// the state, into the border behind it.
void LaunchSegmentStates(Queue& queue, const SweepParams& p);
// Any head dim that 16 divides, rows at multiples of 4 elements; float32 arithmetic.
void LaunchSweepsGeneric(Queue& queue, DType dtype, const SweepParams& p);

// A head of a document or segment in one sweep. The sweeps of a head come one after another, so
// that CTAs side by side read the same rows at about the same time and share them in L2.
struct SweepItem {
  const Sweep& sweep;
  int32_t part, head;
  SweepSegment segment;

  __device__ SweepItem(const SweepParams& p, int32_t item)
      : sweep(p.sweep[item % p.num_sweeps]),
        part(item / p.num_sweeps / p.heads),
        head(item / p.num_sweeps % p.heads) {
    if (p.segments != nullptr) {
      segment = p.segments[part];
    } else {
      const auto first_row = static_cast<int32_t>(p.cu_seqlens[part]);
      segment = {.first_row = first_row,
                 .count = static_cast<int32_t>(p.cu_seqlens[part + 1]) - first_row,
                 .document = part,
                 .first = true,
                 .last = true};
    }
  }

  __device__ bool exists() const { return segment.document >= 0; }
  // In the order of the sweep.
  __device__ bool begins() const { return sweep.back ? segment.last : segment.first; }
  __device__ bool ends() const { return sweep.back ? segment.first : segment.last; }

  __device__ int32_t num_blocks() const { return (segment.count + kRows - 1) / kRows; }
  // Rows of the last block, 1 .. B where there is one.
  __device__ int32_t last_rows() const { return (segment.count - 1) % kRows + 1; }

  // The state [K, V] before this item, null for zero, and where it goes after it, null for nowhere.
  __device__ const float* StateIn(const SweepParams& p) const {
    if (begins()) return Of(sweep.state_in, segment.document, p);
    return Of(sweep.borders, part - segment.document - (sweep.back ? 0 : 1), p);
  }
  __device__ float* StateOut(const SweepParams& p) const {
    return ends() ? Of(sweep.state_out, segment.document, p) : nullptr;
  }
  __device__ float* BorderBehind(const SweepParams& p) const {
    return Of(sweep.borders, part - segment.document - (sweep.back ? 1 : 0), p);
  }

 private:
  static constexpr int32_t kRows = kLightningBlock;

  template <typename T>
  __device__ T* Of(T* states, int32_t n, const SweepParams& p) const {
    if (states == nullptr) return nullptr;
    return states + (static_cast<int64_t>(n) * p.heads + head) * p.dim * p.dim;
  }
};

// 1 - exp(-slope n): what a state loses in n rows (BlockForget).
__device__ __forceinline__ float Forget(float slope, int n) {
  return -expm1f(-slope * static_cast<float>(n));
}

}  // namespace mm01::cuda
