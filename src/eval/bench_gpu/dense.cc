// Projections, norms and pointwise functions at Text-01's shapes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/activation/activation.h"
#include "kernels/gemm/gemm.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_ref.h"
#include "kernels/rope/rope.h"
#include "model/text01/weights.h"

namespace mm01::gpu {
namespace {

struct Shape {
  const char* name;
  int64_t n, k;
};
constexpr Shape kProjections[] = {
    {"qkv", 24576, 6144}, {"gate", 8192, 6144}, {"out", 6144, 8192}, {"head", 200064, 6144}};
constexpr int64_t kHidden = 6144, kHeadsWidth = 8192, kMostRows = 8192;

void Require(bool holds, const std::string& what) {
  if (!holds) throw DeviceError("the bench got a wrong answer: " + what);
}

// Normal numbers rounded to bf16, the same on both sides.
struct Numbers {
  std::vector<float> values;
  Buffer memory;

  Numbers(Queue& queue, int64_t n, uint64_t stream)
      : values(static_cast<size_t>(n)), memory(n * SizeOf(DType::kBF16), Device::kCuda) {
    std::vector<bf16> rounded(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      // A period that is no multiple of a row's length: numbers cost time to make.
      constexpr size_t kPeriod = 1'000'003;
      rounded[i] = i < kPeriod ? ToBF16(static_cast<float>(RandomNormal(5, stream, i)))
                               : rounded[i - kPeriod];
      values[i] = ToFloat(rounded[i]);
    }
    queue.CopyToDevice(memory.data(), rounded.data(), memory.bytes());
  }
  Tensor Rows(int64_t rows, int64_t width) const {
    return Tensor(memory.As<bf16>(), {rows, width});
  }
};

// Row n of a weight on the GPU.
std::vector<double> WeightRow(Queue& queue, const Weight& w, int64_t n) {
  const auto k = static_cast<size_t>(w.k());
  std::vector<double> row(k);
  if (w.type().dtype == DType::kBF16) {
    std::vector<bf16> raw(k);
    queue.CopyToHost(raw.data(), static_cast<const bf16*>(w.data()) + n * w.k(), w.k() * 2);
    for (size_t i = 0; i < k; ++i) row[i] = ToFloat(raw[i]);
    return row;
  }
  std::vector<int8_t> raw(k);
  std::vector<bf16> scales(static_cast<size_t>(w.num_groups()));
  queue.CopyToHost(raw.data(), static_cast<const int8_t*>(w.data()) + n * w.k(), w.k());
  queue.CopyToHost(scales.data(), w.scales() + n * w.num_groups(), w.num_groups() * 2);
  for (size_t i = 0; i < k; ++i) {
    row[i] = raw[i] * ToFloat(scales[i / static_cast<size_t>(w.type().group)]);
  }
  return row;
}

// A few outputs of the first rows against the double reference.
void CheckProduct(Queue& queue, const Numbers& x, const GemmArgs& a, double limit) {
  const int64_t m = std::min<int64_t>(a.x.dim(0), 64);
  const auto k = static_cast<size_t>(a.w->k());
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t n = i == 0 ? a.w->n() - 1 : i * 7919 % a.w->n();
    const std::vector<double> row = WeightRow(queue, *a.w, n);
    for (int64_t token = 0; token < m; ++token) {
      double want = 0;
      for (size_t j = 0; j < k; ++j) {
        want += row[j] * static_cast<double>(x.values[static_cast<size_t>(token) * k + j]);
      }
      float got = 0;
      if (a.out.dtype == DType::kBF16) {
        bf16 raw;
        queue.CopyToHost(&raw, static_cast<bf16*>(a.out.data) + token * a.out.stride[0] + n, 2);
        got = ToFloat(raw);
      } else {
        queue.CopyToHost(&got, static_cast<float*>(a.out.data) + token * a.out.stride[0] + n, 4);
      }
      difference += (want - got) * (want - got);
      norm += want * want;
    }
  }
  const double error = std::sqrt(difference / norm);
  Require(error <= limit, fmt::format("a product of {} rows is off by {:.2g}", m, error));
}

// The same random numbers in each: they cost time to make.
std::vector<Weight> Copies(Queue& queue, int64_t count, WeightType type, const Shape& s) {
  std::vector<Weight> weights;
  weights.push_back(RandomMatrix(queue, type, s.n, s.k, 100));
  const int64_t bytes = s.n * s.k * SizeOf(type.dtype);
  while (std::ssize(weights) < count) {
    Weight& w = weights.emplace_back(type, s.n, s.k, Device::kCuda);
    queue.CopyOnDevice(const_cast<void*>(w.data()), weights[0].data(), bytes);
    if (type.group == 0) continue;
    queue.CopyOnDevice(const_cast<bf16*>(w.scales()), weights[0].scales(), w.bytes() - bytes);
  }
  return weights;
}

struct Decode {
  double tb_s;  // of weights
  double us;
};

// A product of few rows, with weights enough that none is found in the second-level cache.
Decode TimeDecode(Harness& h, const Numbers& x, const Shape& s, int64_t rows,
                  const std::vector<Weight>& weights) {
  Scratch scratch(h.queue());
  const Tensor out = scratch.GetRows(DType::kBF16, rows, s.n);
  const auto args = [&](int64_t i) {
    return GemmArgs{x.Rows(rows, s.k), &weights[static_cast<size_t>(i) % weights.size()], out};
  };
  Gemm(h.queue(), args(0));
  CheckProduct(h.queue(), x, args(0), 3e-3);
  const int64_t bytes = weights[0].bytes();
  const auto calls = std::max(std::ssize(weights), (int64_t{2} << 30) / bytes);
  const double seconds = h.TimeGraph(calls, [&](int64_t i) { Gemm(h.queue(), args(i)); });
  return {static_cast<double>(bytes) / seconds * 1e-12, seconds * 1e6};
}

void BenchDecode(Harness& h, const Numbers& x, WeightType type, const std::string& suffix) {
  constexpr int64_t kRows[] = {1, 8, 16, 32, 64, 128};
  double mean[std::size(kRows)] = {};
  for (const Shape& s : kProjections) {
    const int64_t copies = 1 + (int64_t{512} << 20) / WeightBytes(type, s.n, s.k);
    const std::vector<Weight> weights = Copies(h.queue(), copies, type, s);
    std::string line = fmt::format("{:<5}{:<9}[{} {}]", s.name, ToString(type.dtype), s.n, s.k);
    for (size_t i = 0; i < std::size(kRows); ++i) {
      const Decode d = TimeDecode(h, x, s, kRows[i], weights);
      mean[i] += d.tb_s / std::size(kProjections);
      line += fmt::format("  {}: {:.1f} us {:.0f} %", kRows[i], d.us, 100 * d.tb_s / h.copy_tb_s());
    }
    h.Say(line);
  }
  for (size_t i = 0; i < std::size(kRows); ++i) {
    if (kRows[i] != 1 && kRows[i] != 64) continue;
    h.Add({.name = fmt::format("dense_decode_share_b{}{}", kRows[i], suffix),
           .value = mean[i],
           .unit = "TB/s",
           .ceiling = h.copy_tb_s(),
           .share = mean[i] / h.copy_tb_s()});
  }
}

void BenchPrefill(Harness& h, const Numbers& x, WeightType type, const std::string& suffix) {
  const Shape& s = kProjections[0];
  const Weight w = RandomMatrix(h.queue(), type, s.n, s.k, 200);
  Scratch scratch(h.queue());
  const Tensor out = scratch.GetRows(DType::kBF16, kMostRows, s.n);
  std::string line = fmt::format("{:<5}{:<9}[{} {}]", s.name, ToString(type.dtype), s.n, s.k);
  double at_4096 = 0;
  for (const int64_t rows : {256, 512, 1024, 2048, 4096, 8192}) {
    const GemmArgs args{x.Rows(rows, s.k), &w, out.Rows(0, rows)};
    Gemm(h.queue(), args);
    CheckProduct(h.queue(), x, args, 5e-3);
    const double seconds = h.Time([&](int64_t) { Gemm(h.queue(), args); }, 0.1);
    const double tflops =
        2.0 * static_cast<double>(rows) * static_cast<double>(s.n * s.k) / seconds * 1e-12;
    if (rows == 4096) at_4096 = tflops;
    line += fmt::format("  {}: {:.0f}", rows, tflops);
  }
  h.Say(line + " TFLOP/s");
  h.Add({.name = "dense_prefill_4096" + suffix,
         .value = at_4096,
         .unit = "TFLOP/s",
         .ceiling = h.gemm_tflops(),
         .share = at_4096 / h.gemm_tflops()});
}

void AddBandwidth(Harness& h, const std::string& name, int64_t bytes, double seconds) {
  const double tb_s = static_cast<double>(bytes) / seconds * 1e-12;
  h.Add({.name = name,
         .value = tb_s,
         .unit = "TB/s",
         .ceiling = h.copy_tb_s(),
         .share = tb_s / h.copy_tb_s()});
}

std::vector<float> RowOf(Queue& queue, const Tensor& t, int64_t row) {
  std::vector<bf16> raw(static_cast<size_t>(t.dim(1)));
  queue.CopyToHost(raw.data(), static_cast<bf16*>(t.data) + row * t.stride[0], t.dim(1) * 2);
  std::vector<float> values;
  for (const bf16 v : raw) values.push_back(ToFloat(v));
  return values;
}

void CheckRow(const std::vector<float>& got, const std::vector<double>& want,
              const std::string& what) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  const double error = std::sqrt(difference / norm);
  Require(error <= 3e-3, fmt::format("{} is off by {:.2g}", what, error));
}

