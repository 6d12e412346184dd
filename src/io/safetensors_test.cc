#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "io/checked.h"

namespace mm01 {
namespace {

namespace fs = std::filesystem;

std::string LengthWord(uint64_t n) {
  std::string word(8, '\0');
  std::memcpy(word.data(), &n, 8);
  return word;
}

std::string FileOf(const std::string& header, int64_t data_bytes) {
  return LengthWord(header.size()) + header + std::string(static_cast<size_t>(data_bytes), 'd');
}

Result<SafetensorsHeader> Parse(const std::string& header, int64_t data_bytes) {
  return ParseSafetensorsHeader(header, 8 + static_cast<int64_t>(header.size()) + data_bytes, "f");
}

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

void ExpectError(const Status& status, Code code, const std::string& part) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos)
      << status.message() << "\nwanted " << part;
}

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() {
    std::string name = testing::TempDir() + "mm01_safetensors_XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~SafetensorsTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& contents) const {
    std::ofstream(Path("f"), std::ios::binary) << contents;
    return Path("f");
  }

  fs::path folder_;
};

TEST(Checked, SumsAndProductsSayWhenTheyOverflow) {
  EXPECT_EQ(CheckedMul(1 << 20, 1 << 20), int64_t{1} << 40);
  EXPECT_EQ(CheckedMul(int64_t{1} << 32, int64_t{1} << 31), std::nullopt);
  EXPECT_EQ(CheckedAdd(INT64_MAX, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd(INT64_MAX - 1, 1), INT64_MAX);
}

TEST(Checked, QuotedNamesCannotSteerATerminal) {
  EXPECT_EQ(Quoted("a\x1b[2J\"\\\xff"), R"("a\x1b[2J\"\\\xff")");
  EXPECT_EQ(Quoted(std::string(101, 'x')), "\"" + std::string(100, 'x') + "...\"");
}

TEST(SafetensorsHeader, IsReadInTheOrderOfTheData) {
  const auto header =
      Parse("{\"__metadata__\":{\"format\":\"pt\",\"empty\":\"\"}," +
                Tensor("b", "F32", "[2,3]", "[2,26]") + "," + Tensor("a", "BF16", "[]", "[0,2]") +
                "," + Tensor("none", "I64", "[4,0]", "[2,2]") + "}  \n",
            26);
  ASSERT_TRUE(header.ok()) << header.status().message();
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->metadata.size(), 2u);
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].shape, std::vector<int64_t>{});
  EXPECT_EQ(header->tensors[0].bytes, 2);
  EXPECT_EQ(header->tensors[1].name, "none");
  EXPECT_EQ(header->tensors[1].bytes, 0);
  const TensorInfo& b = header->tensors[2];
  EXPECT_EQ(b.dtype, DType::kF32);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.bytes, 24);
  EXPECT_EQ(b.num_elements(), 6);
}

TEST(SafetensorsHeader, MayHoldNoTensors) {
  EXPECT_TRUE(Parse("{}", 0).ok());
  EXPECT_TRUE(Parse("{\"__metadata__\":{}}", 0).ok());
}

TEST(SafetensorsHeader, KnowsEveryElementType) {
  const std::vector<std::pair<std::string, int64_t>> types = {
      {"F64", 8},     {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1},
      {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},
      {"U64", 8},     {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}};
  for (const auto& [name, size] : types) {
    const std::string end = std::to_string(3 * size);
    const auto header = Parse("{" + Tensor("t", name, "[3]", "[0," + end + "]") + "}", 3 * size);
    EXPECT_TRUE(header.ok()) << header.status().message();
  }
  ExpectError(Parse("{" + Tensor("t", "F4", "[2]", "[0,1]") + "}", 1).status(), Code::kUnsupported,
              "tensor \"t\": dtype \"F4\" is not one of F64, F32");
}

struct Refusal {
  std::string header;
  int64_t data_bytes;
  std::string message;
};

void ExpectRefused(const std::vector<Refusal>& refusals) {
  for (const Refusal& r : refusals) {
    SCOPED_TRACE(r.header);
    const auto header = Parse(r.header, r.data_bytes);
    ASSERT_FALSE(header.ok());
    ExpectError(header.status(), Code::kInvalid, "f: ");
    ExpectError(header.status(), Code::kInvalid, r.message);
  }
}

