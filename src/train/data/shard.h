// Tokenized documents on disk: a data set is a folder of shards under one data.json.
//
//   shard (little-endian)
//    0  8 bytes   "MM01TOKS"
//    8  uint32    version, 1
//   12  uint32    bytes of a token, 2 or 4
//   16  uint64    documents N
//   24  uint64    tokens T
//   32  uint32    1 where a mask follows, else 0
//   36  uint32    0
//   40  32 bytes  XXH3-128 of bytes 0 .. 39 and 72 .. end, as hex digits
//   72  uint64 [N]    where each document ends, counted in tokens
//       uint16 or uint32 [T]
//       uint8 [ceil(T / 8)]   with a mask: bit t % 8 of byte t / 8 says whether the loss counts
//                             token t as a target
//
// Errors    Invalid where a file is no shard, of another version or damaged; those of io/file.h.
// Cost      Opening reads every byte once, to check the hash; then 8 bytes a document in memory,
//           tokens are read from the file as they are asked for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/file.h"

namespace mm01::train {

// What a data set says of itself.
struct DataSetInfo {
  std::string source;            // where the text came from
  std::string tokenizer_digest;  // DigestOf the tokenizer.json whose ids these are
  int64_t vocab_size = 0;        // ids are below it
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
};

// One document's tokens, and for each whether the loss counts it as a target.
struct TokenSpan {
  std::vector<int32_t> ids;
  std::vector<uint8_t> counted;  // 0 or 1
};

// Const members may be called from several threads at once.
class TokenShard {
 public:
  static Result<TokenShard> Open(const std::string& path);

  int64_t num_documents() const { return static_cast<int64_t>(ends_.size()); }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t Begin(int64_t document) const { return document == 0 ? 0 : ends_[Index(document - 1)]; }
  int64_t Length(int64_t document) const { return ends_[Index(document)] - Begin(document); }

  // The document that holds a token of the shard.
  int64_t Find(int64_t token) const;
  // Tokens first .. first + count - 1 of the shard, added to the end of `out`.
  Status Read(int64_t first, int64_t count, TokenSpan* out) const;

 private:
  explicit TokenShard(File file) : file_(std::move(file)) {}
  static size_t Index(int64_t i) { return static_cast<size_t>(i); }
  Status CheckHash(const std::string& stored) const;

  File file_;
  int64_t num_tokens_ = 0;
  int64_t token_bytes_ = 0;
  int64_t tokens_at_ = 0;  // offset in the file
  int64_t mask_at_ = 0;    // 0: every token is counted
  std::vector<int64_t> ends_;
};

class DataSet {
 public:
  static Result<DataSet> Open(const std::string& folder);
  // Documents that are nowhere on disk; there is at least one.
  static DataSet InMemory(DataSetInfo info, const std::vector<TokenSpan>& documents);

  const DataSetInfo& info() const { return info_; }
  int64_t num_documents() const { return info_.num_documents; }
  int64_t Length(int64_t document) const;
  // Where token 0 .. num_tokens - 1 of the data set lies.
  struct Place {
    int64_t document = 0;
    int64_t token = 0;  // of the document
  };
  Place Find(int64_t token) const;
  // `count` tokens from token `first` of the data set on, over the ends of documents and of the
  // data set, added to the end of `out`.
  Status ReadOn(int64_t first, int64_t count, TokenSpan* out) const;
  // Tokens begin .. begin + count - 1 of a document, added to the end of `out`.
  Status Read(int64_t document, int64_t begin, int64_t count, TokenSpan* out) const;

 private:
  size_t ShardOf(int64_t document) const;

  DataSetInfo info_;
  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_document_;  // of each shard
  std::vector<TokenSpan> in_memory_;     // in place of shards
};

// Writes a data set; data.json comes last, so a folder without it is none.
class DataSetWriter {
 public:
  // `folder` is new or empty. Shards hold about `shard_tokens` tokens, never less than a document.
  static Result<DataSetWriter> Create(const std::string& folder, DataSetInfo info,
                                      int64_t shard_tokens);

  Status Add(const TokenSpan& document);
  Result<DataSetInfo> Finish();

 private:
  DataSetWriter(std::string folder, DataSetInfo info, int64_t shard_tokens)
      : folder_(std::move(folder)), info_(std::move(info)), shard_tokens_(shard_tokens) {}
  Status WriteShard();

  std::string folder_;
  DataSetInfo info_;
  int64_t shard_tokens_;
  TokenSpan tokens_;  // of the shard in the making
  std::vector<int64_t> ends_;
  std::vector<std::string> shards_;  // names of files
};

}  // namespace mm01::train
