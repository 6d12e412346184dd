#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "device/check_cuda.cuh"
#include "kernels/sample/digest_cuda.h"
#include "kernels/sample/sample_cuda.h"

namespace mm01::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kEach = static_cast<int>(kDigestChunk) / kThreads;  // tokens a thread

struct WeightRows {
  const float* logits;
  int64_t stride;
  int vocabulary, most, chunks;
  const float* value;         // [R, most], of the largest tokens
  const int32_t* count;       // [R]
  const double* temperature;  // [R]
  double* weight;             // [R, chunks]
};

// A block a chunk and row. Sums go over neighbouring lanes, then over warps: always one order.
__global__ void __launch_bounds__(kThreads) WeighChunks(const __grid_constant__ WeightRows a) {
  __shared__ float largest[kWarps];
  __shared__ double sums[kWarps];
  const int64_t row = blockIdx.y;
  const double t = a.temperature[row];
  const int count = a.count[row], warp = threadIdx.x / 32;
  if (t == 0 || count <= 0) return;
  float most = -INFINITY;
  for (int i = threadIdx.x; i < count; i += kThreads) most = fmaxf(most, a.value[row * a.most + i]);
  for (int step = 16; step > 0; step /= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  }
  if (threadIdx.x % 32 == 0) largest[warp] = most;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, largest[w]);

  const float* const x = a.logits + row * a.stride;
  const int first = static_cast<int>(blockIdx.x) * static_cast<int>(kDigestChunk);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int id = first + i * kThreads + static_cast<int>(threadIdx.x);
    if (id < a.vocabulary) sum += exp((static_cast<double>(x[id]) - static_cast<double>(most)) / t);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < kWarps; ++w) sum += sums[w];
  a.weight[row * a.chunks + blockIdx.x] = sum;
}

// What comes back of all rows lies in one piece, the widest numbers first.
struct Layout {
  int64_t rows, most, chunks;
  int64_t value() const { return rows * chunks * static_cast<int64_t>(sizeof(double)); }
  int64_t id() const { return value() + rows * most * static_cast<int64_t>(sizeof(float)); }
  int64_t count() const { return id() + rows * most * static_cast<int64_t>(sizeof(int32_t)); }
  int64_t bytes() const { return count() + rows * static_cast<int64_t>(sizeof(int32_t)); }
};

template <typename T>
std::vector<T> Take(const std::vector<std::byte>& from, int64_t at, int64_t n) {
  std::vector<T> out(static_cast<size_t>(n));
  if (n > 0) std::memcpy(out.data(), from.data() + at, out.size() * sizeof(T));
  return out;
}

// One token a row.
std::vector<Digest> GreedyDigests(Queue& queue, const Tensor& logits) {
  const int64_t rows = logits.dim(0);
  Scratch scratch(queue);
  const Tensor token(scratch.Get<int32_t>(rows), {rows});
  Greedy(queue, {.logits = logits, .vocab_used = logits.dim(1), .token = token});
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  queue.CopyToHost(ids.data(), token.data, rows * SizeOf(DType::kI32));
  std::vector<Digest> digests(ids.size());
  for (size_t r = 0; r < ids.size(); ++r) {
    digests[r].sound = ids[r] >= 0;
    if (digests[r].sound) digests[r].id = {ids[r]};
  }
  return digests;
}

}  // namespace

std::vector<Digest> DigestRows(Queue& queue, const DigestArgs& a) {
  const auto x = a.logits.As<const float, 2>();
  const int64_t rows = x.dim(0), vocabulary = x.dim(1);
  Check(std::ssize(a.temperature) == rows && a.most > 0 && rows < 65536,
        "DigestRows: shapes disagree");
  if (rows == 0) return {};
  const bool has_sums = std::ranges::any_of(a.temperature, [](double t) { return t != 0; });
  if (a.most == 1 && !has_sums) return GreedyDigests(queue, a.logits);

  const Layout at{.rows = rows,
                  .most = a.most,
                  .chunks = has_sums ? (vocabulary + kDigestChunk - 1) / kDigestChunk : 0};
  Scratch scratch(queue);
  auto* const memory = scratch.Get<std::byte>(at.bytes());
  auto* const value = reinterpret_cast<float*>(memory + at.value());
  auto* const id = reinterpret_cast<int32_t*>(memory + at.id());
  auto* const count = reinterpret_cast<int32_t*>(memory + at.count());
  TopTokens(queue, {.logits = a.logits,
                    .vocab_used = vocabulary,
                    .id = Tensor(id, {rows, a.most}),
                    .value = Tensor(value, {rows, a.most}),
                    .count = Tensor(count, {rows})});
  if (has_sums) {
    auto* const temperature = scratch.Get<double>(rows);
    queue.CopyToDevice(temperature, a.temperature.data(),
                       rows * static_cast<int64_t>(sizeof(double)));
    const dim3 grid(static_cast<unsigned>(at.chunks), static_cast<unsigned>(rows));
    WeighChunks<<<grid, kThreads, 0, queue.stream()>>>(
        {.logits = x.data,
         .stride = x.stride[0],
         .vocabulary = static_cast<int>(vocabulary),
         .most = static_cast<int>(a.most),
         .chunks = static_cast<int>(at.chunks),
         .value = value,
         .count = count,
         .temperature = temperature,
         .weight = reinterpret_cast<double*>(memory)});
    CheckLaunch();
  }
  std::vector<std::byte> host(static_cast<size_t>(at.bytes()));
  queue.CopyToHost(host.data(), memory, at.bytes());

  std::vector<Digest> digests(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    Digest& digest = digests[static_cast<size_t>(r)];
    const int32_t n = Take<int32_t>(host, at.count() + r * 4, 1).front();
    digest.sound = n > 0;
    if (!digest.sound) continue;
    digest.id = Take<int32_t>(host, at.id() + r * a.most * 4, n);
    if (a.most > 1) digest.value = Take<float>(host, at.value() + r * a.most * 4, n);
    if (a.temperature[static_cast<size_t>(r)] != 0) {
      digest.weight = Take<double>(host, r * at.chunks * 8, at.chunks);
    }
  }
  return digests;
}

}  // namespace mm01::cuda
