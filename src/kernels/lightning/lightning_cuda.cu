// Lightning on a GPU: which kernel takes a call, the rows that the slot keeps, and the two ops for
// ranks that split a sequence.
#include "kernels/lightning/lightning_cuda.h"

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/lightning/lightning_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kB = kLightningBlock;
constexpr int kThreads = 256;

LightningParams ParamsOf(const LightningArgs& a) {
  Check(a.q.rank == 3 && a.q.shape == a.k.shape && a.q.shape == a.v.shape &&
            a.q.shape == a.out.shape && a.slope.dim(0) == a.q.dim(1),
        "Lightning: q, k, v, out [T, H, K] and slope [H] disagree");
  Check(a.q.stride == a.k.stride && a.q.stride == a.v.stride && a.q.stride[2] == 1 &&
            a.out.stride[2] == 1,
        "Lightning: q, k and v differ in strides");
  Check((a.q.dtype == DType::kF32 || a.q.dtype == DType::kBF16) && a.k.dtype == a.q.dtype &&
            a.v.dtype == a.q.dtype && a.out.dtype == a.q.dtype &&
            a.state.k_rows.dtype == a.q.dtype && a.state.v_rows.dtype == a.q.dtype,
        "Lightning: q, k, v, out and the slot's rows are all float32 or all bf16");
  const int64_t heads = a.q.dim(1), dim = a.q.dim(2), num_seqs = a.slot.dim(0);
  Check(a.cu_seqlens.dim(0) == num_seqs + 1 && a.position.dim(0) == num_seqs,
        "Lightning: N disagrees");
  const LightningState& state = a.state;
  Check(dim % 16 == 0 && state.s.rank == 4 && state.s.dim(1) == heads && state.s.dim(2) == dim &&
            state.s.dim(3) == dim,
        "Lightning: the state is of another shape");
  Check(state.k_rows.size() == state.s.dim(0) * heads * kB * dim &&
            state.v_rows.size() == state.k_rows.size(),
        "Lightning: the slot's rows are of another shape");
  return {.q = a.q.data,
          .k = a.k.data,
          .v = a.v.data,
          .out = a.out.data,
          .row_stride = a.q.stride[0],
          .head_stride = a.q.stride[1],
          .out_row_stride = a.out.stride[0],
          .out_head_stride = a.out.stride[1],
          .slope = a.slope.As<const float, 1>().data,
          .cu_seqlens = a.cu_seqlens.As<const int64_t, 1>().data,
          .position = a.position.As<const int64_t, 1>().data,
          .slot = a.slot.As<const int32_t, 1>().data,
          .s = state.s.As<float, 4>().data,
          .k_rows = state.k_rows.data,
          .v_rows = state.v_rows.data,
          .rows = a.q.dim(0),
          .num_slots = state.s.dim(0),
          .num_seqs = static_cast<int32_t>(num_seqs),
          .heads = static_cast<int32_t>(heads),
          .dim = static_cast<int32_t>(dim),
          .settled = a.settled};
}

// Do rows of every tensor of the call begin at multiples of `bytes`?
bool Aligned(const LightningArgs& a, int64_t bytes) {
  const auto fits = [&](const Tensor& t) {
    const int64_t size = SizeOf(t.dtype);
    return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 &&
           t.stride[0] * size % bytes == 0 && t.stride[1] * size % bytes == 0;
  };
  return fits(a.q) && fits(a.k) && fits(a.v) && fits(a.out);
}

// The rows after the last border, into the slot. After the kernel that reads the slot's old rows.
template <typename T>
__global__ void KeepRows(const __grid_constant__ LightningParams p) {
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const Sequence sequence = SequenceAt(p, static_cast<int>(blockIdx.x) / p.heads);
  const int64_t border = sequence.num_complete() * kB;
  const int begin = border == 0 ? sequence.begin : 0;
  const int end = static_cast<int>(sequence.total - border);
  const int64_t kept = (static_cast<int64_t>(sequence.slot) * p.heads + head) * kB * p.dim;
  const int64_t first = (sequence.first_row + border) * p.row_stride + head * p.head_stride;
  for (int i = begin * p.dim + static_cast<int>(threadIdx.x); i < end * p.dim; i += kThreads) {
    const int64_t at = first + i / p.dim * p.row_stride + i % p.dim;
    static_cast<T*>(p.k_rows)[kept + i] = static_cast<const T*>(p.k)[at];
    static_cast<T*>(p.v_rows)[kept + i] = static_cast<const T*>(p.v)[at];
  }
}

// A CTA does a row of S: out[i, j] = exp(-slope m) S[i, j] + sum over r < m of
// exp(-slope (m-1-r)) k_r[i] v_r[j].
template <typename T>
__global__ void FinalState(const float* s, const T* k_rows, const T* v_rows, const float* slopes,
                           int dim, bool fresh, int m, float* out) {
  __shared__ float k[kB];
  const int i = blockIdx.x, head = blockIdx.y;
  const float slope = slopes[head], decay = DecayPower(slope, m);
  const int64_t rows = static_cast<int64_t>(head) * kB * dim;
  const int64_t state = (static_cast<int64_t>(head) * dim + i) * dim;
  if (threadIdx.x < m) {
    const int r = threadIdx.x;
    k[r] = Widen(k_rows[rows + r * dim + i]) * DecayPower(slope, m - 1 - r);
  }
  __syncthreads();
  for (int j = threadIdx.x; j < dim; j += kThreads) {
    float sum = fresh ? 0.0f : s[state + j] * decay;
    for (int r = 0; r < m; ++r) sum = fmaf(k[r], Widen(v_rows[rows + r * dim + j]), sum);
    out[state + j] = sum;
  }
}

