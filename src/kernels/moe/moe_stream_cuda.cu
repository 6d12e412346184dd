// Few rows: what takes time is that the weights of the experts touched come from memory once.
//
// One block a multiprocessor, and one thread of it keeps 128 KB of weights on their way through a
// ring of stages. A stage is two slabs of 16 rows of weights (of w1 and of w3, or both of w2) by
// 512 bytes, and the same inputs of up to eight rows of x. Weights are the first operand of
// mma.m16n8k16, the rows of x the second; eight warps share the inputs of a stage, for int8, which
// has to be decoded, sixteen.
//
// An expert of more than eight rows is walked several times, by neighbouring blocks at about the
// same time, so its weights still come from memory once.
//
// The scales of int8 weights come the same way, those of an item in one piece, into one of two
// places that items take in turn.
//
// The first weights of w2 are asked for before h is there: a block that starts while others still
// multiply by w1 does not let the memory rest.
#include <algorithm>
#include <bit>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/cuda/decode_int8.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

constexpr int kSlabRows = 16;
constexpr int kStepBytes = 512;  // of a row of weights
constexpr int kSlabBytes = kSlabRows * kStepBytes;
constexpr int kItemRows = 8;  // of x
constexpr int kSumFloats = kSlabRows * kItemRows;

template <bool kInt8>
struct Sizes {
  static constexpr int kChains = kInt8 ? 16 : 8;  // warps that multiply
  static constexpr int kThreads = 32 * (kChains + 1);
  static constexpr int kStep = kInt8 ? kStepBytes : kStepBytes / 2;  // inputs
  // Rows of x stand apart by what puts a warp's reads into different banks.
  static constexpr int kPitchX = kStep * 2 + (kInt8 ? 32 : 16);
  static constexpr int kStage = 2 * kSlabBytes + (kItemRows * kPitchX + 1023) / 1024 * 1024;
  static constexpr int kStages = kInt8 ? 7 : 9;                   // at most
  static constexpr int kSums = 2 * kChains * 2 * kSumFloats * 4;  // two sets, one being read
  static constexpr int kBarriers = (2 * kStages + 2) * 8;

  // With this many stages and scales of so many bytes a slab.
  static constexpr int Bytes(int stages, int scale_bytes) {
    return 1024 + stages * kStage + 4 * scale_bytes + kSums + kBarriers;
  }
};
constexpr int kMostShared = 227 * 1024;

struct StreamParams {
  CUtensorMap w[2];  // of the two slabs: [rows of all experts][chunk of 128 bytes]
  const bf16* scales[2];
  const bf16* x;
  int64_t x_stride;
  const int32_t* token;  // the row of x for each row, or none: the row itself
  const RowGroup* groups;
  const int32_t* num_groups;
  int n, k, log_group, num_scales;
  int scale_bytes;  // of the 16 rows of a slab
  int num_stages;
  void* out;  // [R, n]  gated: bf16; else float32
};

// Rows of weights an item: 16 of each matrix, or 32 of one.
template <bool kGated>
constexpr int kItemWeights = kGated ? kSlabRows : 2 * kSlabRows;

struct Item {
  int expert, first_n, rows;
  int64_t first_row;
};

// The items of one block. Blocks of rows of one expert go side by side through the same weights.
template <bool kGated>
class ItemWalk {
 public:
  __device__ explicit ItemWalk(const StreamParams& p)
      : p_(p),
        tiles_(p.n / kItemWeights<kGated>),
        num_groups_(__ldcg(p.num_groups)),
        id_(blockIdx.x) {
    Load();  // there is always one
  }

  __device__ bool Next(Item& item) {
    while (at_ < num_groups_ && id_ >= tiles_ * blocks_) {
      id_ -= tiles_ * blocks_;
      if (++at_ < num_groups_) Load();
    }
    if (at_ >= num_groups_) return false;
    const int block = id_ % blocks_;
    item.expert = group_.expert;
    item.first_n = id_ / blocks_ * kItemWeights<kGated>;
    item.first_row = group_.first + block * kItemRows;
    item.rows = min(group_.rows - block * kItemRows, kItemRows);
    id_ += gridDim.x;
    return true;
  }

 private:
  __device__ void Load() {
    // Read ahead of the kernel before this one, so not from a cache that may be older.
    const int4 v = __ldcg(reinterpret_cast<const int4*>(p_.groups) + at_);
    group_.expert = v.x;
    group_.rows = v.y;
    group_.first = static_cast<int64_t>(v.w) << 32 | static_cast<uint32_t>(v.z);
    blocks_ = (group_.rows + kItemRows - 1) / kItemRows;
  }

  const StreamParams& p_;
  int tiles_, num_groups_;
  int id_;  // of the next item, counted from the group's first
  int at_ = 0;
  RowGroup group_;
  int blocks_ = 1;
};

