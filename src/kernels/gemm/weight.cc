#include "kernels/gemm/weight.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"

namespace mm01 {

int64_t WeightBytes(const WeightType& type, int64_t n, int64_t k) {
  int64_t bytes = n * k * SizeOf(type.dtype);
  if (type.group) bytes += n * ((k + type.group - 1) / type.group) * SizeOf(DType::kBF16);
  return bytes;
}

Weight::Weight(WeightType type, int64_t n, int64_t k) : type_(type), n_(n), k_(k) {
  Check(n > 0 && k > 0, "a weight needs rows and columns");
  const bool is_int8 = type.dtype == DType::kI8;
  Check(is_int8 || type.dtype == DType::kF32 || type.dtype == DType::kBF16,
        "weights are float32, bf16 or int8");
  Check(is_int8 ? (type.group == 32 || type.group == 64 || type.group == 128) : type.group == 0,
        "int8 weights have groups of 32, 64 or 128");
  data_ = Buffer(num_panels() * kPanel * k * SizeOf(type.dtype));
  if (is_int8) scales_ = Buffer(num_panels() * kPanel * num_groups() * SizeOf(DType::kBF16));
}

void Weight::SetRow(int64_t n, std::span<const float> row) {
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_, "row does not fit the weight");
  const int64_t at = n / kPanel * kPanel * k_ + n % kPanel;
  if (type_.dtype == DType::kF32) {
    float* out = data_.As<float>() + at;
    for (int64_t k = 0; k < k_; ++k) out[k * kPanel] = row[static_cast<size_t>(k)];
  } else if (type_.dtype == DType::kBF16) {
    bf16* out = data_.As<bf16>() + at;
    for (int64_t k = 0; k < k_; ++k) out[k * kPanel] = ToBF16(row[static_cast<size_t>(k)]);
  } else {
    std::array<int8_t, 128> q;
    for (int64_t g = 0; g < num_groups(); ++g) {
      const auto begin = static_cast<size_t>(g * type_.group);
      const size_t count = std::min(static_cast<size_t>(type_.group), row.size() - begin);
      bf16 scale;
      QuantizeGroup(row.subspan(begin, count), std::span(q).first(count), scale);
      scales_.As<bf16>()[(n / kPanel * num_groups() + g) * kPanel + n % kPanel] = scale;
      int8_t* out = data_.As<int8_t>() + at + static_cast<int64_t>(begin) * kPanel;
      for (size_t i = 0; i < count; ++i) out[static_cast<int64_t>(i) * kPanel] = q[i];
    }
  }
}

void Weight::SetRow(int64_t n, std::span<const int8_t> row, std::span<const bf16> scales) {
  Check(type_.dtype == DType::kI8, "the weight is not int8");
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_ &&
            static_cast<int64_t>(scales.size()) == num_groups(),
        "row does not fit the weight");
  int8_t* out = data_.As<int8_t>() + n / kPanel * kPanel * k_ + n % kPanel;
  for (int64_t k = 0; k < k_; ++k) out[k * kPanel] = row[static_cast<size_t>(k)];
  bf16* s = scales_.As<bf16>() + n / kPanel * num_groups() * kPanel + n % kPanel;
  for (int64_t g = 0; g < num_groups(); ++g) s[g * kPanel] = scales[static_cast<size_t>(g)];
}

void Weight::GetRow(int64_t n, std::span<float> row) const {
  Check(0 <= n && n < n_ && static_cast<int64_t>(row.size()) == k_, "row does not fit the weight");
  const int64_t at = n / kPanel * kPanel * k_ + n % kPanel;
  if (type_.dtype == DType::kF32) {
    const float* in = data_.As<float>() + at;
    for (int64_t k = 0; k < k_; ++k) row[static_cast<size_t>(k)] = in[k * kPanel];
  } else if (type_.dtype == DType::kBF16) {
    const bf16* in = data_.As<bf16>() + at;
    for (int64_t k = 0; k < k_; ++k) row[static_cast<size_t>(k)] = ToFloat(in[k * kPanel]);
  } else {
    const int8_t* in = data_.As<int8_t>() + at;
    const bf16* s = scales() + n / kPanel * num_groups() * kPanel + n % kPanel;
    for (int64_t k = 0; k < k_; ++k) {
      row[static_cast<size_t>(k)] =
          static_cast<float>(in[k * kPanel]) * ToFloat(s[k / type_.group * kPanel]);
    }
  }
}

void QuantizeGroup(std::span<const float> x, std::span<int8_t> q, bf16& scale) {
  float largest = 0.0f;
  for (float v : x) largest = std::max(largest, std::abs(v));
  scale = ToBF16(largest / 127.0f);
  const float s = ToFloat(scale);
  for (size_t i = 0; i < x.size(); ++i) {
    const float steps = s > 0.0f ? std::nearbyint(x[i] / s) : 0.0f;
    q[i] = static_cast<int8_t>(std::clamp(steps, -127.0f, 127.0f));
  }
}

}  // namespace mm01
