// Lightning attention at Text-01's shape: 64 heads of 128, bf16, float32 state.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "device/device.h"
#include "eval/bench_gpu/harness.h"
#include "kernels/lightning/lightning.h"
#include "kernels/lightning/lightning_cuda.h"
#include "kernels/lightning/lightning_ref.h"
#include "tensor/dtype.h"

namespace mm01::gpu {
namespace {

constexpr int64_t kHeads = 64, kDim = 128, kWidth = kHeads * kDim, kB = kLightningBlock;
constexpr int64_t kPeriod = 509;  // random rows, over and over

template <typename T>
class OnDevice {
 public:
  OnDevice(Queue& queue, const std::vector<T>& values)
      : buffer_(std::ssize(values) * static_cast<int64_t>(sizeof(T)), Device::kCuda),
        size_(std::ssize(values)) {
    queue.CopyToDevice(buffer_.data(), values.data(), buffer_.bytes());
  }
  // Elements first .. first + n - 1.
  Tensor Part(int64_t first, int64_t n) const {
    return Tensor(buffer_.template As<T>() + first, {n});
  }
  Tensor All() const { return Part(0, size_); }

 private:
  Buffer buffer_;
  int64_t size_;
};

// SiLU of normal numbers, rounded to bf16.
std::vector<float> Inputs(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double normal = RandomNormal(7, 1, static_cast<uint64_t>(i));
    x[static_cast<size_t>(i)] =
        ToFloat(ToBF16(static_cast<float>(normal / (1.0 + std::exp(-normal)))));
  }
  return x;
}

// Fills `to` with `period_bytes` from `from`, over and over.
void Repeat(Queue& queue, const Buffer& to, const void* from, int64_t period_bytes) {
  for (int64_t at = 0; at < to.bytes(); at += period_bytes) {
    queue.CopyOnDevice(to.data() + at, from, std::min(period_bytes, to.bytes() - at));
  }
}

// q, k, v [T, H, 3, K] and out [T, H, V] of a layer, and the random rows that they are made of.
struct Rows {
  std::vector<float> period = Inputs(kPeriod * 3 * kWidth);
  int64_t rows;
  Buffer qkv, out;

  Rows(Queue& queue, int64_t num_rows)
      : rows(num_rows),
        qkv(num_rows * 3 * kWidth * SizeOf(DType::kBF16), Device::kCuda),
        out(num_rows * kWidth * SizeOf(DType::kBF16), Device::kCuda) {
    std::vector<bf16> rounded(period.size());
    std::ranges::transform(period, rounded.begin(), ToBF16);
    const OnDevice<bf16> once(queue, rounded);
    Repeat(queue, qkv, once.All().data, once.All().size() * SizeOf(DType::kBF16));
    queue.Wait();
  }

  Tensor Part(int64_t which, int64_t first, int64_t n) const {
    Tensor t(qkv.As<bf16>() + (first * 3 * kHeads + which) * kDim, {n, kHeads, kDim});
    t.stride = {3 * kWidth, 3 * kDim, 1};
    return t;
  }
  Tensor Out(int64_t first, int64_t n) const {
    return Tensor(out.As<bf16>() + first * kWidth, {n, kHeads, kDim});
  }
  std::vector<float> Host(int64_t which, int64_t n) const {
    std::vector<float> part;
    for (int64_t i = which; i < n * kHeads * 3; i += 3) {
      part.insert(part.end(), period.begin() + i * kDim, period.begin() + (i + 1) * kDim);
    }
    return part;
  }
};

struct Slots {
  int64_t num;
  Buffer s, k_rows, v_rows;

  Slots(Queue& queue, int64_t n, const Rows& rows)
      : num(n),
        s(n * kWidth * kDim * SizeOf(DType::kF32), Device::kCuda),
        k_rows(n * kWidth * kB * SizeOf(DType::kBF16), Device::kCuda),
        v_rows(n * kWidth * kB * SizeOf(DType::kBF16), Device::kCuda) {
    const OnDevice<float> once(queue, rows.period);
    Repeat(queue, s, once.All().data, once.All().size() * SizeOf(DType::kF32));
    Repeat(queue, k_rows, rows.qkv.data(), rows.qkv.bytes());
    Repeat(queue, v_rows, rows.qkv.data(), rows.qkv.bytes());
    queue.Wait();
  }
  LightningState State() const {
    return {Tensor(s.As<float>(), {num, kHeads, kDim, kDim}),
            Tensor(k_rows.As<bf16>(), {num, kHeads, kB * kDim}),
            Tensor(v_rows.As<bf16>(), {num, kHeads, kB * kDim})};
  }
};

// What calls of N sequences need beside rows and slots.
struct Batch {
  OnDevice<float> slope;
  OnDevice<int64_t> cu_seqlens, position;
  OnDevice<int32_t> slot;