struct Ring {
  int num_stages;
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == num_stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void BulkLoad(void* to, const void* from, uint32_t bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

struct Shared {
  uint8_t* stages;
  uint8_t* scales;  // [item % 2][slab][row][group]
  float* sums;
  uint64_t* full;
  uint64_t* empty;
  uint64_t* scales_empty;  // [item % 2]
};

// One warp's work: what lane 0 asks for are weights and scales, what the others do are rows of x.
template <bool kGated, bool kInt8>
class Producer {
 public:
  using S = Sizes<kInt8>;

  __device__ Producer(const StreamParams& p, const Shared& s) : p_(p), s_(s), ring_{p.num_stages} {}

  __device__ void Run() {
    ItemWalk<kGated> walk(p_);
    Item item;
    bool more = walk.Next(item);
    int early = 0;  // stages whose weights are on their way before x is known
    if (more) {
      early = min(p_.k / S::kStep, p_.num_stages);
      for (int i = 0; i < early; ++i) Weights(item, 0, i * S::kStep, i);
    }
    if (!kGated) AwaitEarlierKernels();
    for (int at = 0; more; ++at) {
      const int lane = threadIdx.x % 32;
      const bf16* x = p_.x;
      if (lane < item.rows) {
        const int64_t row = item.first_row + lane;
        x += (p_.token ? p_.token[row] : row) * p_.x_stride;
      }
      for (int k = 0; k < p_.k; k += S::kStep) {
        if (early > 0) {
          --early;
        } else {
          BarrierWait(&s_.empty[ring_.stage], ring_.parity ^ 1);
          Weights(item, at, k, ring_.stage);
        }
        __syncwarp();  // the barrier knows of these bytes before they come
        if (lane < item.rows) {
          BulkLoad(Stage(ring_.stage) + 2 * kSlabBytes + lane * S::kPitchX, x + k, S::kStep * 2,
                   &s_.full[ring_.stage]);
        }
        ring_.Advance();
      }
      more = walk.Next(item);
    }
  }

 private:
  __device__ uint8_t* Stage(int stage) const { return s_.stages + stage * S::kStage; }

  // Of the block's item number `at`.
  __device__ __forceinline__ void Weights(const Item& item, int at, int k, int stage) const {
    constexpr int kChunk = kInt8 ? 128 : 64;  // inputs in 128 bytes
    if (threadIdx.x % 32 != 0) return;
    const int first = item.expert * p_.n + item.first_n;
    const int second = kGated ? first : first + kSlabRows;
    uint64_t* const barrier = &s_.full[stage];
    const bool scales = kInt8 && k == 0;
    if (scales) BarrierWait(&s_.scales_empty[at % 2], at / 2 % 2 ^ 1);
    BarrierExpect(barrier,
                  2 * kSlabBytes + item.rows * S::kStep * 2 + (scales ? 2 * p_.scale_bytes : 0));
    TmaLoad(Stage(stage), &p_.w[0], barrier, 0, first, k / kChunk);
    TmaLoad(Stage(stage) + kSlabBytes, &p_.w[1], barrier, 0, second, k / kChunk);
    if (scales) {
      uint8_t* const to = s_.scales + at % 2 * 2 * p_.scale_bytes;
      BulkLoad(to, p_.scales[0] + static_cast<int64_t>(first) * p_.num_scales, p_.scale_bytes,
               barrier);
      BulkLoad(to + p_.scale_bytes, p_.scales[1] + static_cast<int64_t>(second) * p_.num_scales,
               p_.scale_bytes, barrier);
    }
  }

  const StreamParams& p_;
  const Shared& s_;
  Ring ring_;
};

// Where a lane finds its row of 16, in the 32 bytes from piece `piece` of chunk `chunk` on.
__device__ __forceinline__ uint32_t SlabAddress(const uint8_t* slab, int chunk, int piece) {
  const int lane = threadIdx.x % 32;
  return SharedAddress(slab) + chunk * kSlabRows * 128 +
         Swizzle128(lane % 16, (piece + lane / 16) * 16);
}

// sum += w x over this warp's 32 inputs of a stage.
__device__ __forceinline__ void MultiplyBf16(const uint8_t* stage, int warp, float (&sum)[2][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t x = SharedAddress(stage + 2 * kSlabBytes) + lane % 8 * Sizes<false>::kPitchX +
                     warp * 64 + lane / 8 * 16;
  uint32_t b[4];
  LoadMatrix(x, b[0], b[1], b[2], b[3]);
#pragma unroll
  for (int slab = 0; slab < 2; ++slab) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a[4];
      LoadMatrix(SlabAddress(stage + slab * kSlabBytes, warp / 2, warp % 2 * 4 + 2 * i), a[0], a[1],
                 a[2], a[3]);
      Mma(sum[slab], a, b[2 * i], b[2 * i + 1]);
    }
  }
}

// sum += w x over this warp's 32 inputs of a stage, which are of one group. `scales` are those of
// this lane's first row of the first slab, from that group on.
__device__ __forceinline__ void MultiplyInt8(const StreamParams& p, const uint8_t* stage, int warp,
                                             const uint16_t* scales, float (&sum)[2][4]) {
  const int lane = threadIdx.x % 32;
  const uint8_t* const x =
      stage + 2 * kSlabBytes + lane / 4 * Sizes<true>::kPitchX + warp * 64 + lane % 4 * 8;
  const uint2 b[2] = {*reinterpret_cast<const uint2*>(x), *reinterpret_cast<const uint2*>(x + 32)};
  uint32_t q[2][4];
#pragma unroll
  for (int slab = 0; slab < 2; ++slab) {
    LoadMatrix(SlabAddress(stage + slab * kSlabBytes, warp / 4, warp % 4 * 2), q[slab][0],
               q[slab][1], q[slab][2], q[slab][3]);
  }
#pragma unroll
  for (int slab = 0; slab < 2; ++slab) {
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = q[slab][2 * i], high = q[slab][2 * i + 1];
      const uint32_t a[4] = {DecodeInt8<0>(low), DecodeInt8<0>(high), DecodeInt8<1>(low),
                             DecodeInt8<1>(high)};
      Mma(part, a, b[i].x, b[i].y);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t scale = scales[(slab * kSlabRows + 8 * h) * p.num_scales];
      const float by = __uint_as_float(scale << 16);
#pragma unroll
      for (int c = 2 * h; c < 2 * h + 2; ++c) sum[slab][c] = fmaf(part[c], by, sum[slab][c]);
    }
  }
}

