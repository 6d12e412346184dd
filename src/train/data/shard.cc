#include "train/data/shard.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/json.h"
#include "io/json_fields.h"
#include "train/digest.h"

namespace mm01::train {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[9] = "MM01TOKS";
constexpr uint32_t kVersion = 1;
constexpr int64_t kMaxShardManifestBytes = 64 << 20;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t token_bytes;
  uint64_t num_documents;
  uint64_t num_tokens;
  uint32_t has_mask;
  uint32_t zero;
  char digest[32];
};
static_assert(sizeof(Header) == 72);
constexpr size_t kHashedHeaderBytes = offsetof(Header, digest);

template <typename T>
std::span<const std::byte> BytesOf(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

Status Damaged(const std::string& path, const std::string& what) {
  return Status::Invalid(fmt::format("{}: {}", path, what));
}

// Sizes first: what is read later must lie inside the file.
Status CheckHeader(const std::string& path, const Header& h, int64_t file_bytes) {
  if (std::memcmp(h.magic, kMagic, sizeof(h.magic)) != 0) {
    return Damaged(path, "is no token shard: it does not begin with MM01TOKS");
  }
  if (h.version != kVersion) {
    return Damaged(path, fmt::format("version {}, wanted {}", h.version, kVersion));
  }
  constexpr uint64_t kMost = uint64_t{1} << 48;
  const bool sane = (h.token_bytes == 2 || h.token_bytes == 4) && h.has_mask <= 1 && h.zero == 0 &&
                    h.num_documents < kMost && h.num_tokens < kMost;
  if (!sane) return Damaged(path, "the header is damaged");
  const uint64_t wanted = sizeof(Header) + h.num_documents * 8 + h.num_tokens * h.token_bytes +
                          (h.has_mask ? (h.num_tokens + 7) / 8 : 0);
  if (static_cast<uint64_t>(file_bytes) == wanted) return Status::Ok();
  return Damaged(path, fmt::format("{} bytes, its header wants {}", file_bytes, wanted));
}

}  // namespace

Status TokenShard::CheckHash(const std::string& stored) const {
  Digest digest;
  std::vector<std::byte> room(static_cast<size_t>(std::min<int64_t>(file_.size(), 1 << 20)));
  const auto add = [&](int64_t at, int64_t end) {
    while (at < end) {
      const auto n = std::min<int64_t>(end - at, static_cast<int64_t>(room.size()));
      const std::span<std::byte> part(room.data(), static_cast<size_t>(n));
      MM01_RETURN_IF_ERROR(file_.Read(at, part));
      digest.Add(part);
      at += n;
    }
    return Status::Ok();
  };
  MM01_RETURN_IF_ERROR(add(0, kHashedHeaderBytes));
  MM01_RETURN_IF_ERROR(add(sizeof(Header), file_.size()));
  if (digest.Hex() == stored) return Status::Ok();
  return Damaged(file_.path(), fmt::format("damaged: its bytes hash to {}, its header says {}",
                                           digest.Hex(), stored));
}

Result<TokenShard> TokenShard::Open(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(File file, File::Open(path));
  if (file.size() < static_cast<int64_t>(sizeof(Header))) {
    return Damaged(path, fmt::format("{} bytes, too short for a token shard", file.size()));
  }
  Header header{};
  MM01_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&header, 1))));
  MM01_RETURN_IF_ERROR(CheckHeader(path, header, file.size()));
  TokenShard shard(std::move(file));
  MM01_RETURN_IF_ERROR(shard.CheckHash(std::string(header.digest, sizeof(header.digest))));
  shard.num_tokens_ = static_cast<int64_t>(header.num_tokens);
  shard.token_bytes_ = header.token_bytes;
  shard.ends_.resize(header.num_documents);
  MM01_RETURN_IF_ERROR(
      shard.file_.Read(sizeof(Header), std::as_writable_bytes(std::span(shard.ends_))));
  if (!std::is_sorted(shard.ends_.begin(), shard.ends_.end()) ||
      (shard.ends_.empty() ? 0 : shard.ends_.back()) != shard.num_tokens_) {
    return Damaged(path, "the ends of its documents do not rise to the number of its tokens");
  }
  shard.tokens_at_ = static_cast<int64_t>(sizeof(Header)) + 8 * shard.num_documents();
  if (header.has_mask) {
    shard.mask_at_ = shard.tokens_at_ + shard.num_tokens_ * shard.token_bytes_;
  }
  return shard;
}

