#include "infer/saved_state.h"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "infer/session.h"
#include "testing/arrays.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

constexpr WeightType kBf16{DType::kBF16, 0};

std::vector<float> Copy(std::span<const float> x) {
  return {x.begin(), x.end()};
}

class SavedStateTest : public testing::Test {
 protected:
  SavedStateTest() {
    WriteTinyModel(folder_.path(), TinyConfig());
    engine_ = Load(folder_.path(), {});
  }

  static std::unique_ptr<Engine> Load(const std::string& path, EngineOptions options) {
    options.num_threads = 1;
    options.num_sequences = 2;
    options.context_tokens = 256;
    Result<std::unique_ptr<Engine>> engine = Engine::Load(path, options);
    Check(engine.ok(), engine.status().message());
    return std::move(*engine);
  }

  std::string Save(int64_t length) {
    Session session = Session::Open(*engine_).value();
    Check(session.Read(TinyTokens(length)).ok(), "the text does not fit");
    const Status saved = session.Save(file_);
    Check(saved.ok(), saved.message());
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Write(const std::string& bytes) const {
    std::ofstream(file_, std::ios::binary | std::ios::trunc) << bytes;
  }
  void ExpectRefused(const Status& status, Code code, const std::string& part) const {
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_NE(status.message().find(part), std::string::npos)
        << status.message() << "\nwanted " << part;
    EXPECT_NE(status.message().find(file_), std::string::npos) << status.message();
  }
  Status LoadStatus(Engine& engine) const { return Session::Load(engine, file_).status(); }

  TempFolder folder_;
  std::string file_ = folder_ / "state.mm01";
  std::unique_ptr<Engine> engine_;
};

TEST_F(SavedStateTest, ASessionComesBackAsItWas) {
  for (const int64_t length : {1, 63, 64, 65, 200}) {
    Save(length);
    Session loaded = Session::Load(*engine_, file_).value();
    Session straight = Session::Open(*engine_).value();
    ASSERT_TRUE(straight.Read(TinyTokens(length)).ok());
    EXPECT_EQ(loaded.tokens(), straight.tokens());
    EXPECT_TRUE(SameBits(Copy(loaded.logits()), Copy(straight.logits())));
    const std::vector<int32_t> more = TinyTokens(40, 96, 2);
    ASSERT_TRUE(loaded.Read(more).ok());
    ASSERT_TRUE(straight.Read(more).ok());
    EXPECT_TRUE(SameBits(Copy(loaded.logits()), Copy(straight.logits()))) << length;
  }
}

TEST_F(SavedStateTest, OneStateIsOneFile) {
  const std::string once = Save(70);
  EXPECT_EQ(Save(70), once);
  {
    const Session loaded = Session::Load(*engine_, file_).value();
    ASSERT_TRUE(loaded.Save(file_).ok());
  }
  std::ifstream in(file_, std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), once);
}

TEST_F(SavedStateTest, InspectNeedsNoModel) {
  Save(70);
  const Result<SavedStateInfo> info = InspectState(file_);
  ASSERT_TRUE(info.ok()) << info.status().message();
  EXPECT_EQ(info->version, 1);
  EXPECT_EQ(info->model, fmt::format("{:016x}", engine_->fingerprint()));
  EXPECT_EQ(info->config, ToJson(TinyConfig()));
  EXPECT_EQ(info->kv, "float32");
  EXPECT_EQ(info->num_tokens, 70);
  EXPECT_EQ(info->state_bytes, 3 * (4 * 16 * 16 + 2 * 6 * 4 * 16) * 4);
  EXPECT_EQ(info->kv_bytes, 2 * 70 * 2 * 16 * 4);
}

TEST_F(SavedStateTest, NothingReadIsNothingToSave) {
  const Session session = Session::Open(*engine_).value();
  const Status status = session.Save(file_);
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_EQ(status.message(), "nothing has been read, so there is nothing to save");
  EXPECT_FALSE(std::filesystem::exists(file_));
}

TEST_F(SavedStateTest, AnotherModelOrOtherTypesAreRefused) {
  Save(70);
  const std::string part = "is the state of model";
  const auto bf16_kv = Load(folder_.path(), {.kv = DType::kBF16});
  ExpectRefused(LoadStatus(*bf16_kv), Code::kInvalid, part);
  const auto bf16_weights = Load(folder_.path(), {.weights = kBf16, .kv = DType::kF32});
  ExpectRefused(LoadStatus(*bf16_weights), Code::kInvalid, part);

  const TempFolder other;
  TinyTensors tensors = MakeTinyTensors(TinyConfig());
  TinyPut(tensors.at("model.norm.weight"), 0, std::vector<float>{2.0f});
  WriteTinyCheckpoint(other.path(), TinyConfig(), tensors);
  ExpectRefused(LoadStatus(*Load(other.path(), {})), Code::kInvalid, part);

  TextConfig config = TinyConfig();
  config.rope_theta = 2e4;
  WriteTinyModel(other.path(), config);
  ExpectRefused(LoadStatus(*Load(other.path(), {})), Code::kInvalid, part);
}

