// The sweeps of lightning_backward_sweep.cuh without tensor cores: float32, and head dims that the
// Hopper kernel does not take.
//
// A CTA does 16 columns of Z of a (document, head, sweep), block after block (lightning_block.cuh).
// Blocks are counted from where the sweep begins: one that goes back reads rows in reverse order,
// and is like one that goes on but for where its decay stands.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/lightning/lightning_backward_sweep.cuh"
#include "kernels/lightning/lightning_block.cuh"

namespace mm01::cuda {
namespace {

// Rows of a head from the sweep's next block on, in the order of the sweep.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  __device__ Rows(const SweepTensor& t, const SweepItem& item, int done)
      : stride(item.sweep.back ? -t.row_stride : t.row_stride) {
    const int64_t first = item.sweep.back ? item.segment.first_row + item.segment.count - 1 - done
                                          : item.segment.first_row + done;
    data = static_cast<T*>(t.data) + first * t.row_stride + item.head * t.head_stride;
  }
  __device__ float4 operator()(int row, int column) const {
    const auto x = Load<4>(data + row * stride + column);
    return {x[0], x[1], x[2], x[3]};
  }
};

// As OneBlock wants it.
template <typename T>
struct Block {
  Rows<const T> x, y, z;
  int dim, rows;

  __device__ Block(const SweepParams& p, const SweepItem& item, int done)
      : x(p.tensor[item.sweep.x], item, done),
        y(p.tensor[item.sweep.y], item, done),
        z(p.tensor[item.sweep.z], item, done),
        dim(p.dim),
        rows(min(kB, item.segment.count - done)) {}

  __device__ float4 Row(const Rows<const T>& from, int c, int column) const {
    return c < rows ? from(c, column) : float4{0, 0, 0, 0};
  }
  __device__ float4 Q(int c, int column) const { return Row(x, c, column); }
  __device__ float4 K(int c, int column) const { return Row(y, c, column); }
  __device__ float4 V(int c, int column) const { return Row(z, c, column); }
};

__device__ float4 TimesSiluSlope(const float4& u, const float4& pre) {
  return {u.x * SiluSlope(pre.x), u.y * SiluSlope(pre.y), u.z * SiluSlope(pre.z),
          u.w * SiluSlope(pre.w)};
}

// W [Y, 16 columns of Z] of this CTA, element by element: f(element, where it is in the state).
template <typename F>
__device__ void ForEachElement(int dim, bool transposed, int first_column, const F& f) {
  for (int i = static_cast<int>(threadIdx.x); i < dim * kSlice; i += kThreads) {
    const int y = i / kSlice, z = first_column + i % kSlice;
    f(i, transposed ? z * dim + y : y * dim + z);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) GenericSweeps(const __grid_constant__ SweepParams p) {
  extern __shared__ float4 memory[];
  BlockShared& shared = *reinterpret_cast<BlockShared*>(memory);
  const int slices = p.dim / kSlice, thread = threadIdx.x, row = thread / 4, quad = thread % 4;
  const SweepItem item(p, static_cast<int>(blockIdx.x) / slices);
  const Sweep& sweep = item.sweep;
  const int first_column = static_cast<int>(blockIdx.x) % slices * kSlice;
  const float slope = p.slope[item.head];
  if (thread <= kB) shared.decay[thread] = DecayPower(slope, thread);
  auto* const w = reinterpret_cast<float*>(shared.s);
  const float* from = item.StateIn(p);
  ForEachElement(p.dim, sweep.transposed, first_column,
                 [&](int i, int at) { w[i] = from == nullptr ? 0.0f : from[at]; });
  __syncthreads();

  for (int done = 0; done < item.segment.count; done += kB) {
    const Block<T> block(p, item, done);
    float4 u = OneBlock(shared, block, first_column,
                        {.from_state = sweep.back ? 0 : 1,
                         .into_state = sweep.back ? block.rows : block.rows - 1,
                         .forget = Forget(slope, block.rows),
                         .advance = true});
    if (row < block.rows) {
      if (sweep.pre >= 0) {
        const Rows<const T> pre(p.tensor[sweep.pre], item, done);
        u = TimesSiluSlope(u, pre(row, first_column + quad * 4));
      }
      const Rows<T> to(p.tensor[sweep.u], item, done);
      T* out = to.data + row * to.stride + first_column + quad * 4;
      out[0] = Narrow<T>(u.x);
      out[1] = Narrow<T>(u.y);
      out[2] = Narrow<T>(u.z);
      out[3] = Narrow<T>(u.w);
    }
  }
  float* to = item.StateOut(p);
  if (to == nullptr) return;
  ForEachElement(p.dim, sweep.transposed, first_column, [&](int i, int at) { to[at] = w[i]; });
}

template <typename T>
void Launch(Queue& queue, const SweepParams& p) {
  const int bytes = static_cast<int>(sizeof(BlockShared)) + p.dim * kSlice * 4;
  Check(bytes <= 227 * 1024, "Lightning on a GPU: the head dim is too large");
  CheckCuda(cudaFuncSetAttribute(GenericSweeps<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 227 * 1024));
  const auto ctas = static_cast<unsigned>(p.num_items()) * static_cast<unsigned>(p.dim / kSlice);
  GenericSweeps<T><<<ctas, kThreads, static_cast<size_t>(bytes), queue.stream()>>>(p);
  CheckLaunch();
}

}  // namespace

void LaunchSweepsGeneric(Queue& queue, DType dtype, const SweepParams& p) {
  dtype == DType::kBF16 ? Launch<__nv_bfloat16>(queue, p) : Launch<float>(queue, p);
}

}  // namespace mm01::cuda