TEST(SafetensorsHeader, MustBeJsonThatBeginsWithABrace) {
  const std::string t = Tensor("t", "U8", "[1]", "[0,1]");
  ExpectRefused({
      {"", 0, "begins with \"\", wanted \"{\""},
      {" {}", 0, "begins with \" \""},
      {"[]", 0, "begins with \"[\""},
      {"\xef\xbb\xbf{}", 0, "begins with"},
      {"{", 0, "not valid JSON"},
      {"{}}", 0, "not valid JSON"},
      {"{}x", 0, "not valid JSON"},
      {"{" + t + ",}", 1, "not valid JSON"},
      {"{/**/}", 0, "not valid JSON"},
      {std::string("{}\0\0", 4), 0, "not valid JSON at byte 3"},
      {std::string("{}\0PK", 5), 0, "not valid JSON at byte 3"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {"{\"\\ud800\":1}", 0, "not valid JSON"},
      {"{" + Tensor("t", "U8", "[NaN]", "[0,1]") + "}", 1, "not valid JSON"},
      {"{" + Tensor("t", "U8", "[01]", "[0,1]") + "}", 1, "not valid JSON"},
  });
}

TEST(SafetensorsHeader, RefusesKeysThatStandTwice) {
  const std::string t = Tensor("t", "U8", "[1]", "[0,1]");
  ExpectRefused({
      {"{" + t + "," + t + "}", 1, "tensor \"t\" stands twice"},
      {"{" + t + "," + Tensor("\\u0074", "U8", "[1]", "[1,2]") + "}", 2,
       "tensor \"t\" stands twice"},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ stands twice"},
      {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "\"k\" stands twice in __metadata__"},
      {R"({"t":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "tensor \"t\": dtype stands twice"},
      {R"({"t":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1,
       "shape stands twice"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}})", 1,
       "data_offsets stands twice"},
  });
}

TEST(SafetensorsHeader, RefusesWrongTypes) {
  ExpectRefused({
      {R"({"t":1})", 0, "tensor \"t\": found the number 1, wanted an object"},
      {R"({"t":null})", 0, "found null"},
      {R"({"t":["U8",[1],[0,1]]})", 1, "found a list, wanted an object"},
      {R"({"t":{}})", 0, "wanted dtype, shape and data_offsets, one is missing"},
      {R"({"t":{"dtype":"U8","shape":[1]}})", 1, "one is missing"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1, "unknown field \"x\""},
      {R"({"t":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "wanted a text for dtype"},
      {R"({"t":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "wanted a list for shape"},
      {R"({"t":{"dtype":"U8","shape":{"a":1},"data_offsets":[0,1]}})", 1, "found an object"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":"0,1"}})", 1, "a list for data_offsets"},
      {"{" + Tensor("t", "U8", "[-1]", "[0,1]") + "}", 1, "found the negative number -1"},
      {"{" + Tensor("t", "U8", "[-0]", "[0,0]") + "}", 0, "found the negative number"},
      {"{" + Tensor("t", "U8", "[1.0]", "[0,1]") + "}", 1, "found the number \"1.0\""},
      {"{" + Tensor("t", "U8", "[1e0]", "[0,1]") + "}", 1, "found the number \"1e0\""},
      {"{" + Tensor("t", "U8", "[true]", "[0,1]") + "}", 1, "found a truth value"},
      {"{" + Tensor("t", "U8", "[[1]]", "[0,1]") + "}", 1, "found a list"},
      {"{" + Tensor("t", "U8", "[\"1\"]", "[0,1]") + "}", 1, "found the text \"1\""},
      {"{" + Tensor("t", "U8", "[9223372036854775808]", "[0,1]") + "}", 1, "2^63 - 1 in shape"},
      {"{" + Tensor("t", "U8", "[99999999999999999999]", "[0,1]") + "}", 1, "2^63 - 1 in shape"},
      {"{" + Tensor("t", "U8", "[1]", "[]") + "}", 1, "data_offsets holds 0 numbers, wanted 2"},
      {"{" + Tensor("t", "U8", "[1]", "[1]") + "}", 1, "data_offsets holds 1 numbers, wanted 2"},
      {"{" + Tensor("t", "U8", "[1]", "[0,1,2]") + "}", 1, "more than 2 numbers"},
      {"{" + Tensor("t", "U8", "[1]", "[1,0]") + "}", 1, "ends at 0, before its begin at 1"},
      {R"({"__metadata__":null})", 0, "found null, wanted an object of texts for __metadata__"},
      {R"({"__metadata__":[]})", 0, "found a list"},
      {R"({"__metadata__":{"k":1}})", 0, "wanted a text for \"k\" of __metadata__"},
      {R"({"__metadata__":{"k":{"a":"b"}}})", 0, "wanted a text for \"k\" of __metadata__"},
  });
  ExpectError(Parse("{" + Tensor("t", "u8", "[1]", "[0,1]") + "}", 1).status(), Code::kUnsupported,
              "dtype \"u8\" is not one of");
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndUncoveredData) {
  const std::string a = Tensor("a", "U8", "[4]", "[0,4]");
  ExpectRefused({
      {"{" + Tensor("t", "U8", "[4]", "[1,5]") + "}", 5, "begins at byte 1 of the data, wanted 0"},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[5,9]") + "}", 9, "wanted 4: it leaves a hole"},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[3,7]") + "}", 7, "wanted 4: it overlaps"},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[0,4]") + "}", 4, "it overlaps another tensor"},
      {"{" + a + "," + Tensor("b", "U8", "[0]", "[2,2]") + "}", 4, "it overlaps another tensor"},
      {"{" + a + "}", 3, "take 4 bytes of data, the file holds 3: it is truncated"},
      {"{" + a + "}", 5, "take 4 bytes of data, the file holds 5: the rest is no tensor"},
      {"{}", 1, "take 0 bytes of data, the file holds 1"},
      {"{" + Tensor("t", "F32", "[2,3]", "[0,20]") + "}", 20,
       "data_offsets hold 20 bytes, shape [2, 3] of F32 wants 24"},
  });
}

