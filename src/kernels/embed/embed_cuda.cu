// One block a row, one thread an element at a time: a row is a few kilobytes.
#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/embed/embed_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 256;

template <typename W, typename Out>
struct Rows {
  const int32_t* ids;
  const W* weight;
  const bf16* scales;
  int64_t group, num_groups;
  int64_t vocabulary, width;
  const float* embeddings;
  int64_t given, given_stride;
  Out* out;
  int64_t out_stride;
};

template <typename W, typename Out>
__global__ void __launch_bounds__(kThreads) EmbedRows(const __grid_constant__ Rows<W, Out> a) {
  AllowNextKernel();
  AwaitEarlierKernels();
  const int64_t row = blockIdx.x, id = a.ids[row];
  Out* out = a.out + row * a.out_stride;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) {
    float x = __int_as_float(0x7fffffff);  // NaN: an id outside the vocabulary
    if (id >= 0 && id < a.vocabulary) {
      if constexpr (std::is_same_v<W, int8_t>) {
        x = static_cast<float>(a.weight[id * a.width + i]) *
            Load(a.scales + id * a.num_groups + i / a.group);
      } else {
        x = Load(a.weight + id * a.width + i);
      }
    } else if (id < 0 && -1 - id < a.given) {
      x = a.embeddings[(-1 - id) * a.given_stride + i];
    }
    Store(out + i, x);
  }
}

template <typename W>
void Run(Queue& queue, const EmbedArgs& a) {
  const auto ids = a.ids.As<const int32_t, 1>();
  const bool has_given = !a.embeddings.empty();
  WithElement(a.out, [&]<typename Out>() {
    const auto out = a.out.As<Out, 2>();
    const Rows<W, Out> rows{
        .ids = ids.data,
        .weight = static_cast<const W*>(a.weight->data()),
        .scales = a.weight->scales(),
        .group = a.weight->type().group,
        .num_groups = a.weight->num_groups(),
        .vocabulary = a.weight->n(),
        .width = a.weight->k(),
        .embeddings = has_given ? a.embeddings.As<const float, 2>().data : nullptr,
        .given = has_given ? a.embeddings.dim(0) : 0,
        .given_stride = a.embeddings.stride[0],
        .out = out.data,
        .out_stride = out.stride[0]};
    LaunchOverlapped(queue, EmbedRows<W, Out>, dim3(static_cast<unsigned>(ids.dim(0))), kThreads, 0,
                     rows);
  });
}

}  // namespace

void Embed(Queue& queue, const EmbedArgs& a) {
  Check(a.ids.rank == 1 && a.out.rank == 2 && a.out.dim(0) == a.ids.dim(0) &&
            a.out.dim(1) == a.weight->k(),
        "Embed: shapes disagree");
  if (a.ids.dim(0) == 0) return;
  switch (a.weight->type().dtype) {
    case DType::kF32:
      return Run<float>(queue, a);
    case DType::kBF16:
      return Run<bf16>(queue, a);
    default:
      return Run<int8_t>(queue, a);
  }
}

}  // namespace mm01::cuda
