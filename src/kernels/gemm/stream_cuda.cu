// How wide the kernel is, how much of a multiprocessor a block takes, and how many there are.
#include <algorithm>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "device/tensor_map.cuh"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/stream_kernel.cuh"

namespace mm01::cuda {
namespace {

// Bytes of shared memory but for the stages.
int64_t FixedBytes(int tokens, int chain_steps, int group) {
  const int64_t scales = GroupsOfStep(group) * kTileRows * SizeOf(DType::kBF16);
  return 1024 +
         chain_steps * (int64_t{tokens} * kStep * SizeOf(DType::kBF16) + kConsumers * scales) +
         kConsumers * kTileRows * SumPitch(tokens) * SizeOf(DType::kF32) +
         static_cast<int64_t>(sizeof(Barriers));
}

constexpr int64_t kSharedOfBlock = 227 << 10;
constexpr int64_t kSharedOfTwo = 112 << 10;  // each, where two share a multiprocessor

int NumStages(int64_t memory, int tokens, const StreamParams& p) {
  const int64_t room = memory - FixedBytes(tokens, p.chain_steps, p.args.group);
  return static_cast<int>(std::clamp<int64_t>(room / kStageBytes, 0, kMostStages));
}
bool Fits(int tokens, const StreamParams& p) {
  return NumStages(kSharedOfBlock, tokens, p) >= kFewestStages;
}

// How many clusters run at a time, with one block a multiprocessor.
template <int kGroup, int kTokens>
int MostClusters() {
  static const int most = [] {
    const auto set = [](cudaFuncAttribute attribute, int64_t value) {
      CheckCuda(cudaFuncSetAttribute(Stream<kGroup, kTokens>, attribute, static_cast<int>(value)));
    };
    set(cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedOfBlock);
    // Or there might be room for one block alone.
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kChains);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kSharedOfBlock;
    int clusters = 0;
    CheckCuda(cudaOccupancyMaxActiveClusters(&clusters, Stream<kGroup, kTokens>, &config));
    return std::max(clusters, 1);
  }();
  return most;
}

template <int kGroup, int kTokens>
void Launch(Queue& queue, StreamParams& p) {
  const int half = SharesMultiprocessor(kGroup, kTokens) ? NumStages(kSharedOfTwo, kTokens, p) : 0;
  const bool shares = half >= 2 * kFewestStages;
  p.num_stages = shares ? half : NumStages(kSharedOfBlock, kTokens, p);
  p.token_blocks = (p.args.m + kTokens - 1) / kTokens;
  const int side_by_side =
      std::clamp(MostClusters<kGroup, kTokens>() / p.token_blocks, 1, p.num_tiles);
  if (kGroup == 0) {
    p.x = MakeTensorMap(p.args.x, {.dims = {p.args.k, p.args.m},
                                   .strides = {p.args.ldx * SizeOf(DType::kBF16)},
                                   .box = {64, kTokens}});
  }
  const int64_t bytes =
      FixedBytes(kTokens, p.chain_steps, kGroup) + int64_t{p.num_stages} * kStageBytes;
  LaunchOverlapped(queue, Stream<kGroup, kTokens>,
                   dim3(static_cast<unsigned>(side_by_side * p.token_blocks * kChains)), kThreads,
                   static_cast<size_t>(bytes), p);
}

// Any width gives the same bits. Kinds of weights that are rarely used have two.
template <int kGroup>
void LaunchGroup(Queue& queue, StreamParams& p) {
  constexpr bool kCommon = kGroup == 0 || kGroup == 128;
  const int m = p.args.m;
  if constexpr (kCommon) {
    if (m > 8 && (m <= 32 || !Fits(64, p)) && Fits(32, p)) return Launch<kGroup, 32>(queue, p);
  }
  if (m > 8 && Fits(64, p)) return Launch<kGroup, 64>(queue, p);
  Launch<kGroup, 8>(queue, p);
}

CUtensorMap MapOfW(const StreamProduct& product, const StreamArgs& s) {
  if (s.group > 0) {
    return MakeTensorMap(product.w, {.type = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                     .dims = {s.k, product.n},
                                     .strides = {s.k},
                                     .box = {kStep, kTileRows}});
  }
  return MakeTensorMap(
      product.w,
      {.dims = {s.k, product.n}, .strides = {s.k * SizeOf(DType::kBF16)}, .box = {64, kTileRows}});
}

}  // namespace

void StreamGemm(Queue& queue, const StreamArgs& args) {
  Check(0 < args.m && args.m <= 128 && args.k % (args.group > 0 ? 16 : 8) == 0 &&
            args.k <= kMostStreamInputs && args.num_products <= kMostStreamProducts,
        "StreamGemm does not take these shapes");
  Check(args.group == 0 || args.group == 32 || args.group == 64 || args.group == 128,
        "int8 weights have groups of 32, 64 or 128");
  if (args.group > 0 && args.m <= kFewestRows) return StreamGemmInt8(queue, args);
  StreamParams p{};
  p.args = args;
  p.num_steps = (args.k + kStep - 1) / kStep;
  p.chain_steps = (p.num_steps + kChains - 1) / kChains;
  for (int i = 0; i < args.num_products; ++i) {
    StreamProduct& product = p.args.product[i];
    product.first_tile = p.num_tiles;
    p.num_tiles += (product.n + kTileRows - 1) / kTileRows;
    p.w[i] = MapOfW(product, args);
  }
  switch (args.group) {
    case 0:
      return LaunchGroup<0>(queue, p);
    case 32:
      return LaunchGroup<32>(queue, p);
    case 64:
      return LaunchGroup<64>(queue, p);
    default:
      return LaunchGroup<128>(queue, p);
  }
}

}  // namespace mm01::cuda
