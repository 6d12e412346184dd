#include "io/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mm01 {
namespace {

namespace fs = std::filesystem;

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kShard1[] = "model-00001-of-00002.safetensors";
constexpr char kShard2[] = "model-00002-of-00002.safetensors";

void ExpectError(const Status& status, Code code, const std::string& part) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos)
      << status.message() << "\nwanted " << part;
}

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    std::string name = testing::TempDir() + "mm01_checkpoint_XXXXXX";
    root_ = ::mkdtemp(name.data());
    folder_ = root_ / "model";
    fs::create_directory(folder_);
  }
  ~CheckpointTest() override { fs::remove_all(root_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  void WriteText(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void WriteIndex(const std::map<std::string, std::string>& weight_map) const {
    WriteText(kIndex,
              nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
  }
  // Tensors of two float32 each: the first letter of the name, and 1.
  void WriteShard(const std::string& name, const std::vector<std::string>& tensors) const {
    std::vector<TensorInfo> infos;
    std::vector<float> values;
    for (const std::string& t : tensors) {
      infos.push_back({.name = t, .dtype = DType::kF32, .shape = {2}});
      values.insert(values.end(), {static_cast<float>(t[0]), 1.0f});
    }
    auto writer = SafetensorsWriter::Create(Path(name), infos);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    ASSERT_TRUE(writer->Append(std::as_bytes(std::span(values))).ok());
    ASSERT_TRUE(writer->Finish().ok());
  }
  void WriteTwoShards() const {
    WriteShard(kShard1, {"c", "a"});
    WriteShard(kShard2, {"b"});
    WriteIndex({{"a", kShard1}, {"b", kShard2}, {"c", kShard1}});
  }
  Status OpenStatus() const { return Checkpoint::Open(folder_.string()).status(); }

  fs::path root_, folder_;
};

TEST_F(CheckpointTest, OpensShardsUnderAnIndex) {
  WriteTwoShards();
  auto opened = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const CheckpointTensor b = opened->Find("b");
  const Checkpoint checkpoint = std::move(opened).value();
  EXPECT_EQ(checkpoint.path(), folder_.string());
  EXPECT_EQ(checkpoint.Names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(checkpoint.total_bytes(), 24);
  ASSERT_TRUE(b) << "handles outlive a move";
  EXPECT_EQ(b.file->path(), Path(kShard2));
  EXPECT_EQ(checkpoint.ReadAll<float>(b).value(), (std::vector<float>{'b', 1.0f}));
  float second = 0;
  ASSERT_TRUE(
      checkpoint.Read(checkpoint.Find("a"), 4, std::as_writable_bytes(std::span(&second, 1))).ok());
  EXPECT_EQ(second, 1.0f);
  EXPECT_FALSE(checkpoint.Find("d"));
  EXPECT_TRUE(checkpoint.CheckUnchanged().ok());
}

TEST_F(CheckpointTest, OpensASingleFileByFolderOrByName) {
  WriteShard("model.safetensors", {"a", "b"});
  WriteShard("other.safetensors", {"x"});
  const auto folder = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(folder.ok()) << folder.status().message();
  EXPECT_EQ(folder->Names(), (std::vector<std::string>{"a", "b"}));
  const auto file = Checkpoint::Open(Path("other.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->Names(), std::vector<std::string>{"x"});
}

TEST_F(CheckpointTest, AMissingCheckpointSaysWhatWasFoundInstead) {
  ExpectError(Checkpoint::Open(Path("none")).status(), Code::kNotFound, "no such file or folder");
  ExpectError(OpenStatus(), Code::kNotFound,
              "no model.safetensors.index.json and no model.safetensors");
  WriteText("pytorch_model.bin", "x");
  ExpectError(OpenStatus(), Code::kNotFound,
              "\"pytorch_model.bin\": models are read as data, never");
  WriteShard(kShard1, {"a"});
  ExpectError(OpenStatus(), Code::kNotFound, "but 1 other .safetensors file(s)");
}

TEST_F(CheckpointTest, FormatsThatHoldCodeAreRefusedByName) {
  for (const std::string name : {"m.pt", "m.pth", "m.bin", "m.pkl", "m.pickle", "m.ckpt", "m.PT"}) {
    WriteText(name, "x");
    ExpectError(Checkpoint::Open(Path(name)).status(), Code::kInvalid,
                "wanted a folder or a .safetensors file: models are read as data, never as code");
  }
  WriteText("m.gguf", "x");
  ExpectError(Checkpoint::Open(Path("m.gguf")).status(), Code::kInvalid, "wanted a folder or");
}

TEST_F(CheckpointTest, FormatsThatHoldCodeAreRefusedByTheirFirstBytes) {
  WriteText("zip.safetensors", std::string("PK\x03\x04\x00\x00\x08\x08\x00\x00", 10));
  WriteText("pickle.safetensors", std::string("\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.", 15));
  ExpectError(Checkpoint::Open(Path("zip.safetensors")).status(), Code::kInvalid,
              "is a zip archive");
  ExpectError(Checkpoint::Open(Path("pickle.safetensors")).status(), Code::kInvalid, "is a pickle");
}

TEST_F(CheckpointTest, HostileIndexEntriesAreRefused) {
  const std::vector<std::string> names = {
      "",
      ".",
      "..",
      "/",
      "../m.safetensors",
      "../../m.safetensors",
      "./m.safetensors",
      "a/../../m.safetensors",
      "a/../m.safetensors",
      "a/m.safetensors",
      "a//m.safetensors",
      "/m.safetensors",
      "//m.safetensors",
      "/etc/passwd",
      "/etc/passwd\n.safetensors",
      "/dev/zero",
      "/dev/stdin",
      "/proc/self/mem",
      "/proc/self/fd/0",
      "~/m.safetensors",
      "$HOME.safetensors",
      "${HOME}/m.safetensors",
      "`id`.safetensors",
      "$(id).safetensors",
      "m.safetensors;id",
      "m.safetensors|id",
      "m|.safetensors",
      "-",
      "m*.safetensors",
      "m?.safetensors",
      "[m].safetensors",
      "..\\m.safetensors",
      "..\\..\\m.safetensors",
      "a\\m.safetensors",
      "\\\\server\\share\\m.safetensors",
      "C:\\m.safetensors",
      "C:m.safetensors",
      "file:///m.safetensors",
      "http://host/m.safetensors",
      "%2e%2e%2fm.safetensors",
      "..%2fm.safetensors",
      "..%00.safetensors",
      std::string("m\0.safetensors", 14),
      std::string("m.safetensors\0", 14),
      "m.safetensors\n",
      "m.safetensors/",
      "m.safetensors ",
      " m.safetensors",
      "m .safetensors",
      "\tm.safetensors",
      "\x1b[2Jm.safetensors",
      ".m.safetensors",
      "...safetensors",
      ".safetensors",
      "m..safetensors",
      "\xe2\x80\xa6/m.safetensors",
      "\xef\xbc\x8f"
      "etc.safetensors",
      "\xe2\x81\x84"
      "etc.safetensors",
      "\xe2\x80\xae"
      "m.safetensors",
      "m.safetensors.bak",
      "m.SAFETENSORS",
      "m",
      "m.pt",
      "pytorch_model.bin",
      "m.safetensors.pkl",
      std::string(5000, 'm') + ".safetensors",
  };
  EXPECT_GE(names.size(), 50u);
  for (const std::string& name : names) {
    SCOPED_TRACE(name.substr(0, 100));
    WriteIndex({{"a", name}});
    ExpectError(OpenStatus(), Code::kInvalid, "weight_map names the file \"");
  }
}

TEST_F(CheckpointTest, SymbolicLinksMayNotLeaveTheFolder) {
  WriteShard("../outside.safetensors", {"a"});
  WriteIndex({{"a", kShard1}});
  fs::create_symlink("../outside.safetensors", Path(kShard1));
  ExpectError(OpenStatus(), Code::kInvalid, "outside the folder of the checkpoint");

  // A sibling folder whose name begins with the folder's own is outside too.
  fs::create_directory(root_ / "model-2");
  WriteShard("../model-2/m.safetensors", {"a"});
  fs::remove(Path(kShard1));
  fs::create_symlink("../model-2/m.safetensors", Path(kShard1));
  ExpectError(OpenStatus(), Code::kInvalid, "outside the folder of the checkpoint");

  fs::remove(Path(kShard1));
  fs::create_symlink("/etc/passwd", Path(kShard1));
  ExpectError(OpenStatus(), Code::kInvalid, "outside the folder of the checkpoint");

  fs::remove(Path(kIndex));
  fs::create_symlink("../outside.safetensors", Path("model.safetensors"));
  ExpectError(OpenStatus(), Code::kInvalid, "outside the folder of the checkpoint");

  fs::create_symlink(kIndex, Path(kIndex));
  ExpectError(OpenStatus(), Code::kNotFound, kIndex);
}

TEST_F(CheckpointTest, SymbolicLinksWithinTheFolderAreFollowed) {
  WriteShard("blob.safetensors", {"a"});
  WriteIndex({{"a", kShard1}});
  fs::create_symlink("blob.safetensors", Path(kShard1));
  EXPECT_TRUE(OpenStatus().ok()) << OpenStatus().message();
  fs::create_directory_symlink(folder_, root_ / "link");
  EXPECT_TRUE(Checkpoint::Open((root_ / "link").string()).ok()) << "the user may name a link";
}

TEST_F(CheckpointTest, AMissingShardIsNamed) {
  WriteTwoShards();
  fs::remove(Path(kShard2));
  ExpectError(OpenStatus(), Code::kNotFound, Path(kShard2));
  fs::create_directory(Path(kShard2));
  ExpectError(OpenStatus(), Code::kInvalid, "is a folder, wanted a regular file");
}

TEST_F(CheckpointTest, IndexAndShardsMustPlaceEveryTensorAlike) {
  WriteTwoShards();
  WriteIndex({{"a", kShard1}, {"b", kShard2}, {"c", kShard1}, {"d", kShard2}});
  ExpectError(OpenStatus(), Code::kInvalid, std::string(kShard2) + ": tensor \"d\" is missing");

  WriteIndex({{"a", kShard1}, {"b", kShard2}});
  ExpectError(OpenStatus(), Code::kInvalid, std::string(kShard1) + ": holds tensor \"c\", which");

  WriteIndex({{"a", kShard2}, {"b", kShard2}, {"c", kShard1}});
  ExpectError(OpenStatus(), Code::kInvalid, "places in \"" + std::string(kShard2));

  WriteTwoShards();
  WriteShard(kShard2, {"b", "a"});  // "a" is in both
  ExpectError(OpenStatus(), Code::kInvalid, std::string(kShard2) + ": holds tensor \"a\", which");
}

TEST_F(CheckpointTest, ADamagedShardIsNamed) {
  WriteTwoShards();
  fs::resize_file(Path(kShard2), fs::file_size(Path(kShard2)) - 1);
  ExpectError(OpenStatus(), Code::kInvalid, Path(kShard2) + ": the tensors take 8 bytes of data");
}

TEST_F(CheckpointTest, AShardThatShrinksInUseIsAnError) {
  WriteTwoShards();
  const auto checkpoint = Checkpoint::Open(folder_.string());
  ASSERT_TRUE(checkpoint.ok());
  fs::resize_file(Path(kShard2), fs::file_size(Path(kShard2)) - 4);
  ExpectError(checkpoint->ReadAll<float>(checkpoint->Find("b")).status(), Code::kIo,
              "wanted 8 bytes, found 4");
  ExpectError(checkpoint->CheckUnchanged(), Code::kIo, kShard2);
  EXPECT_TRUE(checkpoint->ReadAll<float>(checkpoint->Find("a")).ok()) << "the other shard is whole";
}

TEST(CheckpointIndex, IgnoresEverythingButTheWeightMap) {
  const auto map = ParseCheckpointIndex(
      R"({"metadata":{"weight_map":{"x":1},"n":[1,{"a":null}]},"weight_map":{"t":"m.safetensors"},"z":[2]})",
      "i");
  ASSERT_TRUE(map.ok()) << map.status().message();
  EXPECT_EQ(*map, (std::map<std::string, std::string>{{"t", "m.safetensors"}}));
}

TEST(CheckpointIndex, RefusesIllFormedText) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "holds a list, wanted an object"},
      {"1", "holds a number, wanted an object"},
      {"{}", "no weight_map"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":[]})", "weight_map is a list, wanted an object"},
      {R"({"weight_map":"m.safetensors"})", "weight_map is a text, wanted an object"},
      {R"({"weight_map":{"t":1}})", "tensor \"t\" is given a number, wanted the name of a file"},
      {R"({"weight_map":{"t":["m.safetensors"]}})", "tensor \"t\" is given a list"},
      {R"({"weight_map":{"t":{"m":"m"}}})", "tensor \"t\" is given an object"},
      {R"({"weight_map":{"t":"m.safetensors","t":"m.safetensors"}})", "tensor \"t\" stands twice"},
      {R"({"weight_map":{"t":"m.safetensors"},"weight_map":{"u":"m.safetensors"}})",
       "weight_map stands twice"},
      {R"({"weight_map":{"t":"m.safetensors"}}x)", "not valid JSON"},
      {std::string("{}\0", 3), "not valid JSON at byte 3"},
      {"{\"weight_map\":{\"\xff\":\"m.safetensors\"}}", "not valid JSON"},
      {"{\"a\":" + std::string(1'000'000, '['), "not valid JSON"},
  };
  for (const auto& [json, message] : cases) {
    SCOPED_TRACE(json.substr(0, 100));
    ExpectError(ParseCheckpointIndex(json, "i").status(), Code::kInvalid, "i: ");
    ExpectError(ParseCheckpointIndex(json, "i").status(), Code::kInvalid, message);
  }
}

}  // namespace
}  // namespace mm01
