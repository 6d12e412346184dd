#include "kernels/gemm/weight.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace mm01 {

int64_t WeightBytes(const WeightType& type, int64_t n, int64_t k) {
  int64_t bytes = n * k * SizeOf(type.dtype);
  if (type.group) bytes += n * ((k + type.group - 1) / type.group) * SizeOf(DType::kBF16);
  return bytes;
}

namespace {

constexpr int64_t kAlign = 256;  // of data and of scales, for bulk copies

int64_t Aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

Weight::Weight(WeightType type, int64_t n, int64_t k, WeightLayout layout,
               std::shared_ptr<Buffer> memory, int64_t offset)
    : type_(type), layout_(layout), n_(n), k_(k), memory_(std::move(memory)) {
  Check(n > 0 && k > 0, "a weight needs rows and columns");
  const bool is_int8 = type.dtype == DType::kI8;
  Check(is_int8 || type.dtype == DType::kF32 || type.dtype == DType::kBF16,
        "weights are float32, bf16 or int8");
  Check(is_int8 ? (type.group == 32 || type.group == 64 || type.group == 128) : type.group == 0,
        "int8 weights have groups of 32, 64 or 128");
  if (memory_) data_ = memory_->data() + offset;
}

Weight::Weight(WeightType type, int64_t n, int64_t k, Device device)
    : Weight(std::move(Stack(1, type, n, k, device)[0])) {}

Weight Weight::Staging(WeightType type, int64_t n, int64_t k) {
  Weight w(type, n, k, WeightLayout::kRows, nullptr, 0);
  w.memory_ = std::make_shared<Buffer>(Aligned(w.data_bytes()) + w.scale_bytes());
  w.data_ = w.memory_->data();
  if (type.group) w.scales_ = reinterpret_cast<bf16*>(w.data_ + Aligned(w.data_bytes()));
  return w;
}

// All data, then all scales: weight i of the stack begins i sizes after the first.
std::vector<Weight> Weight::Stack(int64_t count, WeightType type, int64_t n, int64_t k,
                                  Device device) {
  const WeightLayout layout = device == Device::kCpu ? WeightLayout::kPanels : WeightLayout::kRows;
  const Weight shape(type, n, k, layout, nullptr, 0);
  const int64_t scales = Aligned(count * shape.data_bytes());
  const auto memory = std::make_shared<Buffer>(scales + count * shape.scale_bytes(), device);
  std::vector<Weight> all;
  for (int64_t i = 0; i < count; ++i) {
    Weight w(type, n, k, layout, memory, i * shape.data_bytes());
    if (type.group) {
      w.scales_ = reinterpret_cast<bf16*>(memory->data() + scales + i * shape.scale_bytes());
    }
    all.push_back(std::move(w));
  }
  return all;
}

void Weight::SetRow(int64_t n, std::span<const float> row) {
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_ && device() == Device::kCpu,
        "row does not fit the weight");
  const int64_t at = first(n, k_), step = this->step();
  if (type_.dtype == DType::kF32) {
    float* out = reinterpret_cast<float*>(data_) + at;
    for (int64_t k = 0; k < k_; ++k) out[k * step] = row[static_cast<size_t>(k)];
  } else if (type_.dtype == DType::kBF16) {
    bf16* out = reinterpret_cast<bf16*>(data_) + at;
    for (int64_t k = 0; k < k_; ++k) out[k * step] = ToBF16(row[static_cast<size_t>(k)]);
  } else {
    std::array<int8_t, 128> q;
    for (int64_t g = 0; g < num_groups(); ++g) {
      const auto begin = static_cast<size_t>(g * type_.group);
      const size_t count = std::min(static_cast<size_t>(type_.group), row.size() - begin);
      bf16 scale;
      QuantizeGroup(row.subspan(begin, count), std::span(q).first(count), scale);
      scales_[first(n, num_groups()) + g * step] = scale;
      int8_t* out = reinterpret_cast<int8_t*>(data_) + at + static_cast<int64_t>(begin) * step;
      for (size_t i = 0; i < count; ++i) out[static_cast<int64_t>(i) * step] = q[i];
    }
  }
}

void Weight::SetRow(int64_t n, std::span<const int8_t> row, std::span<const bf16> scales) {
  Check(type_.dtype == DType::kI8, "the weight is not int8");
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_ &&
            static_cast<int64_t>(scales.size()) == num_groups() && device() == Device::kCpu,
        "row does not fit the weight");
  const int64_t step = this->step();
  int8_t* out = reinterpret_cast<int8_t*>(data_) + first(n, k_);
  for (int64_t k = 0; k < k_; ++k) out[k * step] = row[static_cast<size_t>(k)];
  bf16* s = scales_ + first(n, num_groups());
  for (int64_t g = 0; g < num_groups(); ++g) s[g * step] = scales[static_cast<size_t>(g)];
}

void Weight::GetRow(int64_t n, std::span<float> row) const {
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_ && device() == Device::kCpu,
        "row does not fit the weight");
  const int64_t at = first(n, k_), step = this->step();
  if (type_.dtype == DType::kF32) {
    const float* in = reinterpret_cast<const float*>(data_) + at;
    for (int64_t k = 0; k < k_; ++k) row[static_cast<size_t>(k)] = in[k * step];
  } else if (type_.dtype == DType::kBF16) {
    const bf16* in = reinterpret_cast<const bf16*>(data_) + at;
    for (int64_t k = 0; k < k_; ++k) row[static_cast<size_t>(k)] = ToFloat(in[k * step]);
  } else {
    const int8_t* in = reinterpret_cast<const int8_t*>(data_) + at;
    const bf16* s = scales_ + first(n, num_groups());
    for (int64_t k = 0; k < k_; ++k) {
      row[static_cast<size_t>(k)] =
          static_cast<float>(in[k * step]) * ToFloat(s[k / type_.group * step]);
    }
  }
}

void Weight::CopyRows(Queue& queue, int64_t first, const Weight& staging, int64_t count) {
  Check(layout_ == WeightLayout::kRows && staging.layout_ == WeightLayout::kRows &&
            staging.type_ == type_ && staging.k_ == k_ && first + count <= n_ &&
            count <= staging.n_,
        "rows do not fit the weight");
  const int64_t row = k_ * SizeOf(type_.dtype);
  queue.CopyToDevice(data_ + first * row, staging.data_, count * row);
  if (type_.group) {
    queue.CopyToDevice(scales_ + first * num_groups(), staging.scales_,
                       count * num_groups() * SizeOf(DType::kBF16));
  }
}

void QuantizeGroup(std::span<const float> x, std::span<int8_t> q, bf16& scale) {
  float largest = 0.0f;
  for (float v : x) {
    if (std::abs(v) > largest || std::isnan(v)) largest = std::abs(v);  // a NaN stays
  }
  scale = ToBF16(largest / 127.0f);
  const float s = ToFloat(scale);
  const bool has_steps = s > 0.0f && std::isfinite(s);
  for (size_t i = 0; i < x.size(); ++i) {
    const float steps = has_steps ? std::nearbyint(x[i] / s) : 0.0f;
    q[i] = static_cast<int8_t>(std::clamp(steps, -127.0f, 127.0f));
  }
}

}  // namespace mm01
