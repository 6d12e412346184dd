// Lightning over blocks of 64 tokens without tensor cores: float32, and head dims that the Hopper
// kernel does not take.
//
// A CTA does 16 columns of V of a (sequence, head), block after block (lightning_block.cuh).
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/lightning/lightning_block.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

// One block of a (sequence, head): where its rows lie.
template <typename T>
struct Block {
  const T *q, *k, *v;        // of place 0; strides of the call
  const T *kept_k, *kept_v;  // in the slot; rows of `dim`
  int64_t row_stride;
  int dim, begin, end;  // places begin .. end - 1 are in the call, those before in the slot

  __device__ float4 Row(const T* fresh, const T* kept, int c, int column) const {
    if (c >= end) return {0, 0, 0, 0};
    const auto x = c < begin ? Load<4>(kept + c * static_cast<int64_t>(dim) + column)
                             : Load<4>(fresh + c * row_stride + column);
    return {x[0], x[1], x[2], x[3]};
  }
  __device__ float4 Q(int c, int column) const {
    if (c < begin) return {0, 0, 0, 0};
    return Row(q, q, c, column);
  }
  __device__ float4 K(int c, int column) const { return Row(k, kept_k, c, column); }
  __device__ float4 V(int c, int column) const { return Row(v, kept_v, c, column); }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) Generic(const __grid_constant__ LightningParams p) {
  extern __shared__ float4 memory[];
  BlockShared& shared = *reinterpret_cast<BlockShared*>(memory);
  const int slices = p.dim / kSlice, thread = threadIdx.x, row = thread / 4, quad = thread % 4;
  const int unit = static_cast<int>(blockIdx.x) / slices, head = unit % p.heads;
  const int first_column = static_cast<int>(blockIdx.x) % slices * kSlice;
  const Sequence sequence = SequenceAt(p, unit / p.heads);
  if (sequence.total == 0) return;

  const float slope = p.slope[head], forget = BlockForget(slope);
  if (thread <= kB) shared.decay[thread] = DecayPower(slope, thread);
  const int64_t kept = static_cast<int64_t>(sequence.slot) * p.heads + head;
  float* const state = p.s + kept * p.dim * p.dim + first_column + quad * 4;
  for (int i = row; i < p.dim; i += kB) {
    shared.s[i * (kSlice / 4) + quad] =
        sequence.fresh ? float4{0, 0, 0, 0}
                       : *reinterpret_cast<const float4*>(state + static_cast<int64_t>(i) * p.dim);
  }
  __syncthreads();

  const int64_t num_blocks = sequence.num_blocks(), num_complete = sequence.num_complete();
  for (int64_t b = 0; b < num_blocks; ++b) {
    const int64_t first_row = sequence.first_row + b * kB;
    const int64_t at = first_row * p.row_stride + head * p.head_stride;
    const Block<T> block{
        .q = static_cast<const T*>(p.q) + at,
        .k = static_cast<const T*>(p.k) + at,
        .v = static_cast<const T*>(p.v) + at,
        .kept_k = static_cast<const T*>(p.k_rows) + kept * kB * p.dim,
        .kept_v = static_cast<const T*>(p.v_rows) + kept * kB * p.dim,
        .row_stride = p.row_stride,
        .dim = p.dim,
        .begin = b == 0 ? sequence.begin : 0,
        .end = static_cast<int>(min(static_cast<int64_t>(kB), sequence.total - b * kB))};
    const float4 o = OneBlock(
        shared, block, first_column,
        {.from_state = 1, .into_state = kB - 1, .forget = forget, .advance = block.end == kB});
    if (row >= block.begin && row < block.end) {
      T* out = static_cast<T*>(p.out) + (first_row + row) * p.out_row_stride +
               head * p.out_head_stride + first_column + quad * 4;
      out[0] = Narrow<T>(o.x);
      out[1] = Narrow<T>(o.y);
      out[2] = Narrow<T>(o.z);
      out[3] = Narrow<T>(o.w);
    }
  }
  if (num_complete == 0) return;
  for (int i = row; i < p.dim; i += kB) {
    *reinterpret_cast<float4*>(state + static_cast<int64_t>(i) * p.dim) =
        shared.s[i * (kSlice / 4) + quad];
  }
}

template <typename T>
void Launch(Queue& queue, const LightningParams& p) {
  const int bytes = static_cast<int>(sizeof(BlockShared)) + p.dim * kSlice * 4;
  Check(bytes <= 227 * 1024, "Lightning on a GPU: the head dim is too large");
  CheckCuda(
      cudaFuncSetAttribute(Generic<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
  const unsigned ctas = static_cast<unsigned>(p.num_seqs) * static_cast<unsigned>(p.heads) *
                        static_cast<unsigned>(p.dim / kSlice);
  Generic<T><<<ctas, kThreads, static_cast<size_t>(bytes), queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

void LaunchGeneric(Queue& queue, DType dtype, const LightningParams& p) {
  dtype == DType::kBF16 ? Launch<__nv_bfloat16>(queue, p) : Launch<float>(queue, p);
}

}  // namespace mm01::cuda
