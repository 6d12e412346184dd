#include "parallel/lasp_plus.h"

#include <cmath>
#include <vector>

#include "base/check.h"

namespace mm01 {

void AddEarlierRanks(Queue& queue, Group& group, const LightningArgs& a) {
  Check(a.slot.dim(0) == 1 && a.position.As<const int64_t, 1>()(0) == 0,
        "ranks split one sequence, from its first token");
  const auto slope = a.slope.As<const float, 1>();
  const int64_t heads = a.q.dim(1), dim = a.q.dim(2), matrix = dim * dim;
  const auto size = static_cast<size_t>(heads * matrix);

  std::vector<float> local(size), all(size * static_cast<size_t>(group.size()));
  const int64_t rows = a.q.dim(0);
  std::vector<int64_t> row_counts(static_cast<size_t>(group.size()));
  LightningFinalState(queue, a.state, a.slot.As<const int32_t, 1>()(0), rows, a.slope,
                      Tensor(local.data(), {heads, dim, dim}));
  group.AllGather(std::span<const int64_t>(&rows, 1), std::span(row_counts));
  group.AllGather(std::span<const float>(local), std::span(all));
  if (group.rank() == 0) return;

  std::vector<float> incoming(size, 0.0f);
  for (int r = 0; r < group.rank(); ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto kept =
          static_cast<float>(std::exp(-static_cast<double>(slope(h)) *
                                      static_cast<double>(row_counts[static_cast<size_t>(r)])));
      const auto at = static_cast<size_t>(h * matrix);
      const size_t from = static_cast<size_t>(r) * size + at;
      for (size_t i = 0; i < static_cast<size_t>(matrix); ++i) {
        incoming[at + i] = incoming[at + i] * kept + all[from + i];
      }
    }
  }
  LightningAddIncoming(queue, a.q, a.slope, Tensor(incoming.data(), {heads, dim, dim}), a.out);
}

}  // namespace mm01
