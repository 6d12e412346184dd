// Products of sorted rows with their experts' matrices for every type and shape: 32 rows by 64 rows
// of weights a block, all of it in float32.
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 32;     // of x
constexpr int kWeights = 64;  // rows of weights; with a gate, 32 of each matrix
constexpr int kStep = 32;     // inputs
constexpr int kBlock = 256;   // inputs that are added in one chain

struct PlainParams {
  const void* x;
  int64_t x_stride;
  const int32_t* token;  // the row of x for each row, or none: the row itself
  const void* w[2];      // with a gate, w1 and w3
  const bf16* scales[2];
  DType type;
  int group;
  int64_t n, k, num_scales;
  const RowGroup* groups;
  const int32_t* num_groups;
  float* out;  // [R, n]
};

__device__ __forceinline__ float Weigh(const PlainParams& p, int matrix, int64_t row, int64_t k) {
  const int64_t at = row * p.k + k;
  if (p.type == DType::kF32) return static_cast<const float*>(p.w[matrix])[at];
  if (p.type == DType::kBF16) return Load(static_cast<const bf16*>(p.w[matrix]) + at);
  return static_cast<float>(static_cast<const int8_t*>(p.w[matrix])[at]) *
         Load(p.scales[matrix] + row * p.num_scales + k / p.group);
}

template <typename T, bool kGated>
__global__ void __launch_bounds__(kThreads) PlainProduct(const __grid_constant__ PlainParams p) {
  // The block's tile of 32 rows: number blockIdx.x of all groups.
  int tile = blockIdx.x, at = 0;
  const int num_groups = *p.num_groups;
  RowGroup group;
  for (;; ++at) {
    if (at == num_groups) return;
    group = p.groups[at];
    const int tiles = (group.rows + kRows - 1) / kRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const int rows = min(group.rows - tile * kRows, kRows);
  const int64_t first_row = group.first + tile * kRows;
  constexpr int kOutputs = kGated ? kWeights / 2 : kWeights;
  const int64_t first_n = static_cast<int64_t>(blockIdx.y) * kOutputs;

  __shared__ float xs[kStep][kRows + 1], ws[kStep][kWeights + 1];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float sum[2][4] = {}, part[2][4] = {};
  for (int64_t k = 0; k < p.k; k += kStep) {
    __syncthreads();
    const bool inside = k + lane < p.k;
    for (int r = warp; r < kRows; r += kThreads / 32) {
      float v = 0.0f;
      if (inside && r < rows) {
        const int64_t row = p.token ? p.token[first_row + r] : first_row + r;
        v = Load(static_cast<const T*>(p.x) + row * p.x_stride + k + lane);
      }
      xs[lane][r] = v;
    }
    for (int r = warp; r < kWeights; r += kThreads / 32) {
      const int matrix = kGated ? r / kOutputs : 0;
      const int64_t n = first_n + r % kOutputs;
      ws[lane][r] = inside && n < p.n ? Weigh(p, matrix, group.expert * p.n + n, k + lane) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kStep; ++i) {
      const float x[2] = {xs[i][ty], xs[i][ty + 16]};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float w = ws[i][tx + 16 * j];
        part[0][j] = fmaf(x[0], w, part[0][j]);
        part[1][j] = fmaf(x[1], w, part[1][j]);
      }
    }
    if ((k + kStep) % kBlock == 0 || k + kStep >= p.k) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[j / 4][j % 4] += part[j / 4][j % 4];
        part[j / 4][j % 4] = 0.0f;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (ty + 16 * i >= rows) continue;
    float* const out = p.out + (first_row + ty + 16 * i) * p.n;
#pragma unroll
    for (int j = 0; j < (kGated ? 2 : 4); ++j) {
      const int64_t n = first_n + tx + 16 * j;
      if (n >= p.n) continue;
      const float v = sum[i][j];
      if constexpr (kGated) {
        out[n] = v / (1.0f + expf(-v)) * sum[i][j + 2];
      } else {
        out[n] = v;
      }
    }
  }
}

template <typename T, bool kGated>
void LaunchPlain(Queue& queue, const PlainParams& p, const Routing& r) {
  constexpr int kOutputs = kGated ? kWeights / 2 : kWeights;
  const int64_t tiles = r.num_rows() / kRows + r.most_groups();
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>((p.n + kOutputs - 1) / kOutputs));
  PlainProduct<T, kGated><<<grid, kThreads, 0, queue.stream()>>>(p);
  CheckLaunch();
}

PlainParams Common(const ExpertStack& e, const Routing& r) {
  PlainParams p{};
  p.type = e.type.dtype;
  p.group = static_cast<int>(e.type.group);
  p.groups = r.groups;
  p.num_groups = r.num_groups;
  return p;
}

int64_t NumScales(const ExpertStack& e, int64_t k) {
  return e.type.group > 0 ? (k + e.type.group - 1) / e.type.group : 0;
}

}  // namespace

void PlainUp(Queue& queue, const Tensor& x, const ExpertStack& e, const Routing& r, float* h) {
  PlainParams p = Common(e, r);
  p.x = x.data;
  p.x_stride = x.stride[0];
  p.token = r.token;
  p.w[0] = e.w1, p.w[1] = e.w3;
  p.scales[0] = e.scales1, p.scales[1] = e.scales3;
  p.n = e.inner;
  p.k = e.width;
  p.num_scales = NumScales(e, e.width);
  p.out = h;
  WithElement(x, [&]<typename T>() { LaunchPlain<T, true>(queue, p, r); });
}

void PlainDown(Queue& queue, const float* h, const ExpertStack& e, const Routing& r, float* y) {
  PlainParams p = Common(e, r);
  p.x = h;
  p.x_stride = e.inner;
  p.w[0] = e.w2;
  p.scales[0] = e.scales2;
  p.n = e.width;
  p.k = e.inner;
  p.num_scales = NumScales(e, e.inner);
  p.out = y;
  LaunchPlain<float, false>(queue, p, r);
}

}  // namespace mm01::cuda