// Adds up the chains of an item and stores what they make.
template <bool kGated, int kChains>
__device__ __forceinline__ void Finish(const StreamParams& p, const Item& item, const float* sums) {
  const int thread = threadIdx.x;
  const auto total = [&](int slab, int at) {
    float sum = sums[slab * kSumFloats + at];
#pragma unroll
    for (int c = 1; c < kChains; ++c) sum += sums[(2 * c + slab) * kSumFloats + at];
    return sum;
  };
  if (thread >= 2 * kSumFloats) return;
  const int at = thread % kSumFloats, slab = thread / kSumFloats;
  const int n = at / kItemRows, row = at % kItemRows;
  if (row >= item.rows) return;
  const int64_t out = (item.first_row + row) * p.n + item.first_n + n;
  if constexpr (kGated) {
    if (slab != 0) return;
    const float gate = total(0, at), up = total(1, at);
    Store(static_cast<bf16*>(p.out) + out, gate * Sigmoid(gate) * up);
  } else {
    static_cast<float*>(p.out)[out + slab * kSlabRows] = total(slab, at);
  }
}

template <bool kGated, bool kInt8>
__device__ __forceinline__ void Consume(const StreamParams& p, const Shared& s) {
  using S = Sizes<kInt8>;
  if (!kGated) AwaitEarlierKernels();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ItemWalk<kGated> walk(p);
  Ring ring{p.num_stages};
  Item item;
  int set = 0;
  while (walk.Next(item)) {
    float sum[2][4] = {};
    [[maybe_unused]] const uint16_t* const scales =
        reinterpret_cast<const uint16_t*>(s.scales + set * 2 * p.scale_bytes) +
        lane / 4 * p.num_scales;
    for (int k = 0; k < p.k; k += S::kStep) {
      BarrierWait(&s.full[ring.stage], ring.parity);
      const uint8_t* const stage = s.stages + ring.stage * S::kStage;
      if constexpr (kInt8) {
        MultiplyInt8(p, stage, warp, scales + ((k + warp * 32) >> p.log_group), sum);
      } else {
        MultiplyBf16(stage, warp, sum);
      }
      ProxyFence();  // the stage has been read
      __syncwarp();
      if (lane == 0) BarrierArrive(&s.empty[ring.stage]);
      ring.Advance();
    }
    if (kInt8 && lane == 0) BarrierArrive(&s.scales_empty[set]);
    float* const mine = s.sums + (set * S::kChains + warp) * 2 * kSumFloats;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = lane / 4 + i % 2 * 8, row = lane % 4 * 2;
      *reinterpret_cast<float2*>(mine + i / 2 * kSumFloats + n * kItemRows + row) =
          make_float2(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1]);
    }
    // Whoever writes this set again has passed the barrier of the next item, after the reads here.
    NamedBarrierSync<1, 32 * S::kChains>();
    Finish<kGated, S::kChains>(p, item, s.sums + set * S::kChains * 2 * kSumFloats);
    set ^= 1;
  }
}

