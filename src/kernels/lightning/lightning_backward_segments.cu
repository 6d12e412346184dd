// Sweeps over documents that are cut into segments: what each segment adds to the state, the states
// at the borders by adding those up, and then all segments side by side. The first step reads y and
// z once more.
#include <utility>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/lightning/lightning_backward_sweep.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int32_t NumSegments(int32_t rows) {
  return max(1, (rows + kSegmentRows - 1) / kSegmentRows);
}

// A document's segments and the places up to the next document's; a thread a document.
__global__ void CutSegments(const __grid_constant__ SweepParams p) {
  const int document = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (document >= p.documents) return;
  const auto first_row = static_cast<int32_t>(p.cu_seqlens[document]);
  const auto end = static_cast<int32_t>(p.cu_seqlens[document + 1]);
  const int32_t place = document + first_row / kSegmentRows;
  const int32_t next = document + 1 == p.documents ? p.parts : document + 1 + end / kSegmentRows;
  const int32_t n = NumSegments(end - first_row);
  for (int32_t i = 0; i < next - place; ++i) {
    const int32_t row = first_row + i * kSegmentRows;
    p.segments[place + i] = {.first_row = row,
                             .count = i < n ? min(kSegmentRows, end - row) : 0,
                             .document = i < n ? document : -1,
                             .first = i == 0,
                             .last = i == n - 1};
  }
}

// Each border holds what the segment before it, in the order of the sweep, adds to the state; it
// gets the state. A thread does four elements of all borders of a document and head.
__global__ void JoinBorders(const __grid_constant__ SweepParams p) {
  const int document = static_cast<int>(blockIdx.x) / p.num_sweeps, head = blockIdx.y;
  const Sweep& sweep = p.sweep[static_cast<int>(blockIdx.x) % p.num_sweeps];
  const auto first_row = static_cast<int32_t>(p.cu_seqlens[document]);
  const auto rows = static_cast<int32_t>(p.cu_seqlens[document + 1]) - first_row;
  const int32_t n = NumSegments(rows), first_border = first_row / kSegmentRows;
  const int64_t state = static_cast<int64_t>(p.dim) * p.dim;
  const int64_t at = static_cast<int64_t>(blockIdx.z) * kThreads * 4 + threadIdx.x * 4;
  if (n < 2 || at >= state) return;
  const float slope = p.slope[head];
  float4 w = {0, 0, 0, 0};
  if (sweep.state_in != nullptr) {
    w = *reinterpret_cast<const float4*>(
        sweep.state_in + (static_cast<int64_t>(document) * p.heads + head) * state + at);
  }
  for (int32_t i = 0; i < n - 1; ++i) {
    // Segments before the border in the order of the sweep, and the border.
    const int32_t segment = sweep.back ? n - 1 - i : i;
    const int32_t border = first_border + (sweep.back ? segment - 1 : segment);
    const float forget = Forget(slope, min(kSegmentRows, rows - segment * kSegmentRows));
    auto* to = reinterpret_cast<float4*>(
        sweep.borders + (static_cast<int64_t>(border) * p.heads + head) * state + at);
    const float4 added = *to;
    w = {fmaf(-forget, w.x, w.x) + added.x, fmaf(-forget, w.y, w.y) + added.y,
         fmaf(-forget, w.z, w.z) + added.z, fmaf(-forget, w.w, w.w) + added.w};
    *to = w;
  }
}

// The sweep that works out the states of `sweep`: never transposed, so that one over q, k and v and
// one over their gradients give the same bits.
Sweep StatesOf(const Sweep& sweep, float* borders) {
  Sweep states = sweep;
  if (sweep.transposed) std::swap(states.y, states.z);
  states.transposed = false;
  states.borders = borders;
  return states;
}

}  // namespace

void LaunchSegmentedSweeps(Queue& queue, const SweepParams& whole) {
  SweepParams p = whole;
  Scratch scratch(queue);
  const int32_t num_borders = p.rows / kSegmentRows;
  p.parts = p.documents + num_borders;
  p.segments = scratch.Get<SweepSegment>(p.parts);

  // One pass of each order works out the states for all sweeps of that order: W is the same, or
  // transposed.
  SweepParams states = p;
  states.num_sweeps = 0;
  for (const bool back : {false, true}) {
    float* borders = nullptr;
    for (int i = 0; i < p.num_sweeps; ++i) {
      Sweep& sweep = p.sweep[i];
      if (sweep.back != back || sweep.borders_known) continue;
      if (borders == nullptr) {
        borders = sweep.borders
                      ? sweep.borders
                      : scratch.Get<float>(int64_t{num_borders} * p.heads * p.dim * p.dim);
        states.sweep[states.num_sweeps++] = StatesOf(sweep, borders);
      }
      sweep.borders = borders;
    }
  }

  const auto blocks = [](int64_t n) {
    return static_cast<unsigned>((n + kThreads - 1) / kThreads);
  };
  CutSegments<<<blocks(p.documents), kThreads, 0, queue.stream()>>>(p);
  CheckLaunch();
  if (states.num_sweeps > 0) {
    LaunchSegmentStates(queue, states);
    const dim3 grid(static_cast<unsigned>(p.documents * states.num_sweeps),
                    static_cast<unsigned>(p.heads), blocks(int64_t{p.dim} * p.dim / 4));
    JoinBorders<<<grid, kThreads, 0, queue.stream()>>>(states);
    CheckLaunch();
  }
  LaunchSweeps(queue, p);
}

}  // namespace mm01::cuda
