// Softmax attention at Text-01's shape: 64 query and 8 kv heads of 128, bf16.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_ref.h"
#include "tensor/dtype.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kHeads = 64, kKvHeads = 8, kDim = 128, kBytes = SizeOf(DType::kBF16);
constexpr int64_t kLongest = 1'048'576, kPages = kLongest / kKvPage;
constexpr int64_t kPeriodPages = 64, kPeriod = kPeriodPages * kKvPage;  // random keys, repeated
constexpr int64_t kQueryPeriod = 1021;

std::vector<float> Normals(uint64_t stream, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double normal = RandomNormal(8, stream, static_cast<uint64_t>(i));
    x[static_cast<size_t>(i)] = ToFloat(ToBF16(static_cast<float>(normal)));
  }
  return x;
}

template <typename T>
Buffer Upload(Queue& queue, const std::vector<T>& values) {
  Buffer buffer(std::ssize(values) * static_cast<int64_t>(sizeof(T)), Device::kCuda);
  queue.CopyToDevice(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}
Buffer UploadBF16(Queue& queue, const std::vector<float>& values) {
  std::vector<bf16> rounded(values.size());
  std::ranges::transform(values, rounded.begin(), ToBF16);
  return Upload(queue, rounded);
}

void Repeat(Queue& queue, const Buffer& to, const Buffer& period) {
  for (int64_t at = 0; at < to.bytes(); at += period.bytes()) {
    queue.CopyOnDevice(to.data() + at, period.data(), std::min(period.bytes(), to.bytes() - at));
  }
  queue.Wait();  // the period may go
}

double RelativeError(std::span<const bf16> got, std::span<const double> want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(ToFloat(got[i])) - want[i];
    difference += d * d;
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// Rounding the output costs 1.65e-3, rounding the weights, which decode does not, 1.5e-3 more.
constexpr double kPrefillTolerance = 2.4e-3, kDecodeTolerance = 2e-3;

// One sequence of up to `kLongest` keys, whose page i is (i * 5) mod P of the pool; and queries.
struct Layer {
  std::vector<float> k = Normals(1, kPeriod* kKvHeads* kDim);  // [kPeriod, G, K]
  std::vector<float> v = Normals(2, kPeriod* kKvHeads* kDim);
  std::vector<float> q = Normals(3, kQueryPeriod* kHeads* kDim);  // [kQueryPeriod, H, K]
  int64_t rows;
  Buffer k_pages, v_pages, queries, out, lse, table;

  static int64_t PageOf(int64_t i) { return i * 5 % kPages; }

  Layer(Queue& queue, int64_t most_rows)
      : rows(most_rows),
        k_pages(kLongest * kKvHeads * kDim * kBytes, Device::kCuda),
        v_pages(kLongest * kKvHeads * kDim * kBytes, Device::kCuda),
        queries(rows * kHeads * kDim * kBytes, Device::kCuda),
        out(rows * kHeads * kDim * kBytes, Device::kCuda),
        lse(rows * kHeads * SizeOf(DType::kF32), Device::kCuda) {
    Repeat(queue, k_pages, UploadBF16(queue, InPages(k)));
    Repeat(queue, v_pages, UploadBF16(queue, InPages(v)));
    Repeat(queue, queries, UploadBF16(queue, q));
    std::vector<int32_t> pages;
    for (int64_t i = 0; i < kPages; ++i) pages.push_back(static_cast<int32_t>(PageOf(i)));
    table = Upload(queue, pages);
    queue.Wait();
  }

  // [S, G, K] as [S / B, G, B, K].
  static std::vector<float> InPages(const std::vector<float>& x) {
    std::vector<float> y(x.size());
    for (int64_t s = 0; s < kPeriod; ++s) {
      for (int64_t g = 0; g < kKvHeads; ++g) {
        const int64_t to = ((s / kKvPage * kKvHeads + g) * kKvPage + s % kKvPage) * kDim;
        std::copy_n(x.begin() + (s * kKvHeads + g) * kDim, kDim, y.begin() + to);
      }
    }
    return y;
  }
  // The first `keys` of the sequence.
  static std::vector<float> InOrder(const std::vector<float>& x, int64_t keys) {
    std::vector<float> y;
    for (int64_t s = 0; s < keys; s += kKvPage) {
      const auto from = x.begin() + PageOf(s / kKvPage) % kPeriodPages * kKvPage * kKvHeads * kDim;
      y.insert(y.end(), from, from + kKvPage * kKvHeads * kDim);
    }
    return y;
  }
  std::span<const float> Query(int64_t row) const {
    return std::span(q).subspan(static_cast<size_t>(row % kQueryPeriod * kHeads * kDim),
                                static_cast<size_t>(kHeads * kDim));
  }
};

// What calls for some rows of the sequence need beside it.
struct Call {
  const Layer& layer;
  int64_t rows, keys;
  Buffer cu_seqlens, position, kv_start, kv_length;

  Call(Queue& queue, const Layer& of, int64_t num_rows, int64_t num_keys)
      : layer(of),
        rows(num_rows),
        keys(num_keys),
        cu_seqlens(Upload(queue, std::vector<int64_t>{0, rows})),
        position(Upload(queue, std::vector<int64_t>{keys - rows})),
        kv_start(Upload(queue, std::vector<int64_t>{0})),
        kv_length(Upload(queue, std::vector<int64_t>{keys})) {}

  void Run(Queue& queue, bool wants_lse) const {
    const auto pool = [](const Buffer& b) {
      return Tensor(b.As<bf16>(), {kPages, kKvHeads, kKvPage * kDim});
    };
    const Tensor lse(layer.lse.As<float>(), {rows, kHeads});
    Attention(queue, {.q = Tensor(layer.queries.As<bf16>(), {rows, kHeads, kDim}),
                      .cu_seqlens = Tensor(cu_seqlens.As<int64_t>(), {2}),
                      .position = Tensor(position.As<int64_t>(), {1}),
                      .kv_start = Tensor(kv_start.As<int64_t>(), {1}),
                      .kv_length = Tensor(kv_length.As<int64_t>(), {1}),
                      .block_table = Tensor(layer.table.As<int32_t>(), {1, keys / kKvPage}),
                      .max_rows = rows,
                      .kv = {.k = pool(layer.k_pages), .v = pool(layer.v_pages)},
                      .out = Tensor(layer.out.As<bf16>(), {rows, kHeads, kDim}),
                      .lse = wants_lse ? lse : Tensor()});
  }

  struct Expected {
    AttentionReference row;  // of `repeats` times fewer keys
    double repeats, tolerance;
  };

  // Row `row` of the last run.
  void Compare(Harness& h, const std::string& what, int64_t row, const Expected& want) const {
    std::vector<bf16> out(static_cast<size_t>(kHeads * kDim));
    std::vector<float> lse(static_cast<size_t>(kHeads));
    h.queue().CopyToHost(out.data(), layer.out.As<bf16>() + row * kHeads * kDim,
                         std::ssize(out) * kBytes);
    h.queue().CopyToHost(lse.data(), layer.lse.As<float>() + row * kHeads,
                         std::ssize(lse) * SizeOf(DType::kF32));
    const double error = RelativeError(out, want.row.out);
    double lse_error = 0;
    for (size_t i = 0; i < lse.size(); ++i) {
      const double exact = want.row.lse[i] + std::log(want.repeats);
      lse_error = std::max(lse_error, std::abs(static_cast<double>(lse[i]) - exact));
    }
    h.Say(fmt::format("attention: {} differs by {:.2e}, its log-sum-exp by {:.2e}", what, error,
                      lse_error));
    if (!(error <= want.tolerance && lse_error <= 5e-5)) {
      throw DeviceError("attention differs from the reference: " + what);
    }
  }
};

void CheckPrefill(Harness& h, const Layer& layer) {
  constexpr int64_t kRows = 8192;
  const Call call(h.queue(), layer, kRows, kRows);
  call.Run(h.queue(), true);
  const std::vector<float> k = Layer::InOrder(layer.k, kRows), v = Layer::InOrder(layer.v, kRows);
  for (const int64_t row : {0, 200, 8191}) {
    call.Compare(h, "prefill, row " + std::to_string(row), row,
                 {ReferenceAttention(layer.Query(row), k, v, kKvHeads, kDim, 0, row + 1), 1,
                  kPrefillTolerance});
  }
}

void BenchPrefill(Harness& h, const Layer& layer, int64_t rows) {
  const Call call(h.queue(), layer, rows, rows);
  const double seconds = h.Time([&](int64_t) { call.Run(h.queue(), false); });
  const auto n = static_cast<double>(rows);
  const double flops = 4.0 * n * n / 2 * kDim * kHeads;
  const double floor = flops / (h.gemm_tflops() * 1e12);
  h.Add({.name = "softmax_prefill_x_floor_" + std::to_string(rows),
         .value = seconds / floor,
         .unit = "x floor",
         .ceiling = 1,
         .share = floor / seconds});
  h.Say(fmt::format("  {:.3f} ms, {:.0f} TFLOP/s", seconds * 1e3, flops / seconds * 1e-12));
}

double DecodeSeconds(Harness& h, const Call& call) {
  return h.TimeGraph(4, [&](int64_t) { call.Run(h.queue(), false); });
}

void BenchDecode(Harness& h, const Layer& layer) {
  const Call call(h.queue(), layer, 1, kLongest);
  call.Run(h.queue(), true);
  call.Compare(h, "decode", 0,
               {ReferenceAttention(layer.Query(0), layer.k, layer.v, kKvHeads, kDim, 0, kPeriod),
                static_cast<double>(kLongest / kPeriod), kDecodeTolerance});
  const double seconds = DecodeSeconds(h, call);
  const double bytes = 2.0 * static_cast<double>(kLongest * kKvHeads * kDim * kBytes);
  const double share = h.Floor(bytes) / seconds;
  h.Add({.name = "softmax_decode_share_1m",
         .value = share,
         .unit = "of copy",
         .ceiling = 1,
         .share = share});
  h.Say(fmt::format("  {:.1f} us, {:.3f} TB/s", seconds * 1e6, bytes / seconds * 1e-12));
  for (const int64_t keys : {1024, 8192, 65'536}) {
    const double us = DecodeSeconds(h, Call(h.queue(), layer, 1, keys)) * 1e6;
    h.Say(fmt::format("  decode over {} keys, again and again: {:.1f} us", keys, us));
  }
}

}  // namespace

void BenchAttention(Harness& h) {
  const Layer layer(h.queue(), 32'768);
  CheckPrefill(h, layer);
  BenchPrefill(h, layer, 8192);
  BenchPrefill(h, layer, 32'768);
  BenchDecode(h, layer);
}

}  // namespace mm01::gpu