TEST_F(SavedStateTest, AFlippedBitAnywhereIsRefused) {
  const std::string good = Save(70);
  const size_t header =
      8 + static_cast<unsigned char>(good[0]) + 256u * static_cast<unsigned char>(good[1]);
  ASSERT_LT(header, good.size());
  for (uint64_t i = 0; i < 200; ++i) {
    const uint64_t bits = RandomBits(1, 1, i);
    // Half of the flips in the header, which is the smaller part.
    const size_t at = (bits >> 8) % (i % 2 ? good.size() : header);
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << bits % 8));
    Write(bad);
    const Status status = LoadStatus(*engine_);
    EXPECT_FALSE(status.ok()) << "bit " << bits % 8 << " of byte " << at;
    EXPECT_FALSE(status.message().empty());
    if (at >= header) ExpectRefused(InspectState(file_).status(), Code::kInvalid, "is damaged");
  }
  Write(good);
  EXPECT_TRUE(Session::Load(*engine_, file_).ok()) << "refusals leave the engine's slots free";
}

TEST_F(SavedStateTest, AFileCutShortIsRefused) {
  const std::string good = Save(70);
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{8}, size_t{100}, good.size() / 2, good.size() - 1}) {
    Write(good.substr(0, size));
    EXPECT_FALSE(LoadStatus(*engine_).ok()) << size;
    EXPECT_FALSE(InspectState(file_).ok()) << size;
  }
  Write(good + "x");
  EXPECT_FALSE(LoadStatus(*engine_).ok());
}

TEST_F(SavedStateTest, AnotherVersionIsNamed) {
  std::string bytes = Save(3);
  const std::string version = R"("version":"1")";
  const size_t at = bytes.find(version);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, version.size(), R"("version":"2")");
  Write(bytes);
  ExpectRefused(LoadStatus(*engine_), Code::kUnsupported,
                "saved state of version 2, this program reads version 1");
  ExpectRefused(InspectState(file_).status(), Code::kUnsupported, "version 2");
}

TEST_F(SavedStateTest, OtherFilesAreNoState) {
  std::filesystem::copy_file(folder_ / "model.safetensors", file_);
  ExpectRefused(LoadStatus(*engine_), Code::kInvalid, "is no saved state");
  ExpectRefused(InspectState(file_).status(), Code::kInvalid, "is no saved state");
  Write("Once upon a time there was a text file.");
  ExpectRefused(LoadStatus(*engine_), Code::kInvalid, "");
  std::filesystem::remove(file_);
  ExpectRefused(LoadStatus(*engine_), Code::kNotFound, "");
}

// Puts the checksum that the contents ask for into a file that somebody changed on purpose.
void Reseal(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::Open(path).value();
  std::string all;
  for (const auto& [key, value] : file.metadata()) all += key + "=" + value + ";";
  for (const TensorInfo& t : file.tensors()) {
    if (t.name == "checksum" || t.bytes == 0) continue;
    std::string data(static_cast<size_t>(t.bytes), '\0');
    Check(file.Read(t, 0, std::as_writable_bytes(std::span(data))).ok(), "cannot read");
    all += t.name + data;
  }
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(all.data(), all.size()));
  std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
  out.seekp(file.Find("checksum")->offset);
  out.write(reinterpret_cast<const char*>(digest.digest), sizeof(digest.digest));
}

TEST_F(SavedStateTest, ASealedFileWithATokenThatIsNoneIsRefused) {
  std::string bytes = Save(3);
  const SafetensorsFile file = SafetensorsFile::Open(file_).value();
  const int32_t stranger = 96;
  std::memcpy(bytes.data() + file.Find("tokens")->offset + 4, &stranger, sizeof(stranger));
  Write(bytes);
  ExpectRefused(LoadStatus(*engine_), Code::kInvalid, "is damaged");
  Reseal(file_);
  ASSERT_TRUE(InspectState(file_).ok());
  ExpectRefused(LoadStatus(*engine_), Code::kInvalid,
                "the saved text holds token 96, wanted 0 to 95");
}

TEST_F(SavedStateTest, AStateThatDoesNotFitTheContextIsRefused) {
  Save(200);
  EngineOptions options{.num_threads = 1, .context_tokens = 64};
  const auto small = Engine::Load(folder_.path(), options);
  ASSERT_TRUE(small.ok());
  const Status status = LoadStatus(**small);
  EXPECT_EQ(status.code(), Code::kTooLarge) << status.message();
  EXPECT_NE(status.message().find("200 tokens"), std::string::npos) << status.message();
  EXPECT_TRUE(Session::Open(**small).ok()) << "the slot is free again";
}

}  // namespace
}  // namespace mm01::infer