Status TokenShard::Read(int64_t first, int64_t count, TokenSpan* out) const {
  Check(0 <= first && 0 <= count && first + count <= num_tokens_, "tokens lie in the shard");
  if (count == 0) return Status::Ok();
  std::vector<std::byte> bytes(static_cast<size_t>(count * token_bytes_));
  MM01_RETURN_IF_ERROR(file_.Read(tokens_at_ + first * token_bytes_, bytes));
  const size_t begin = out->ids.size(), n = static_cast<size_t>(count);
  out->ids.resize(begin + n);
  if (token_bytes_ == 4) {
    std::memcpy(out->ids.data() + begin, bytes.data(), bytes.size());
  } else {
    std::vector<uint16_t> narrow(n);
    std::memcpy(narrow.data(), bytes.data(), bytes.size());
    std::copy(narrow.begin(), narrow.end(), out->ids.begin() + static_cast<std::ptrdiff_t>(begin));
  }
  out->counted.resize(begin + n, 1);
  if (mask_at_ == 0) return Status::Ok();
  std::vector<std::byte> bits(static_cast<size_t>((first + count - 1) / 8 - first / 8 + 1));
  MM01_RETURN_IF_ERROR(file_.Read(mask_at_ + first / 8, bits));
  for (size_t i = 0; i < n; ++i) {
    const auto bit = static_cast<size_t>(first % 8) + i;
    out->counted[begin + i] = std::to_integer<int>(bits[bit / 8]) >> (bit % 8) & 1;
  }
  return Status::Ok();
}

int64_t TokenShard::Find(int64_t token) const {
  return std::upper_bound(ends_.begin(), ends_.end(), token) - ends_.begin();
}

Result<DataSet> DataSet::Open(const std::string& folder) {
  const std::string path = folder + "/data.json";
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxShardManifestBytes));
  MM01_ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  const auto wrong = [&](const char* what) { return Damaged(path, what); };
  if (!json.is_object() || json.value("format", "") != "mm01-data") {
    return wrong("is no data set: its format is not mm01-data");
  }
  if (!json.contains("shards") || !json["shards"].is_array()) return wrong("shards is no array");
  DataSet set;
  MM01_ASSIGN_OR_RETURN(set.info_.source, StringField(json, "source", path));
  MM01_ASSIGN_OR_RETURN(set.info_.tokenizer_digest, StringField(json, "tokenizer", path));
  if (!json.contains("vocab_size") || !json["vocab_size"].is_number_integer()) {
    return wrong("vocab_size is no whole number");
  }
  set.info_.vocab_size = json["vocab_size"].get<int64_t>();
  for (const Json& name : json["shards"]) {
    if (!name.is_string() || name.get<std::string>().find('/') != std::string::npos) {
      return wrong("a shard is no plain file name");
    }
    MM01_ASSIGN_OR_RETURN(TokenShard shard,
                          TokenShard::Open(folder + "/" + name.get<std::string>()));
    set.first_document_.push_back(set.info_.num_documents);
    set.info_.num_documents += shard.num_documents();
    set.info_.num_tokens += shard.num_tokens();
    set.shards_.push_back(std::move(shard));
  }
  if (set.info_.num_tokens == 0) return wrong("holds no tokens");
  return set;
}

DataSet DataSet::InMemory(DataSetInfo info, const std::vector<TokenSpan>& documents) {
  DataSet set;
  set.info_ = std::move(info);
  for (const TokenSpan& span : documents) {
    set.info_.num_tokens += static_cast<int64_t>(span.ids.size());
    ++set.info_.num_documents;
  }
  Check(set.info_.num_tokens > 0, "a data set holds tokens");
  set.in_memory_ = documents;
  return set;
}

size_t DataSet::ShardOf(int64_t document) const {
  Check(0 <= document && document < num_documents(), "a document of the data set");
  const auto after = std::upper_bound(first_document_.begin(), first_document_.end(), document);
  return static_cast<size_t>(after - first_document_.begin()) - 1;
}

int64_t DataSet::Length(int64_t document) const {
  if (!in_memory_.empty()) return std::ssize(in_memory_[static_cast<size_t>(document)].ids);
  const size_t s = ShardOf(document);
  return shards_[s].Length(document - first_document_[s]);
}

DataSet::Place DataSet::Find(int64_t token) const {
  Check(0 <= token && token < info_.num_tokens, "a token of the data set");
  for (size_t d = 0; d < in_memory_.size(); ++d) {
    const auto length = std::ssize(in_memory_[d].ids);
    if (token < length) return {static_cast<int64_t>(d), token};
    token -= length;
  }
  size_t s = 0;
  while (token >= shards_[s].num_tokens()) token -= shards_[s++].num_tokens();
  const int64_t local = shards_[s].Find(token);
  return {first_document_[s] + local, token - shards_[s].Begin(local)};
}

Status DataSet::ReadOn(int64_t first, int64_t count, TokenSpan* out) const {
  auto [document, begin] = Find(first);
  while (count > 0) {
    const int64_t n = std::min(count, Length(document) - begin);
    MM01_RETURN_IF_ERROR(Read(document, begin, n, out));
    count -= n;
    document = (document + 1) % num_documents();
    begin = 0;
  }
  return Status::Ok();
}