void BenchNorms(Harness& h, const Numbers& x) {
  constexpr int64_t kRow = 4321;
  constexpr float kAlpha = 3.5565588f;
  Queue& queue = h.queue();
  Scratch scratch(queue);
  std::vector<float> ones(kHeadsWidth, 1.0f);
  float* weight = scratch.Get<float>(kHeadsWidth);
  queue.CopyToDevice(weight, ones.data(), kHeadsWidth * SizeOf(DType::kF32));
  const auto row = [&](int64_t width) { return std::span(x.values).subspan(kRow * width, width); };

  const Tensor sum = scratch.GetRows(DType::kF32, kMostRows, kHidden);
  const Tensor out = scratch.GetRows(DType::kBF16, kMostRows, kHeadsWidth);
  const Tensor narrow(DType::kBF16, out.data, {kMostRows, kHidden});
  const auto add_norm = [&](int64_t rows) {
    const Tensor in = x.Rows(rows, kHidden);
    AddNorm(queue, {.x = in,
                    .branch = in,
                    .alpha = kAlpha,
                    .weight = Tensor(weight, {kHidden}),
                    .sum = sum.Rows(0, rows),
                    .out = narrow.Rows(0, rows)});
  };
  add_norm(kMostRows);
  CheckRow(RowOf(queue, narrow, kRow),
           ReferenceNorm(ReferenceAdd(row(kHidden), row(kHidden), kAlpha, 1),
                         std::span(ones).first(kHidden), 1e-5),
           "AddNorm");
  // x and branch are the same memory here, which is read once.
  AddBandwidth(h, "add_norm_share", kMostRows * kHidden * (2 + 4 + 2),
               h.Time([&](int64_t) { add_norm(kMostRows); }, 0.1));
  h.Say(fmt::format("AddNorm of 1 row: {:.2f} us, of 64: {:.2f} us",
                    1e6 * h.TimeGraph(50, [&](int64_t) { add_norm(1); }),
                    1e6 * h.TimeGraph(50, [&](int64_t) { add_norm(64); })));

  // The gate holds the same numbers elsewhere.
  const Tensor gate(DType::kBF16, sum.data, {kMostRows, kHeadsWidth});
  queue.CopyOnDevice(gate.data, x.memory.data(), x.memory.bytes());
  const auto gated = [&](int64_t rows) {
    GatedNorm(queue, {.x = x.Rows(rows, kHeadsWidth),
                      .gate = gate.Rows(0, rows),
                      .weight = Tensor(weight, {kHeadsWidth}),
                      .width = kHeadsWidth,
                      .out = out.Rows(0, rows)});
  };
  gated(kMostRows);
  CheckRow(RowOf(queue, out, kRow),
           ReferenceGatedNorm(std::vector<double>(row(kHeadsWidth).begin(), row(kHeadsWidth).end()),
                              row(kHeadsWidth), ones, 1e-6),
           "GatedNorm");
  AddBandwidth(h, "gated_norm_share", kMostRows * kHeadsWidth * (2 + 2 + 2),
               h.Time([&](int64_t) { gated(kMostRows); }, 0.1));
  h.Say(fmt::format("GatedNorm of 1 row: {:.2f} us, of 64: {:.2f} us",
                    1e6 * h.TimeGraph(50, [&](int64_t) { gated(1); }),
                    1e6 * h.TimeGraph(50, [&](int64_t) { gated(64); })));

  AddBandwidth(h, "silu_share", kMostRows * kHeadsWidth * 4,
               h.Time([&](int64_t) { Silu(queue, out); }, 0.1));
  constexpr int64_t kHeads = 64, kDim = 128, kHalf = 32;
  const Tensor cos = scratch.GetRows(DType::kF32, kMostRows, kHalf);
  const Tensor sin = scratch.GetRows(DType::kF32, kMostRows, kHalf);
  std::vector<int64_t> position(kMostRows);
  for (int64_t i = 0; i < kMostRows; ++i) position[static_cast<size_t>(i)] = 1'000'000 + i;
  auto* positions = scratch.Get<int64_t>(kMostRows);
  queue.CopyToDevice(positions, position.data(), kMostRows * SizeOf(DType::kI64));
  const auto table = [&](int64_t) {
    RopeTable(queue, Tensor(positions, {kMostRows}), 1e7, cos, sin);
  };
  h.Say(fmt::format("RopeTable of 8192 rows: {:.1f} us", 1e6 * h.Time(table, 0.1)));
  const Tensor heads(DType::kBF16, out.data, {kMostRows, kHeads, kDim});
  AddBandwidth(h, "rope_share", kMostRows * kHeads * 2 * kHalf * 4,
               h.Time([&](int64_t) { Rope(queue, heads, cos, sin); }, 0.1));
}

}  // namespace

void BenchDense(Harness& h) {
  const Numbers x(h.queue(), kMostRows * kHeadsWidth, 1);
  const WeightType bf16_type{DType::kBF16, 0}, int8_type{DType::kI8, 128};
  BenchDecode(h, x, bf16_type, "");
  BenchDecode(h, x, int8_type, "_int8");
  BenchPrefill(h, x, bf16_type, "");
  BenchPrefill(h, x, int8_type, "_int8");
  BenchNorms(h, x);
}

}  // namespace mm01::gpu
