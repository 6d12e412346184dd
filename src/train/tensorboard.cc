#include "train/tensorboard.h"

#include <fmt/core.h>

#include <array>
#include <bit>

namespace mm01::train {
namespace {

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  constexpr uint32_t kCastagnoli = 0x82f63b78u;
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kCastagnoli : 0);
    table[i] = crc;
  }
  return table;
}

uint32_t MaskedCrc(std::string_view data) {
  const uint32_t crc = Crc32c(data);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <typename T>
std::string LittleEndian(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>(value >> 8 * i & 0xff);
  return bytes;
}

// The wire format of protocol buffers, as far as events need it.
class Message {
 public:
  Message& Whole(int field, uint64_t value) {
    Key(field, 0);
    Varint(value);
    return *this;
  }
  Message& Double(int field, double value) {
    Key(field, 1);
    bytes_ += LittleEndian(std::bit_cast<uint64_t>(value));
    return *this;
  }
  Message& Bytes(int field, std::string_view value) {
    Key(field, 2);
    Varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& Float(int field, float value) {
    Key(field, 5);
    bytes_ += LittleEndian(std::bit_cast<uint32_t>(value));
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void Key(int field, int type) { Varint(static_cast<uint64_t>(field << 3 | type)); }
  void Varint(uint64_t value) {
    for (; value >= 128; value >>= 7) bytes_ += static_cast<char>(value | 128);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

}  // namespace

uint32_t Crc32c(std::string_view data) {
  static constexpr std::array<uint32_t, 256> kTable = MakeCrcTable();
  uint32_t crc = ~0u;
  for (const char c : data) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

Result<EventWriter> EventWriter::Create(const std::string& folder, double time,
                                        int64_t first_step) {
  const std::string path =
      fmt::format("{}/events.out.tfevents.{:.0f}.mm01.{}", folder, time, first_step);
  MM01_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path));
  EventWriter writer(std::move(file));
  MM01_RETURN_IF_ERROR(writer.Record(Message().Double(1, time).Bytes(3, "brain.Event:2").bytes()));
  constexpr uint64_t kStart = 1;
  MM01_RETURN_IF_ERROR(writer.Record(Message()
                                         .Double(1, time)
                                         .Whole(2, static_cast<uint64_t>(first_step))
                                         .Bytes(7, Message().Whole(1, kStart).bytes())
                                         .bytes()));
  return writer;
}

Status EventWriter::Add(double time, int64_t step,
                        std::span<const std::pair<std::string, double>> scalars) {
  Message summary;
  for (const auto& [tag, value] : scalars) {
    summary.Bytes(1, Message().Bytes(1, tag).Float(2, static_cast<float>(value)).bytes());
  }
  return Record(Message()
                    .Double(1, time)
                    .Whole(2, static_cast<uint64_t>(step))
                    .Bytes(5, summary.bytes())
                    .bytes());
}

Status EventWriter::Record(std::string_view data) {
  const std::string length = LittleEndian(static_cast<uint64_t>(data.size()));
  std::string record = length + LittleEndian(MaskedCrc(length));
  record += data;
  record += LittleEndian(MaskedCrc(data));
  return file_.Append(record);
}

}  // namespace mm01::train