Status DataSet::Read(int64_t document, int64_t begin, int64_t count, TokenSpan* out) const {
  Check(0 <= begin && begin + count <= Length(document), "tokens lie in the document");
  if (!in_memory_.empty()) {
    const TokenSpan& from = in_memory_[static_cast<size_t>(document)];
    const auto ids = from.ids.begin() + begin;
    const auto counted = from.counted.begin() + begin;
    out->ids.insert(out->ids.end(), ids, ids + count);
    out->counted.insert(out->counted.end(), counted, counted + count);
    return Status::Ok();
  }
  const size_t s = ShardOf(document);
  const int64_t local = document - first_document_[s];
  MM01_RETURN_IF_ERROR(shards_[s].Read(shards_[s].Begin(local) + begin, count, out));
  const auto last = out->ids.end();
  const auto bad = std::find_if(last - count, last,
                                [&](int32_t id) { return id < 0 || id >= info_.vocab_size; });
  if (bad == last) return Status::Ok();
  return Status::Invalid(fmt::format("document {} of {} holds token {}, wanted ids below {}",
                                     document, info_.source, *bad, info_.vocab_size));
}

Result<DataSetWriter> DataSetWriter::Create(const std::string& folder, DataSetInfo info,
                                            int64_t shard_tokens) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return Status::Io(fmt::format("{}: cannot create: {}", folder, error.message()));
  if (!fs::is_empty(folder, error)) {
    return Status::Invalid(fmt::format("{}: not empty, wanted a new or empty folder", folder));
  }
  return DataSetWriter(folder, std::move(info), shard_tokens);
}

Status DataSetWriter::Add(const TokenSpan& document) {
  Check(document.ids.size() == document.counted.size(), "a token has a mark");
  if (document.ids.empty()) return Status::Ok();
  const auto length = static_cast<int64_t>(document.ids.size());
  if (!ends_.empty() && ends_.back() + length > shard_tokens_) MM01_RETURN_IF_ERROR(WriteShard());
  tokens_.ids.insert(tokens_.ids.end(), document.ids.begin(), document.ids.end());
  tokens_.counted.insert(tokens_.counted.end(), document.counted.begin(), document.counted.end());
  ends_.push_back(static_cast<int64_t>(tokens_.ids.size()));
  ++info_.num_documents;
  info_.num_tokens += length;
  return Status::Ok();
}

Status DataSetWriter::WriteShard() {
  const size_t n = tokens_.ids.size();
  const bool has_mask =
      std::any_of(tokens_.counted.begin(), tokens_.counted.end(), [](uint8_t c) { return c == 0; });
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(header.magic));
  header.version = kVersion;
  header.token_bytes = info_.vocab_size <= 65536 ? 2 : 4;
  header.num_documents = ends_.size();
  header.num_tokens = n;
  header.has_mask = has_mask;

  std::vector<uint16_t> narrow;
  if (header.token_bytes == 2) narrow.assign(tokens_.ids.begin(), tokens_.ids.end());
  std::vector<uint8_t> bits(has_mask ? (n + 7) / 8 : 0);
  for (size_t i = 0; has_mask && i < n; ++i) {
    bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | tokens_.counted[i] << i % 8);
  }
  const std::span<const std::byte> parts[] = {
      BytesOf(ends_), header.token_bytes == 2 ? BytesOf(narrow) : BytesOf(tokens_.ids),
      BytesOf(bits)};
  const auto header_bytes = std::as_bytes(std::span(&header, 1));
  Digest digest;
  digest.Add(header_bytes.first(kHashedHeaderBytes));
  for (const auto& part : parts) digest.Add(part);
  std::memcpy(header.digest, digest.Hex().data(), sizeof(header.digest));

  const std::string name = fmt::format("shard-{:05}.tok", shards_.size());
  MM01_RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/" + name, [&](AtomicFile& file) {
    MM01_RETURN_IF_ERROR(file.Write(header_bytes));
    for (const auto& part : parts) MM01_RETURN_IF_ERROR(file.Write(part));
    return Status::Ok();
  }));
  shards_.push_back(name);
  tokens_ = {};
  ends_.clear();
  return Status::Ok();
}

Result<DataSetInfo> DataSetWriter::Finish() {
  if (!ends_.empty()) MM01_RETURN_IF_ERROR(WriteShard());
  if (info_.num_tokens == 0) {
    return Status::Invalid(fmt::format("{}: no tokens in it, wanted some text", info_.source));
  }
  const Json json = {{"format", "mm01-data"},          {"version", 1},
                     {"source", info_.source},         {"tokenizer", info_.tokenizer_digest},
                     {"vocab_size", info_.vocab_size}, {"documents", info_.num_documents},
                     {"tokens", info_.num_tokens},     {"shards", shards_}};
  MM01_RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/data.json", JsonText(json, 1) + "\n"));
  return info_;
}

}  // namespace mm01::train
