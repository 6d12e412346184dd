#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/sample/digest.h"
#ifdef MM01_CUDA
#include "kernels/sample/digest_cuda.h"
#endif

namespace mm01 {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Digest DigestOf(std::span<const float> row, int64_t most, double temperature) {
  Digest digest;
  for (size_t i = 0; i < row.size(); ++i) {
    if (!(row[i] < kInfinity)) digest.sound = false;
    if (row[i] > -kInfinity) digest.id.push_back(static_cast<int32_t>(i));
  }
  digest.sound = digest.sound && !digest.id.empty();
  if (!digest.sound) return {.sound = false, .id = {}, .value = {}, .weight = {}};
  const auto x = [&](int32_t id) { return row[static_cast<size_t>(id)]; };
  if (most < std::ssize(digest.id)) {
    std::ranges::nth_element(digest.id, digest.id.begin() + most, [&](int32_t a, int32_t b) {
      return x(a) > x(b) || (x(a) == x(b) && a < b);
    });
    digest.id.resize(static_cast<size_t>(most));
    std::ranges::sort(digest.id);
  }
  if (most > 1) {
    for (const int32_t id : digest.id) digest.value.push_back(x(id));
  }
  if (temperature == 0) return digest;
  const double largest = *std::ranges::max_element(row);
  digest.weight.resize((row.size() + kDigestChunk - 1) / kDigestChunk);
  for (size_t i = 0; i < row.size(); ++i) {
    digest.weight[i / kDigestChunk] +=
        std::exp((static_cast<double>(row[i]) - largest) / temperature);
  }
  return digest;
}

}  // namespace

std::vector<Digest> DigestRows(Queue& queue, const DigestArgs& a) {
  MM01_ON_CUDA(queue, DigestRows(queue, a));
  const auto x = a.logits.As<const float, 2>();
  Check(std::ssize(a.temperature) == x.dim(0) && a.most > 0, "DigestRows: shapes disagree");
  std::vector<Digest> digests(a.temperature.size());
  for (size_t r = 0; r < digests.size(); ++r) {
    const std::span row(x.data + static_cast<int64_t>(r) * x.stride[0],
                        static_cast<size_t>(x.dim(1)));
    digests[r] = DigestOf(row, a.most, a.temperature[r]);
  }
  return digests;
}

}  // namespace mm01