TEST(SafetensorsHeader, RefusesSizesThatOverflow) {
  ExpectRefused({
      {"{" + Tensor("t", "U8", "[4294967296,4294967296]", "[0,0]") + "}", 0, "overflows"},
      {"{" + Tensor("t", "U8", "[4294967296,4294967297]", "[0,4294967296]") + "}", 0, "overflows"},
      {"{" + Tensor("t", "F64", "[2305843009213693952]", "[0,0]") + "}", 0, "overflows"},
      {"{" + Tensor("t", "U8", "[0,4294967296,4294967296]", "[0,0]") + "}", 0, "overflows"},
      {"{" + Tensor("t", "F32", "[2305843009213693952,0]", "[0,0]") + "}", 0, "overflows"},
      {"{" + Tensor("t", "F32", "[9223372036854775807]", "[0,9223372036854775804]") + "}", 0,
       "overflows"},
      {"{" + Tensor("t", "U8", "[9223372036854775807]", "[0,9223372036854775807]") + "," +
           Tensor("u", "U8", "[1]", "[9223372036854775807,9223372036854775807]") + "}",
       0, "wants 1"},
  });
}

TEST(SafetensorsHeader, RefusesManyDimsAndDeepNestingInBoundedMemory) {
  std::string dims = "1";
  for (int i = 0; i < 32; ++i) dims += ",1";
  ExpectError(Parse("{" + Tensor("t", "U8", "[" + dims + "]", "[0,1]") + "}", 1).status(),
              Code::kUnsupported, "more than 32 dims");
  const std::string deep(1'000'000, '[');
  ExpectRefused({{"{\"t\":" + deep, 0, "found a list"},
                 {"{\"t\":{\"shape\":" + deep, 0, "found a list"},
                 {"{\"__metadata__\":{\"k\":" + deep, 0, "found a list"}});
}

TEST(SafetensorsLength, MustFitTheFileAndTheLimit) {
  const auto length = [](const std::string& bytes, int64_t size) {
    return ParseSafetensorsLength(bytes, size, "f");
  };
  EXPECT_EQ(length(LengthWord(2), 10).value(), 2);
  EXPECT_EQ(length(LengthWord(100'000'000), 100'000'008).value(), 100'000'000);
  ExpectError(length("", 0).status(), Code::kInvalid, "0 bytes, a safetensors file has at least 8");
  ExpectError(length("1234567", 7).status(), Code::kInvalid, "7 bytes");
  ExpectError(length(LengthWord(3), 10).status(), Code::kInvalid, "says 3 bytes, only 2 follow");
  ExpectError(length(LengthWord(100'000'001), 1 << 30).status(), Code::kInvalid,
              "says 100000001 bytes, at most 100000000");
  ExpectError(length(LengthWord(UINT64_MAX), 10).status(), Code::kInvalid, "18446744073709551615");
  ExpectError(length(LengthWord(2) + "[]", 10).status(), Code::kInvalid, "begins with \"[\"");
}

