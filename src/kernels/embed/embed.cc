#include "kernels/embed/embed.h"

#include <algorithm>

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/embed/embed_cuda.h"
#endif

namespace mm01 {

void Embed(Queue& queue, const EmbedArgs& a) {
  MM01_ON_CUDA(queue, Embed(queue, a));
  const auto ids = a.ids.As<const int32_t, 1>();
  const auto out = a.out.As<float, 2>();
  const int64_t width = a.weight->k();
  Check(out.dim(0) == ids.dim(0) && out.dim(1) == width, "Embed: shapes disagree");
  const int64_t handed_in = a.embeddings.empty() ? 0 : a.embeddings.dim(0);
  queue.pool().ParallelFor(ids.dim(0), [&](int64_t r, int) {
    const int64_t id = ids(r);
    if (id >= 0) {
      Check(id < a.weight->n(), "Embed: a token id outside the vocabulary");
      a.weight->GetRow(id, {&out(r, 0), static_cast<size_t>(width)});
    } else {
      Check(-1 - id < handed_in, "Embed: a row of embeddings that was not handed in");
      std::copy_n(&a.embeddings.As<const float, 2>()(-1 - id, 0), width, &out(r, 0));
    }
  });
}

}  // namespace mm01
