#include "kernels/cuda/grouped_gemm.cuh"

#include <bit>

#include "kernels/cuda/dense_gemm.h"

namespace mm01::cuda {
namespace {

CUtensorMap MapOfW(const GroupedGemmArgs& a) {
  const bool int8 = a.group > 0;
  const int64_t row_bytes = a.k * (int8 ? 1 : 2);
  const int64_t rows = (a.num_experts - 1) * a.expert_rows + a.n;
  const auto type = int8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto swizzle = int8 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  if (a.transposed) {
    return MakeTensorMap(a.w, {.dims = {a.n, (a.num_experts - 1) * a.expert_rows + a.k},
                               .strides = {2 * a.n},
                               .box = {kTileW / 2, kStepK}});
  }
  if (!a.w_up) {
    return MakeTensorMap(a.w, {.type = type,
                               .dims = {a.k, rows},
                               .strides = {row_bytes},
                               .box = {kStepK, kTileW},
                               .swizzle = swizzle});
  }
  // Both matrices as one tensor: eight rows of one and eight of the other take turns.
  const auto* low = static_cast<const uint8_t*>(std::min(a.w, a.w_up));
  const auto* high = static_cast<const uint8_t*>(std::max(a.w, a.w_up));
  return MakeTensorMap(low, {.type = type,
                             .dims = {a.k, 8, 2, rows / 8},
                             .strides = {row_bytes, high - low, 8 * row_bytes},
                             .box = {kStepK, 8, 2, kTileW / 16},
                             .swizzle = swizzle});
}

bool IsAligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

void CheckShapes(const GroupedGemmArgs& a) {
  const int64_t multiple = a.group > 0 ? 16 : 8;
  Check(a.n > 0 && a.k > 0 && a.n % multiple == 0 && a.k % multiple == 0,
        "GroupedGemm takes N and K in multiples of 8, for int8 of 16");
  Check(a.group == 0 || a.group == 32 || a.group == 64 || a.group == 128,
        "GroupedGemm takes groups of 32, 64 or 128");
  Check(IsAligned(a.x, 2 * a.x_stride) && IsAligned(a.w, 0) && IsAligned(a.w_up, 0) &&
            IsAligned(a.out, a.out_stride * SizeOf(a.out_type)),
        "GroupedGemm takes rows that begin at multiples of 16 bytes");
  Check(a.out_type == DType::kBF16 || (a.out_type == DType::kF32 && !a.w_up && a.group == 0),
        "GroupedGemm does not write this type");
  Check(!a.transposed ||
            (a.k % kStepK == 0 && a.out_type == DType::kBF16 && !a.w_up && !a.silu && a.group == 0),
        "GroupedGemm takes transposed weights of bf16 with K in multiples of 64");
  Check(a.expert_rows >= (a.transposed ? a.k : a.n) &&
            (a.expert_rows == a.n || (a.group == 0 && (!a.w_up || a.expert_rows % 8 == 0))) &&
            a.num_experts * a.expert_rows < int64_t{1} << 31,
        "GroupedGemm: experts' weights overlap, or there are too many rows of them");
  Check(!a.pair_order || (a.n % 16 == 0 && a.w_up), "GroupedGemm permutes gated outputs only");
  Check(!a.products || (a.w_up && a.group == 0 && !a.pair_order &&
                        IsAligned(a.products, a.products_stride * SizeOf(DType::kBF16))),
        "GroupedGemm keeps the products of bf16 weights for gated outputs");
  Check(!a.silu_out ||
            (!a.w_up && a.group == 0 && !a.transposed && !a.silu && a.out_type == DType::kBF16 &&
             a.silu_columns % 8 == 0 && a.silu_columns <= a.n &&
             IsAligned(a.silu_out, a.silu_stride * SizeOf(DType::kBF16))),
        "GroupedGemm gives SiLU of columns of bf16 beside them, in multiples of 8");
}

// In boxes of `box` columns of bf16, or 0: none.
Target TargetOf(void* data, int64_t stride, int64_t rows, int64_t columns, int box) {
  Target to{.data = data, .stride = stride, .columns = static_cast<int>(columns), .map = {}};
  if (box == 0) return to;
  to.map = MakeTensorMap(
      data, {.dims = {columns, rows},
             .strides = {2 * stride},
             .box = {box, kBoxRows},
             .swizzle = box == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B});
  return to;
}

void SetTargets(GroupedGemmParams& p, const GroupedGemmArgs& a) {
  const int box = a.group > 0 || a.out_type != DType::kBF16 ? 0 : a.w_up ? 32 : 64;
  p.out = TargetOf(a.out, a.out_stride, a.num_rows, a.n, box);
  if (a.products) {
    p.gate = TargetOf(a.products, a.products_stride, a.num_rows, a.n, box);
    p.up = TargetOf(a.products + a.n, a.products_stride, a.num_rows, a.n, box);
  }
  if (a.silu_out) {
    p.silu_out = TargetOf(a.silu_out, a.silu_stride, a.num_rows, a.silu_columns, box);
  }
}

}  // namespace

void LaunchBf16Gemm(Queue& queue, const GroupedGemmParams& params, bool gated, DType out_type,
                    int64_t num_tiles) {
  if (gated) {
    LaunchGemm<Store::kGated, false>(queue, params, num_tiles);
  } else if (out_type == DType::kBF16) {
    LaunchGemm<Store::kBf16, false>(queue, params, num_tiles);
  } else {
    LaunchGemm<Store::kF32, false>(queue, params, num_tiles);
  }
}

void GroupedGemm(Queue& queue, const GroupedGemmArgs& args) {
  if (args.num_rows == 0) return;
  GroupedGemmArgs a = args;
  if (a.expert_rows == 0) a.expert_rows = a.transposed ? a.k : a.n;
  CheckShapes(a);
  const bool gated = a.w_up != nullptr, up_first = gated && a.w_up < a.w;
  GroupedGemmParams p{};
  p.w = MapOfW(a);
  for (int i = 0; i < kMaxUnits; ++i) {
    p.x[i] = MakeTensorMap(a.x, {.dims = {a.k, a.num_rows},
                                 .strides = {2 * a.x_stride},
                                 .box = {kStepK, (i + 1) * kUnit / 2}});
  }
  p.groups = a.groups;
  p.num_groups = a.num_groups;
  p.num_rows = a.num_rows;
  p.scales[0] = up_first ? a.scales_up : a.scales;
  p.scales[1] = gated && !up_first ? a.scales_up : a.scales;
  p.scale_rows = a.num_experts * a.n;
  p.num_scales = a.group > 0 ? (a.k + a.group - 1) / a.group : 0;
  p.log_group = a.group > 0 ? std::countr_zero(static_cast<uint64_t>(a.group)) : 0;
  p.n = static_cast<int>(a.n);
  p.k = static_cast<int>(a.k);
  p.expert_rows = static_cast<int>(a.expert_rows);
  p.up_first = up_first;
  p.silu = a.silu;
  p.pair_order = a.pair_order;
  SetTargets(p, a);
  Scratch scratch(queue);
  p.num_taken = scratch.Get<int32_t>(1);
  CheckCuda(cudaMemsetAsync(p.num_taken, 0, sizeof(int32_t), queue.stream()));

  // No more than there can be: every expert pads its rows by less than a tile.
  const int64_t rows_w = 2 * (gated ? kTileW / 2 : kTileW), rows_x = 8 * kUnit;
  const int64_t tiles_x = a.groups ? std::min(a.num_rows, a.num_experts) + a.num_rows / rows_x * 2
                                   : (a.num_rows + rows_x - 1) / rows_x;
  const int64_t num_tiles = (a.n + rows_w - 1) / rows_w * tiles_x;
  if (a.group > 0) {
    LaunchInt8Gemm(queue, p, gated, num_tiles);
  } else if (a.products) {
    LaunchKeptGemm(queue, p, num_tiles);
  } else if (a.silu_out) {
    LaunchSiluGemm(queue, p, num_tiles);
  } else if (a.transposed) {
    LaunchTransposedGemm(queue, p, num_tiles);
  } else {
    LaunchBf16Gemm(queue, p, gated, a.out_type, num_tiles);
  }
}

void DenseGemm(Queue& queue, const DenseGemmArgs& a) {
  const auto x = a.x.As<const bf16, 2>();
  const auto w = a.w.As<const bf16, 2>();
  Check(a.out.rank == 2 && a.out.dim(0) == x.dim(0) && a.out.dim(1) == w.dim(0) &&
            x.dim(1) == w.dim(1) && w.stride[0] == w.dim(1),
        "DenseGemm: shapes disagree");
  GroupedGemm(queue, {.x = x.data,
                      .x_stride = x.stride[0],
                      .num_rows = x.dim(0),
                      .w = w.data,
                      .n = w.dim(0),
                      .k = w.dim(1),
                      .out = a.out.data,
                      .out_stride = a.out.stride[0],
                      .out_type = a.out.dtype,
                      .silu = a.activation == Activation::kSilu});
}

}  // namespace mm01::cuda
