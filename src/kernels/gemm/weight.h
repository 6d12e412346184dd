// A weight matrix [N, K] laid out for the kernels of its device.
//
// On the CPU rows are taken 16 at a time into a panel in which k varies slowest: element (n, k)
// stands at [n / 16][k][n % 16], and a panel that N does not fill ends in zeros. So a kernel reads
// memory in one direction, 16 outputs wide, and adds over k in one order whatever the number of
// rows it multiplies. On a GPU rows are as on disk: [N][K], scales [N][groups].
//
//   float32, bf16   as they are
//   int8            x = q * scale, one bf16 scale for `group` neighbours in k (32, 64 or 128). The
//                   product of 8 and 8 bits is exact in float32, so decoding never rounds.
//
// The canonical, unpacked form on disk is NAME [N, K] int8 with NAME_scale [N, K / group] bf16.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "device/queue.h"
#include "tensor/dtype.h"

namespace mm01 {

inline constexpr int64_t kPanel = 16;

// What a weight is kept as in memory.
struct WeightType {
  DType dtype = DType::kF32;  // kF32, kBF16 or kI8
  int64_t group = 0;          // kI8: 32, 64 or 128

  friend bool operator==(const WeightType&, const WeightType&) = default;
};

// Bytes of an [n, k] weight in canonical form. `group` need not divide k: the last one is short.
int64_t WeightBytes(const WeightType& type, int64_t n, int64_t k);

enum class WeightLayout { kPanels, kRows };

class Weight {
 public:
  Weight() = default;
  // In panels on the CPU, in rows on a GPU.
  Weight(WeightType type, int64_t n, int64_t k, Device device = Device::kCpu);
  Weight(Weight&&) = default;
  Weight& operator=(Weight&&) = default;
  // In rows in the CPU's memory: what CopyRows takes.
  static Weight Staging(WeightType type, int64_t n, int64_t k);
  // Weights of one shape side by side in one memory, as a GPU wants the experts of a layer.
  static std::vector<Weight> Stack(int64_t count, WeightType type, int64_t n, int64_t k,
                                   Device device);

  const WeightType& type() const { return type_; }
  Device device() const { return memory_ ? memory_->device() : Device::kCpu; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t num_panels() const { return (n_ + kPanel - 1) / kPanel; }
  int64_t num_groups() const { return type_.group ? (k_ + type_.group - 1) / type_.group : 0; }
  int64_t bytes() const { return data_bytes() + scale_bytes(); }
  bool empty() const { return n_ == 0; }

  const void* data() const { return data_; }
  const bf16* scales() const { return scales_; }  // panels: [panel][group][16]

  // Stores row n, rounding to bf16 or quantizing as the type asks. Rows may come in any order and
  // from different threads. In the CPU's memory only.
  void SetRow(int64_t n, std::span<const float> row);
  // The same for a row that is int8 already, with the scales of this weight's groups.
  void SetRow(int64_t n, std::span<const int8_t> row, std::span<const bf16> scales);
  // Row n as float32. In the CPU's memory only.
  void GetRow(int64_t n, std::span<float> row) const;
  // Rows first, first + 1, ... of a weight in rows: the first `count` of `staging`.
  void CopyRows(Queue& queue, int64_t first, const Weight& staging, int64_t count);

 private:
  Weight(WeightType type, int64_t n, int64_t k, WeightLayout layout, std::shared_ptr<Buffer> memory,
         int64_t offset);
  int64_t stored_rows() const {
    return layout_ == WeightLayout::kPanels ? num_panels() * kPanel : n_;
  }
  int64_t data_bytes() const { return stored_rows() * k_ * SizeOf(type_.dtype); }
  int64_t scale_bytes() const { return stored_rows() * num_groups() * SizeOf(DType::kBF16); }
  // Where element (n, 0) stands, and the next in k; the same of a row's scales.
  int64_t first(int64_t n, int64_t width) const {
    return layout_ == WeightLayout::kPanels ? n / kPanel * kPanel * width + n % kPanel : n * width;
  }
  int64_t step() const { return layout_ == WeightLayout::kPanels ? kPanel : 1; }

  WeightType type_;
  WeightLayout layout_ = WeightLayout::kPanels;
  int64_t n_ = 0;
  int64_t k_ = 0;
  std::shared_ptr<Buffer> memory_;  // shared by the weights of a stack
  std::byte* data_ = nullptr;
  bf16* scales_ = nullptr;
};

// Round to nearest with a scale of (largest magnitude) / 127 rounded to bf16, so |x - q scale| is
// at most scale / 2, or a little more for the largest. A group of zeros has scale 0; one with an
// infinity or a NaN has a scale that is not finite, and q of 0.
void QuantizeGroup(std::span<const float> x, std::span<int8_t> q, bf16& scale);

}  // namespace mm01
