#include "kernels/moe/moe_cuda.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/moe/moe_kernels.cuh"

namespace mm01::cuda {
namespace {

// One matrix of all experts, which must be one stack.
struct Stack {
  const void* data;
  const bf16* scales;
};

Stack StackOf(std::span<const ExpertWeights> experts, Weight ExpertWeights::*matrix) {
  const Weight& first = experts[0].*matrix;
  const int64_t bytes = first.n() * first.k() * SizeOf(first.type().dtype);
  for (size_t e = 0; e < experts.size(); ++e) {
    const Weight& w = experts[e].*matrix;
    const auto i = static_cast<int64_t>(e);
    Check(w.type() == first.type() && w.n() == first.n() && w.k() == first.k() &&
              w.data() == static_cast<const uint8_t*>(first.data()) + i * bytes &&
              (!w.scales() || w.scales() == first.scales() + i * w.n() * w.num_groups()),
          "Moe: the experts are not one stack");
  }
  return {first.data(), first.scales()};
}

ExpertStack MakeExpertStack(std::span<const ExpertWeights> experts) {
  const Stack w1 = StackOf(experts, &ExpertWeights::w1), w2 = StackOf(experts, &ExpertWeights::w2),
              w3 = StackOf(experts, &ExpertWeights::w3);
  const ExpertWeights& first = experts[0];
  const int64_t width = first.w1.k(), inner = first.w1.n();
  Check(first.w3.n() == inner && first.w3.k() == width && first.w2.n() == width &&
            first.w2.k() == inner && first.w2.type() == first.w1.type() &&
            first.w3.type() == first.w1.type(),
        "Moe: the matrices of an expert disagree");
  return {.w1 = w1.data,
          .w2 = w2.data,
          .w3 = w3.data,
          .scales1 = w1.scales,
          .scales2 = w2.scales,
          .scales3 = w3.scales,
          .type = first.w1.type(),
          .width = width,
          .inner = inner};
}

void CheckMoe(const MoeArgs& a, const ExpertStack& experts) {
  const auto num_experts = static_cast<int64_t>(a.experts.size());
  const Weight& router = *a.router;
  Check(a.x.rank == 2 && a.x.dim(1) == experts.width && router.k() == experts.width &&
            router.n() == num_experts && router.type().dtype == DType::kF32 && a.out.rank == 2 &&
            a.out.shape == a.x.shape && a.out.dtype == a.x.dtype,
        "Moe: shapes or types disagree");
  Check(a.logits.dim(0) == a.x.dim(0) && a.logits.dim(1) == num_experts, "Moe: shapes disagree");
  Check(num_experts <= 256 && 0 < a.k && a.k <= 8 && a.k <= num_experts,
        "Moe on a GPU takes up to 256 experts and up to 8 of them a token");
  Check(a.x.dim(0) * a.k < int64_t{1} << 31, "Moe on a GPU takes fewer than 2^31 rows");
}

bool BeginsAt16Bytes(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride[0] * SizeOf(t.dtype) % 16 == 0;
}

// Few rows of bf16, many rows of bf16, and everything else.
enum class Path { kStream, kTiles, kPlain };

Path PickPath(const MoeArgs& a, const ExpertStack& e) {
  const bool int8 = e.type.dtype == DType::kI8;
  const bool tensor_cores = a.x.dtype == DType::kBF16 && e.type.dtype != DType::kF32 &&
                            BeginsAt16Bytes(a.x) && BeginsAt16Bytes(a.out);
  const auto both_in = [&](int64_t multiple) {
    return e.width % multiple == 0 && e.inner % multiple == 0;
  };
  if (!tensor_cores) return Path::kPlain;
  const bool few_scales = !int8 || std::max(e.width, e.inner) / e.type.group <= kMostStreamScales;
  if (a.x.dim(0) * a.k <= kFewMoeRows && both_in(int8 ? 512 : 256) && few_scales) {
    return Path::kStream;
  }
  return both_in(int8 ? 16 : 8) ? Path::kTiles : Path::kPlain;
}

void Tiles(Queue& queue, const MoeArgs& a, const ExpertStack& e, const Routing& routing) {
  const int64_t rows = routing.num_rows();
  const bool int8 = e.type.dtype == DType::kI8;
  Scratch scratch(queue);
  // The rows that go in are done with when those that come out are written.
  bf16* const in = scratch.Get<bf16>(rows * e.width);
  bf16* const h = scratch.Get<bf16>(rows * e.inner);
  bf16* const y = in;
  SpreadRows(queue, a.x, routing, in, int8);
  GroupedGemmArgs up{.x = in,
                     .x_stride = e.width,
                     .num_rows = rows,
                     .groups = routing.groups,
                     .num_groups = routing.num_groups,
                     .w = e.w1,
                     .w_up = e.w3,
                     .scales = e.scales1,
                     .scales_up = e.scales3,
                     .group = e.type.group,
                     .num_experts = routing.num_experts,
                     .n = e.inner,
                     .k = e.width,
                     .out = h,
                     .out_stride = e.inner,
                     .pair_order = int8};
  GroupedGemm(queue, up);
  GroupedGemmArgs down = up;
  down.x = h;
  down.x_stride = e.inner;
  down.w = e.w2;
  down.w_up = nullptr;
  down.scales = e.scales2;
  down.scales_up = nullptr;
  down.n = e.width;
  down.k = e.inner;
  down.out = y;
  down.out_stride = e.width;
  down.pair_order = false;
  GroupedGemm(queue, down);
  CombineRows(queue, Tensor(y, {rows, e.width}), routing, a.out);
}

}  // namespace

void Moe(Queue& queue, const MoeArgs& a) {
  Check(!a.experts.empty(), "Moe: there are no experts");
  const ExpertStack experts = MakeExpertStack(a.experts);
  CheckMoe(a, experts);
  const int64_t tokens = a.x.dim(0);
  if (tokens == 0) return;

  Scratch scratch(queue);
  const Path path = PickPath(a, experts);
  const Routing routing = MakeRouting(scratch, tokens, a.k, std::ssize(a.experts));
  RouterLogits(queue, a.x, *a.router, a.logits, path == Path::kStream);
  RouteRows(queue, a.logits, routing);
  const int64_t rows = routing.num_rows();
  if (path == Path::kTiles) return Tiles(queue, a, experts, routing);

  float* const y = scratch.Get<float>(rows * experts.width);
  if (path == Path::kStream) {
    bf16* const h = scratch.Get<bf16>(rows * experts.inner);
    StreamUp(queue, a.x, experts, routing, h);
    StreamDown(queue, h, experts, routing, y);
  } else {
    float* const h = scratch.Get<float>(rows * experts.inner);
    PlainUp(queue, a.x, experts, routing, h);
    PlainDown(queue, h, experts, routing, y);
  }
  CombineRows(queue, Tensor(y, {rows, experts.width}), routing, a.out);
}

}  // namespace mm01::cuda
