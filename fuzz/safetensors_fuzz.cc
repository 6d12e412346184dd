// Any bytes as a safetensors file, and as the index of a checkpoint: an error or a header that
// keeps its promises, never a crash.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include "base/check.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace mm01 {
namespace {

constexpr size_t kLengthBytes = 8;

// The tensors cover the data in order, and every size is the product of its shape.
void CheckPromises(const SafetensorsHeader& header, int64_t data_begin, int64_t file_size) {
  int64_t covered = data_begin;
  for (const TensorInfo& t : header.tensors) {
    Check(t.offset == covered && t.bytes >= 0, "tensors lie side by side");
    covered += t.bytes;
    int64_t bytes = SizeOf(t.dtype);
    for (int64_t dim : t.shape) {
      Check(dim >= 0, "dims are not negative");
      bytes *= dim;
    }
    Check(bytes == t.bytes, "bytes fit the shape");
  }
  Check(covered == file_size, "tensors reach the end of the file");
}

void ParseFile(std::string_view file) {
  const auto size = static_cast<int64_t>(file.size());
  const auto length = ParseSafetensorsLength(file, size, "fuzz");
  if (!length.ok()) return;
  const std::string_view json = file.substr(kLengthBytes, static_cast<size_t>(*length));
  const int64_t data_begin = static_cast<int64_t>(kLengthBytes) + *length;
  const auto header = ParseSafetensorsHeader(json, size, "fuzz");
  if (header.ok()) CheckPromises(*header, data_begin, size);
  // Sizes near the end of int64 are out of reach of real bytes.
  const int64_t huge = std::numeric_limits<int64_t>::max();
  const auto large = ParseSafetensorsHeader(json, huge, "fuzz");
  if (large.ok()) CheckPromises(*large, data_begin, huge);
}

// Replaces one number of the header by one where arithmetic breaks, or by another number of it.
void MutateNumber(std::string& header, std::minstd_rand& random) {
  static constexpr std::string_view kNumbers[] = {"0",
                                                  "1",
                                                  "2",
                                                  "4",
                                                  "8",
                                                  "-1",
                                                  "-0",
                                                  "1.0",
                                                  "1e1",
                                                  "4294967296",
                                                  "2147483648",
                                                  "9223372036854775807",
                                                  "9223372036854775808",
                                                  "2305843009213693952",
                                                  "18446744073709551615"};
  const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  const auto from = header.begin() + static_cast<std::ptrdiff_t>(random() % (header.size() + 1));
  const auto begin = std::find_if(from, header.end(), is_digit);
  const auto end = std::find_if_not(begin, header.end(), is_digit);
  if (begin != end) header.replace(begin, end, kNumbers[random() % std::size(kNumbers)]);
}

}  // namespace
}  // namespace mm01

// Mutates the JSON header as text and keeps the length word and the end of the file in step, since
// a blind change of either stops the parser at its first check.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  std::minstd_rand random(seed);
  uint64_t length = 0;
  if (size >= mm01::kLengthBytes) std::memcpy(&length, data, mm01::kLengthBytes);
  if (size < mm01::kLengthBytes || length > size - mm01::kLengthBytes || random() % 8 == 0) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  const auto* text = reinterpret_cast<const char*>(data) + mm01::kLengthBytes;
  std::string header(text, static_cast<size_t>(length));
  size_t body = size - mm01::kLengthBytes - header.size();
  switch (random() % 4) {
    case 0:
      body = random() % 64;
      break;
    case 1:
      mm01::MutateNumber(header, random);
      break;
    default: {
      std::string room = header;
      room.resize(header.size() + 64);
      header = room.substr(
          0, LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(room.data()), header.size(), room.size()));
    }
  }
  if (mm01::kLengthBytes + header.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  body = std::min(body, max_size - mm01::kLengthBytes - header.size());
  length = header.size();
  std::memcpy(data, &length, mm01::kLengthBytes);
  std::memcpy(data + mm01::kLengthBytes, header.data(), header.size());
  std::memset(data + mm01::kLengthBytes + header.size(), 0, body);
  return mm01::kLengthBytes + header.size() + body;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  mm01::ParseFile(bytes);
  (void)mm01::ParseCheckpointIndex(bytes, "fuzz");
  return 0;
}