  Batch(Queue& queue, const std::vector<int64_t>& cu, const std::vector<int64_t>& positions,
        const std::vector<int32_t>& slots)
      : slope(queue, LightningSlopes(SlopeRule::kOriginal, kHeads, 0, 80)),
        cu_seqlens(queue, cu),
        position(queue, positions),
        slot(queue, slots) {}
};

// Sequences of `length` rows, from position 0 on in slots 0, 1, ...
Batch Equal(Queue& queue, int64_t num_seqs, int64_t length) {
  std::vector<int64_t> cu = {0}, position;
  std::vector<int32_t> slot;
  for (int64_t n = 0; n < num_seqs; ++n) {
    cu.push_back((n + 1) * length);
    position.push_back(0);
    slot.push_back(static_cast<int32_t>(n));
  }
  return Batch(queue, cu, position, slot);
}

LightningArgs ArgsOf(const Rows& rows, int64_t first, int64_t n, const Batch& batch,
                     const Slots& slots, int64_t max_rows) {
  return {.q = rows.Part(0, first, n),
          .k = rows.Part(1, first, n),
          .v = rows.Part(2, first, n),
          .slope = batch.slope.All(),
          .cu_seqlens = batch.cu_seqlens.All(),
          .position = batch.position.All(),
          .slot = batch.slot.All(),
          .max_rows = max_rows,
          .settled = true,  // the call ahead has other slots, or has been waited for
          .state = slots.State(),
          .out = rows.Out(first, n)};
}

double RelativeError(std::span<const bf16> got, std::span<const double> want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(ToFloat(got[i])) - want[i];
    difference += d * d;
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// Reads 150 tokens, then 50 one by one.
void CheckAnswers(Harness& h, const Rows& rows, const Slots& slots) {
  constexpr int64_t kPrompt = 150, kTokens = 200;
  Queue& queue = h.queue();
  const Batch prompt = Equal(queue, 1, kPrompt);
  cuda::Lightning(queue, ArgsOf(rows, 0, kPrompt, prompt, slots, kPrompt));
  for (int64_t t = kPrompt; t < kTokens; ++t) {
    const Batch one(queue, {0, 1}, {t}, {0});
    cuda::Lightning(queue, ArgsOf(rows, t, 1, one, slots, 1));
    queue.Wait();
  }
  std::vector<bf16> out(static_cast<size_t>(kTokens * kWidth));
  queue.CopyToHost(out.data(), rows.out.data(), std::ssize(out) * SizeOf(DType::kBF16));
  std::vector<double> state(static_cast<size_t>(kWidth * kDim));
  const std::vector<double> want =
      ReferenceLightning(rows.Host(0, kTokens), rows.Host(1, kTokens), rows.Host(2, kTokens),
                         LightningSlopes(SlopeRule::kOriginal, kHeads, 0, 80), kDim, state);
  const auto cut = static_cast<std::ptrdiff_t>(kPrompt * kWidth);
  const double prefill =
      RelativeError({out.begin(), out.begin() + cut}, {want.begin(), want.begin() + cut});
  const double decode =
      RelativeError({out.begin() + cut, out.end()}, {want.begin() + cut, want.end()});
  h.Say(fmt::format("lightning: relative error of prefill {:.2e}, of decode {:.2e}", prefill,
                    decode));
  if (!(prefill <= 1.7e-3 && decode <= 1.75e-3)) {
    throw DeviceError("lightning attention differs from the reference");
  }
}

void AddFloor(Harness& h, const std::string& name, double seconds, double bytes) {
  const double floor = h.Floor(bytes);
  h.Add({.name = name,
         .value = seconds / floor,
         .unit = "x floor",
         .ceiling = 1,
         .share = floor / seconds});
  h.Say(fmt::format("  {:.1f} us, floor {:.1f} us", seconds * 1e6, floor * 1e6));
}

double PrefillBytes(int64_t rows) {
  return 4.0 * static_cast<double>(rows * kWidth * SizeOf(DType::kBF16));
}

void BenchPrefill(Harness& h, const Rows& rows, const Slots& slots) {
  Queue& queue = h.queue();
  for (const int64_t n : {8192, 65'536, 1'048'576}) {
    const std::string name = "lightning_prefill_x_floor_" + std::to_string(n);
    if (n > rows.rows) {
      h.Say(name + ": not enough memory");
      continue;
    }
    const Batch batch = Equal(queue, 1, n);
    const int64_t parts = std::min<int64_t>(8, rows.rows / n);
    const double seconds = h.TimeGraph(
        parts, [&](int64_t i) { cuda::Lightning(queue, ArgsOf(rows, i * n, n, batch, slots, n)); });
    AddFloor(h, name, seconds, PrefillBytes(n));
  }
  constexpr int64_t kSeqs = 32, kLength = 1024;
  const Batch batch = Equal(queue, kSeqs, kLength);
  const int64_t n = kSeqs * kLength, parts = std::min<int64_t>(4, rows.rows / n);
  const double seconds = h.TimeGraph(parts, [&](int64_t i) {
    cuda::Lightning(queue, ArgsOf(rows, i * n, n, batch, slots, kLength));
  });
  AddFloor(h, "lightning_packed_x_floor_32x1024", seconds, PrefillBytes(n));
}

// 64 calls, each sequence at another place of its block in each, so that every place comes once.
void BenchDecode(Harness& h, const Rows& rows, int64_t num_seqs) {
  Queue& queue = h.queue();
  const int64_t sets = std::max<int64_t>(2, 64 / num_seqs);
  const Slots slots(queue, sets * num_seqs, rows);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < kB; ++i) {
    std::vector<int64_t> cu = {0}, position;
    std::vector<int32_t> slot;
    for (int64_t n = 0; n < num_seqs; ++n) {
      cu.push_back(n + 1);
      position.push_back(5 * kB + (i + n * std::max<int64_t>(1, kB / num_seqs)) % kB);
      slot.push_back(static_cast<int32_t>(i % sets * num_seqs + n));
    }
    batches.emplace_back(queue, cu, position, slot);
  }
  const int64_t parts = std::min(kB, rows.rows / num_seqs);
  const double seconds = h.TimeGraph(kB, [&](int64_t i) {
    cuda::Lightning(queue, ArgsOf(rows, i % parts * num_seqs, num_seqs,
                                  batches[static_cast<size_t>(i)], slots, 1));
  });
  const double bytes = 2.0 * static_cast<double>(num_seqs * kWidth * kDim * SizeOf(DType::kF32));
  if (num_seqs > 1) {
    AddFloor(h, "lightning_decode_x_floor_b" + std::to_string(num_seqs), seconds, bytes);
    return;
  }
  const double floor_us = h.Floor(bytes) * 1e6;
  h.Add({.name = "lightning_decode_us_b1",
         .value = seconds * 1e6,
         .unit = "us",
         .ceiling = floor_us,
         .share = floor_us / (seconds * 1e6)});
}

}  // namespace

void BenchLightning(Harness& h) {
  const auto gpu = FindCuda();
  if (!gpu.ok()) throw DeviceError(gpu.status().message());
  constexpr int64_t kLongest = 1'048'576, kShort = 65'536, kSpare = int64_t{2} << 30;
  const auto row_bytes = static_cast<int64_t>(PrefillBytes(1));
  const bool fits = gpu.value().free_bytes >= kLongest * row_bytes + kSpare;
  {
    const Rows rows(h.queue(), fits ? kLongest : kShort);
    const Slots slots(h.queue(), 32, rows);
    CheckAnswers(h, rows, slots);
    BenchPrefill(h, rows, slots);
  }
  const Rows rows(h.queue(), 256 * kB);
  for (const int64_t num_seqs : {1, 16, 64, 256}) BenchDecode(h, rows, num_seqs);
}

}  // namespace mm01::gpu
