// Event files that TensorBoard reads: scalars by name and step.
//
//   record   uint64 length | uint32 masked CRC-32C of it | data | uint32 masked CRC-32C of the data
//   data     a protocol buffer: Event {1: double wall time, 2: int64 step, 3: string file version,
//            5: Summary {1: Value {1: string tag, 2: float value}}, 7: SessionLog {1: START}}
//   masked   ((crc >> 15) | (crc << 17)) + 0xa282ead8, little-endian
//
// Sources   tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "train/append_file.h"

namespace mm01::train {

uint32_t Crc32c(std::string_view data);

class EventWriter {
 public:
  // A new file in `folder`, whose name holds the time. A run that goes on from `first_step` hides
  // what older files of the folder say of later steps. Times are seconds since 1970.
  static Result<EventWriter> Create(const std::string& folder, double time, int64_t first_step);

  // The file holds the scalars when this returns, though the disk may not.
  Status Add(double time, int64_t step, std::span<const std::pair<std::string, double>> scalars);

 private:
  explicit EventWriter(AppendFile file) : file_(std::move(file)) {}
  Status Record(std::string_view data);

  AppendFile file_;
};

}  // namespace mm01::train