// A CTA does 64 rows and 64 columns of a head; thread t rows 4 (t / 16) .. + 3, columns
// t % 16 + 16 j.
template <typename T>
__global__ void AddIncoming(const T* q, const float* slopes, const float* s, T* out, int64_t rows,
                            int dim, int64_t row_stride, int64_t head_stride,
                            int64_t out_row_stride, int64_t out_head_stride) {
  constexpr int kChunk = 16;
  __shared__ float q_part[64][kChunk + 1], s_part[kChunk][64];
  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * 64;
  const int first_column = static_cast<int>(blockIdx.y) * 64, head = blockIdx.z;
  float x[4][4] = {};
  for (int chunk = 0; chunk < dim; chunk += kChunk) {
    for (int i = thread; i < 64 * kChunk; i += kThreads) {
      const int64_t row = first_row + i / kChunk;
      q_part[i / kChunk][i % kChunk] =
          row < rows ? Widen(q[row * row_stride + head * head_stride + chunk + i % kChunk]) : 0.0f;
      const int k = i / 64, j = first_column + i % 64;
      s_part[k][i % 64] =
          j < dim ? s[(static_cast<int64_t>(head) * dim + chunk + k) * dim + j] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          x[i][j] = fmaf(q_part[ty * 4 + i][k], s_part[k][tx + j * 16], x[i][j]);
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_row + ty * 4 + i;
    if (row >= rows) break;
    const auto decay =
        static_cast<float>(exp(-static_cast<double>(slopes[head]) * static_cast<double>(row + 1)));
    T* to = out + row * out_row_stride + head * out_head_stride;
    for (int j = 0; j < 4; ++j) {
      const int column = first_column + tx + j * 16;
      if (column < dim) to[column] = Narrow<T>(fmaf(decay, x[i][j], Widen(to[column])));
    }
  }
}

template <typename T>
void LaunchFinalState(Queue& queue, const LightningState& state, int64_t slot, int64_t position,
                      const Tensor& slope, const Tensor& out) {
  const int64_t heads = out.dim(0), dim = out.dim(1);
  const int64_t rows = slot * heads * kB * dim;
  const dim3 grid(static_cast<unsigned>(dim), static_cast<unsigned>(heads));
  FinalState<T><<<grid, kThreads, 0, queue.stream()>>>(
      state.s.As<float, 4>().data + slot * heads * dim * dim,
      static_cast<const T*>(state.k_rows.data) + rows,
      static_cast<const T*>(state.v_rows.data) + rows, slope.As<const float, 1>().data,
      static_cast<int>(dim), position < kB, static_cast<int>(position % kB),
      out.As<float, 3>().data);
  CheckLaunch();
}

template <typename T>
void LaunchAddIncoming(Queue& queue, const Tensor& q, const Tensor& slope, const Tensor& s_in,
                       const Tensor& out) {
  const int64_t rows = q.dim(0), heads = q.dim(1), dim = q.dim(2);
  const dim3 grid(static_cast<unsigned>((rows + 63) / 64), static_cast<unsigned>((dim + 63) / 64),
                  static_cast<unsigned>(heads));
  AddIncoming<T><<<grid, kThreads, 0, queue.stream()>>>(
      static_cast<const T*>(q.data), slope.As<const float, 1>().data,
      s_in.As<const float, 3>().data, static_cast<T*>(out.data), rows, static_cast<int>(dim),
      q.stride[0], q.stride[1], out.stride[0], out.stride[1]);
  CheckLaunch();
}

}  // namespace

void Lightning(Queue& queue, const LightningArgs& args) {
  const LightningParams p = ParamsOf(args);
  if (p.rows == 0) return;
  const DType dtype = args.q.dtype;
  const bool aligned = Aligned(args, 16);
  if (args.max_rows == 1 && aligned && (p.dim == 64 || p.dim == 128)) {
    LaunchDecode(queue, dtype, p);
    return;
  }
  if (dtype == DType::kBF16 && p.dim == 128 && aligned) {
    LaunchPrefill(queue, p);
  } else {
    Check(Aligned(args, 4 * SizeOf(dtype)),
          "Lightning: rows must begin at multiples of 4 elements");
    LaunchGeneric(queue, dtype, p);
  }
  const auto ctas = static_cast<unsigned>(p.num_seqs * p.heads);
  if (dtype == DType::kBF16) {
    KeepRows<__nv_bfloat16><<<ctas, kThreads, 0, queue.stream()>>>(p);
  } else {
    KeepRows<float><<<ctas, kThreads, 0, queue.stream()>>>(p);
  }
  CheckLaunch();
}

void LightningFinalState(Queue& queue, const LightningState& state, int64_t slot, int64_t position,
                         const Tensor& slope, const Tensor& out) {
  Check(state.s.dim(1) == out.dim(0) && state.s.dim(2) == out.dim(1) && out.dim(1) == out.dim(2),
        "LightningFinalState: shapes disagree");
  if (state.k_rows.dtype == DType::kBF16) {
    LaunchFinalState<__nv_bfloat16>(queue, state, slot, position, slope, out);
  } else {
    LaunchFinalState<float>(queue, state, slot, position, slope, out);
  }
}

void LightningAddIncoming(Queue& queue, const Tensor& q, const Tensor& slope, const Tensor& s_in,
                          const Tensor& out) {
  Check(out.shape == q.shape && out.dtype == q.dtype && s_in.dim(0) == q.dim(1) &&
            s_in.dim(1) == q.dim(2),
        "LightningAddIncoming: shapes disagree");
  if (q.dim(0) == 0) return;
  if (q.dtype == DType::kBF16) {
    LaunchAddIncoming<__nv_bfloat16>(queue, q, slope, s_in, out);
  } else {
    LaunchAddIncoming<float>(queue, q, slope, s_in, out);
  }
}

}  // namespace mm01::cuda