TEST(SafetensorsLength, SaysWhatAPickleOrAZipArchiveIs) {
  const std::string zip("PK\x03\x04\x00\x00\x08\x08\x00\x00", 10);
  const std::string pickle("\x80\x02}q\x00(X\x01\x00\x00", 10);
  ExpectError(
      ParseSafetensorsLength(zip, 1000, "f").status(), Code::kInvalid,
      "is a zip archive, as PyTorch writes its pickles, wanted safetensors: models are read as "
      "data, never as code");
  ExpectError(ParseSafetensorsLength(pickle, 1000, "f").status(), Code::kInvalid, "is a pickle");
}

TEST_F(SafetensorsTest, WhatIsWrittenIsReadBack) {
  const std::vector<float> floats = {1.5f, -2.0f, 0.25f, 3e9f, -0.0f, 7.0f};
  const std::vector<uint8_t> bytes = {1, 2, 3};
  auto writer = SafetensorsWriter::Create(
      Path("f"),
      {{.name = "w \"quoted\" \xc3\xa9", .dtype = DType::kU8, .shape = {3}},
       {.name = "empty", .dtype = DType::kF16, .shape = {0, 5}},
       {.name = "x", .dtype = DType::kF32, .shape = {2, 3}}},
      {{"format", "pt"}, {"line", "a\nb"}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  EXPECT_EQ(writer->tensors()[0].offset % 8, 0) << "the data begin at a multiple of 8";
  const auto data = std::as_bytes(std::span(floats));
  ASSERT_TRUE(writer->Append(std::as_bytes(std::span(bytes))).ok());
  ASSERT_TRUE(writer->Append(data.subspan(0, 5)).ok());
  EXPECT_FALSE(fs::exists(Path("f"))) << "not before Finish";
  ASSERT_TRUE(writer->Append(data.subspan(5)).ok());
  ASSERT_TRUE(writer->Finish().ok());

  const auto file = SafetensorsFile::Open(Path("f"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}, {"line", "a\nb"}}));
  EXPECT_EQ(file->tensors().size(), 3u);
  ASSERT_NE(file->Find("x"), nullptr);
  ASSERT_NE(file->Find("w \"quoted\" \xc3\xa9"), nullptr);
  EXPECT_EQ(file->Find("y"), nullptr);
  EXPECT_EQ(file->Find("x")->offset, writer->tensors()[2].offset);
  EXPECT_EQ(file->ReadAll<float>(*file->Find("x")).value(), floats);
  EXPECT_EQ(file->ReadAll<uint8_t>(file->tensors()[0]).value(), bytes);

  float third = 0;
  ASSERT_TRUE(file->Read(*file->Find("x"), 8, std::as_writable_bytes(std::span(&third, 1))).ok());
  EXPECT_EQ(third, 0.25f);
  ExpectError(file->ReadAll<int32_t>(*file->Find("x")).status(), Code::kInvalid,
              "tensor \"x\" holds float32, wanted int32");
  std::vector<std::byte> over(25);
  EXPECT_THROW((void)file->Read(*file->Find("x"), 0, over), Bug);
  EXPECT_THROW((void)file->Read(*file->Find("x"), -1, {}), Bug);
}

TEST_F(SafetensorsTest, TheWriterHoldsItsCallerToTheHeader) {
  const std::vector<std::byte> five(5);
  auto writer =
      SafetensorsWriter::Create(Path("f"), {{.name = "x", .dtype = DType::kU8, .shape = {4}}});
  ASSERT_TRUE(writer.ok());
  EXPECT_THROW((void)writer->Append(five), Bug);
  EXPECT_THROW((void)writer->Finish(), Bug);

  const TensorInfo x{.name = "x", .dtype = DType::kU8, .shape = {1}};
  const TensorInfo negative{.name = "y", .dtype = DType::kU8, .shape = {-1, -1}};
  const TensorInfo huge{.name = "z", .dtype = DType::kF64, .shape = {int64_t{1} << 60, 8}};
  EXPECT_THROW((void)SafetensorsWriter::Create(Path("g"), {x, x}), Bug);
  EXPECT_THROW((void)SafetensorsWriter::Create(Path("g"), {negative}), Bug);
  EXPECT_THROW((void)SafetensorsWriter::Create(Path("g"), {huge}), Bug);
  EXPECT_FALSE(fs::exists(Path("g")));
}