template <bool kGated, bool kInt8>
__global__ void __launch_bounds__(Sizes<kInt8>::kThreads, 1)
    Stream(const __grid_constant__ StreamParams p) {
  using S = Sizes<kInt8>;
  extern __shared__ uint8_t memory[];
  Shared s;
  s.stages = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  s.scales = s.stages + p.num_stages * S::kStage;
  s.sums = reinterpret_cast<float*>(s.scales + 4 * p.scale_bytes);
  s.full = reinterpret_cast<uint64_t*>(s.sums + S::kSums / 4);
  s.empty = s.full + S::kStages;
  s.scales_empty = s.empty + S::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.num_stages; ++i) {
      BarrierInit(&s.full[i], 1);
      BarrierInit(&s.empty[i], S::kChains);
    }
    for (int i = 0; i < 2; ++i) BarrierInit(&s.scales_empty[i], S::kChains);
    BarrierInitFence();
  }
  __syncthreads();
  // Blocks that multiply by w2 read which experts there are before they wait. Once all blocks here
  // have waited, that is known.
  if (kGated) AwaitEarlierKernels();
  AllowNextKernel();
  if (threadIdx.x >= 32 * S::kChains) {
    Producer<kGated, kInt8>(p, s).Run();
  } else {
    Consume<kGated, kInt8>(p, s);
  }
}

template <bool kGated, bool kInt8>
void LaunchStream(Queue& queue, StreamParams p, int64_t num_rows) {
  using S = Sizes<kInt8>;
  static const bool enlarged = [] {
    CheckCuda(cudaFuncSetAttribute(Stream<kGated, kInt8>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared));
    return true;
  }();
  static_cast<void>(enlarged);
  p.num_stages = std::min<int>(S::kStages, (kMostShared - S::Bytes(0, p.scale_bytes)) / S::kStage);
  Check(p.num_stages >= 2, "Moe: too many scales a row for few rows");
  const int64_t items = num_rows * (p.n / kItemWeights<kGated>);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(items, Multiprocessors()));
  LaunchOverlapped(queue, Stream<kGated, kInt8>, blocks, S::kThreads,
                   S::Bytes(p.num_stages, p.scale_bytes), p);
}

CUtensorMap MapOfW(const void* w, bool int8, int64_t rows, int64_t k) {
  const int64_t chunk = int8 ? 128 : 64;
  return MakeTensorMap(
      w, {.type = int8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
          .dims = {chunk, rows, k / chunk},
          .strides = {k * 128 / chunk, 128},
          .box = {static_cast<int>(chunk), kSlabRows, kStepBytes / 128}});
}

StreamParams Common(const ExpertStack& e, const Routing& r, int64_t n, int64_t k) {
  StreamParams p{};
  p.groups = r.groups;
  p.num_groups = r.num_groups;
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  if (e.type.group > 0) {
    p.log_group = std::countr_zero(static_cast<uint64_t>(e.type.group));
    p.num_scales = static_cast<int>(k / e.type.group);
    p.scale_bytes = kSlabRows * p.num_scales * 2;
  }
  return p;
}

}  // namespace

void StreamUp(Queue& queue, const Tensor& x, const ExpertStack& e, const Routing& r, bf16* h) {
  const bool int8 = e.type.dtype == DType::kI8;
  const int64_t rows = r.num_experts * e.inner;
  StreamParams p = Common(e, r, e.inner, e.width);
  p.w[0] = MapOfW(e.w1, int8, rows, e.width);
  p.w[1] = MapOfW(e.w3, int8, rows, e.width);
  p.scales[0] = e.scales1;
  p.scales[1] = e.scales3;
  p.x = x.As<const bf16, 2>().data;
  p.x_stride = x.stride[0];
  p.token = r.token;
  p.out = h;
  if (int8) {
    LaunchStream<true, true>(queue, p, r.num_rows());
  } else {
    LaunchStream<true, false>(queue, p, r.num_rows());
  }
}

void StreamDown(Queue& queue, const bf16* h, const ExpertStack& e, const Routing& r, float* y) {
  const bool int8 = e.type.dtype == DType::kI8;
  StreamParams p = Common(e, r, e.width, e.inner);
  p.w[0] = p.w[1] = MapOfW(e.w2, int8, r.num_experts * e.width, e.inner);
  p.scales[0] = p.scales[1] = e.scales2;
  p.x = h;
  p.x_stride = e.inner;
  p.out = y;
  if (int8) {
    LaunchStream<false, true>(queue, p, r.num_rows());
  } else {
    LaunchStream<false, false>(queue, p, r.num_rows());
  }
}

}  // namespace mm01::cuda
