#include "io/unpack.h"

#include <bzlib.h>
#include <gtest/gtest.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <string>
#include <vector>

#include "testing/temp_folder.h"

namespace mm01 {
namespace {

std::string Text() {
  std::string text;
  for (int i = 0; i < 60000; ++i) text += "line " + std::to_string(i * 7919 % 1000) + "\n";
  return text;
}

std::string Xz(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  size_t n = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(1, LZMA_CHECK_CRC64, nullptr,
                                    reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<uint8_t*>(out.data()), &n, out.size()),
            LZMA_OK);
  return out.substr(0, n);
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 1, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(text.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 1));
  return out;
}

std::string Bzip2(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  auto n = static_cast<unsigned>(out.size());
  EXPECT_EQ(BZ2_bzBuffToBuffCompress(out.data(), &n, const_cast<char*>(text.data()),
                                     static_cast<unsigned>(text.size()), 1, 0, 0),
            BZ_OK);
  return out.substr(0, n);
}

Result<std::string> ReadAll(const std::string& path, size_t step) {
  MM01_ASSIGN_OR_RETURN(UnpackedFile file, UnpackedFile::Open(path));
  std::string all;
  std::vector<char> room(step);
  while (true) {
    MM01_ASSIGN_OR_RETURN(const size_t n, file.Read(room));
    if (n == 0) return all;
    all.append(room.data(), n);
  }
}

class Unpack : public testing::Test {
 protected:
  std::string Write(const std::string& bytes) const {
    std::ofstream(folder_ / "file", std::ios::binary) << bytes;
    return folder_ / "file";
  }
  TempFolder folder_;
};

TEST_F(Unpack, EveryFormGivesTheSameBytes) {
  const std::string text = Text();
  for (const auto pack : {Xz, Gzip, Zstd, Bzip2}) {
    const std::string packed = pack(text);
    EXPECT_LT(packed.size(), text.size() / 2);
    for (const size_t step : {size_t{1000}, size_t{1} << 20}) {
      EXPECT_EQ(ReadAll(Write(packed), step).value(), text);
    }
    EXPECT_EQ(ReadAll(Write(packed + pack("and more")), 4096).value(), text + "and more");
  }
  EXPECT_EQ(ReadAll(Write(text), 777).value(), text);
  EXPECT_EQ(ReadAll(Write(""), 777).value(), "");
  EXPECT_EQ(ReadAll(Write("BZh"), 777).value(), "BZh");
}

TEST_F(Unpack, DamageIsAnError) {
  const std::string text = Text();
  for (const auto pack : {Xz, Gzip, Zstd, Bzip2}) {
    std::string packed = pack(text);
    const auto cut = ReadAll(Write(packed.substr(0, packed.size() / 2)), 4096);
    ASSERT_FALSE(cut.ok());
    EXPECT_NE(cut.status().message().find("truncated"), std::string::npos)
        << cut.status().message();
    if (pack == Zstd) continue;  // without a checksum of the content, a flip may give other text
    packed[packed.size() / 2] ^= 0x10;
    EXPECT_FALSE(ReadAll(Write(packed), 4096).ok());
  }
}

}  // namespace
}  // namespace mm01