TEST_F(SafetensorsTest, AnUnfinishedFileLeavesNothingBehind) {
  {
    auto writer =
        SafetensorsWriter::Create(Path("f"), {{.name = "x", .dtype = DType::kU8, .shape = {4}}});
    ASSERT_TRUE(writer.ok());
    EXPECT_FALSE(fs::is_empty(folder_));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsTest, EveryTruncationOfAFileIsRefused) {
  const std::string whole = FileOf(
      "{" + Tensor("t", "F32", "[2]", "[0,8]") + "," + Tensor("u", "U8", "[3]", "[8,11]") + "}",
      11);
  ASSERT_TRUE(SafetensorsFile::Open(Write(whole)).ok());
  for (size_t n = 0; n < whole.size(); ++n) {
    const auto file = SafetensorsFile::Open(Write(whole.substr(0, n)));
    EXPECT_FALSE(file.ok()) << n << " bytes";
  }
}

// The three files of the reference library's attacks/ folder, in small.
TEST_F(SafetensorsTest, TheAttacksOfTheReferenceLibraryAreRefused) {
  std::ofstream(Path("f"), std::ios::binary) << LengthWord(200'000'000) << "{";
  fs::resize_file(Path("f"), 200'000'008);
  ExpectError(SafetensorsFile::Open(Path("f")).status(), Code::kInvalid, "at most 100000000");

  const std::string t = Tensor("t", "F32", "[2,2]", "[0,16]");
  ExpectError(SafetensorsFile::Open(Write(FileOf("{" + t + "," + t + "}", 16))).status(),
              Code::kInvalid, "stands twice");

  std::string bomb = "{";
  for (int i = 0; i < 1000; ++i) {
    bomb += (i > 0 ? "," : "") + Tensor("w" + std::to_string(i), "F32", "[500,500]", "[0,1000000]");
  }
  ExpectError(SafetensorsFile::Open(Write(FileOf(bomb + "}", 1'000'000))).status(), Code::kInvalid,
              "it overlaps another tensor");
}

TEST_F(SafetensorsTest, AFileThatChangesInUseIsAnErrorOfTheNextRead) {
  const std::string path = Write(FileOf("{" + Tensor("t", "U8", "[100]", "[0,100]") + "}", 100));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok());
  const TensorInfo& t = *file->Find("t");
  EXPECT_EQ(file->ReadAll<uint8_t>(t).value(), std::vector<uint8_t>(100, 'd'));

  fs::last_write_time(path, fs::last_write_time(path) - std::chrono::hours(1));
  ExpectError(file->ReadAll<uint8_t>(t).status(), Code::kIo, "changed while in use");

  fs::resize_file(path, fs::file_size(path) - 1);
  ExpectError(file->ReadAll<uint8_t>(t).status(), Code::kIo, "wanted 100 bytes, found 99");
}

TEST_F(SafetensorsTest, ManyThreadsReadOneFile) {
  std::string data;
  for (int i = 0; i < 256; ++i) data += std::string(64, static_cast<char>(i));
  const std::string header = "{" + Tensor("t", "U8", "[256,64]", "[0,16384]") + "}";
  auto opened = SafetensorsFile::Open(Write(LengthWord(header.size()) + header + data));
  ASSERT_TRUE(opened.ok());
  const TensorInfo* t = opened->Find("t");
  const SafetensorsFile file = std::move(opened).value();
  EXPECT_EQ(file.Find("t"), t) << "pointers outlive a move";
  std::vector<std::thread> threads;
  for (int k = 0; k < 4; ++k) {
    threads.emplace_back([&file, t, k] {
      for (int i = k; i < 256; i += 4) {
        std::vector<std::byte> row(64);
        ASSERT_TRUE(file.Read(*t, 64 * i, row).ok());
        ASSERT_EQ(row, std::vector<std::byte>(64, static_cast<std::byte>(i)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace mm01
