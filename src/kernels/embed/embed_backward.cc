#include "kernels/embed/embed_backward.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/check.h"
#ifdef MM01_CUDA
#include "kernels/embed/embed_backward_cuda.h"
#endif

namespace mm01 {
namespace {

void CheckShapes(std::span<const int32_t> ids, const View<float, 2>& rows,
                 const View<float, 2>& table) {
  Check(rows.dim(0) == std::ssize(ids) && rows.dim(1) == table.dim(1), "Embed: shapes disagree");
  for (const int32_t id : ids) {
    Check(0 <= id && id < table.dim(0), "Embed: a token id outside the vocabulary");
  }
}

}  // namespace

void EmbedRows(Queue& queue, std::span<const int32_t> ids, const Tensor& table_tensor,
               const Tensor& out_tensor) {
  MM01_ON_CUDA(queue, EmbedRows(queue, ids, table_tensor, out_tensor));
  const auto table = table_tensor.As<float, 2>(), out = out_tensor.As<float, 2>();
  CheckShapes(ids, out, table);
  queue.pool().ParallelFor(std::ssize(ids), [&](int64_t t, int) {
    std::copy_n(&table(ids[static_cast<size_t>(t)], 0), table.dim(1), &out(t, 0));
  });
}

void EmbedBackward(Queue& queue, std::span<const int32_t> ids, const Tensor& d_out_tensor,
                   const Tensor& d_table_tensor) {
  MM01_ON_CUDA(queue, EmbedBackward(queue, ids, d_out_tensor, d_table_tensor));
  const auto d_out = d_out_tensor.As<float, 2>(), d_table = d_table_tensor.As<float, 2>();
  CheckShapes(ids, d_out, d_table);
  std::vector<int64_t> rows(ids.size());  // by id, and by place among equals
  std::iota(rows.begin(), rows.end(), 0);
  std::ranges::stable_sort(rows, {}, [&](int64_t t) { return ids[static_cast<size_t>(t)]; });
  std::vector<size_t> first;  // in `rows`, of each id
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto id = [&](size_t at) { return ids[static_cast<size_t>(rows[at])]; };
    if (i == 0 || id(i) != id(i - 1)) first.push_back(i);
  }
  first.push_back(rows.size());
  queue.pool().ParallelFor(std::ssize(first) - 1, [&](int64_t item, int) {
    const auto at = static_cast<size_t>(item);
    for (size_t i = first[at]; i < first[at + 1]; ++i) {
      const float* from = &d_out(rows[i], 0);
      float* to = &d_table(ids[static_cast<size_t>(rows[i])], 0);
      for (int64_t j = 0; j < d_out.dim(1); ++j) to[j] += from[j];
    }
  });
}

}  // namespace mm01
