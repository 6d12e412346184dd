// Text to token ids and back, from a tokenizer.json of byte-level BPE.
//
// Read      model BPE (vocab, merges as "a b" or ["a", "b"], ignore_merges), added_tokens,
//           pre_tokenizer as in pretokenizer.h, normalizer null, decoder ByteLevel.
// Not used  post_processor, truncation, padding: nothing is put around or cut off the text.
//           unk_token: a byte without a token is an error.
// Refused   lstrip, rstrip and single_word of added tokens, dropout, byte_fallback, prefixes and
// suffixes
//           of subwords, any normalizer, any other model or decoder.
// Same ids  as the `tokenizers` library (encode_special_tokens = kAsText), for valid UTF-8. One
// exception,
//           for safety: no merge makes a special token.
// Limits    a file of 128 MiB, ids below 2^21 and below 4 (number of tokens) + 4096, 2^22 merges,
//           added tokens of 256 bytes, texts of 1 GiB.
// Errors    Invalid, Unsupported, TooLarge, NotFound or Io, one sentence with the file and the
// place.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "io/added_tokens.h"
#include "io/bpe.h"
#include "io/pretokenizer.h"

namespace mm01 {

// Immutable; any number of threads may use one.
class Tokenizer {
 public:
  static constexpr size_t kMaxTokens = size_t{1} << 21;
  static constexpr size_t kMaxMerges = size_t{1} << 22;
  static constexpr size_t kMaxTextBytes = size_t{1} << 30;

  // `path` names tokenizer.json or the folder that holds it.
  static Result<Tokenizer> Load(const std::string& path);
  // `where` names the text in errors.
  static Result<Tokenizer> Parse(std::string_view json, const std::string& where);

  // What text that spells a special token becomes. Text from users is kAsText: whatever it holds,
  // no special token comes out. Added tokens that are not special are found in both.
  enum class Special { kAsText, kParse };

  // Any bytes will do: those that are not UTF-8 are pieces of their own, and Decode gives them back
  // (as long as the file adds no prefix space and no split removes text). O(n log n), in practice
  // O(n); memory for the ids and for the longest piece. Errors: TooLarge, where there are more than
  // `most_tokens` found out at the piece that makes them so many; Invalid where the vocabulary
  // lacks a byte of the text.
  Result<std::vector<int32_t>> Encode(std::string_view text, Special special,
                                      size_t most_tokens = kMaxTextBytes) const;

  // The bytes of the tokens in a row, which need not be UTF-8; see detokenizer.h for text. Ids that
  // are no token have no bytes.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // What `id` stands for; empty where it is no token (a hole or out of range).
  const std::string& Bytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;

  // The id of an added token by its content, else of a token as the file spells it ("Ġthe").
  std::optional<int32_t> Find(std::string_view token) const;

  // One more than the largest id.
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  friend class TokenizerParser;
  struct Token {
    std::string bytes;
    bool special = false;
  };

  const Token& At(int32_t id) const;

  std::vector<Token> tokens_;
  std::unordered_map<std::string, int32_t> ids_;
  AddedTokens added_;
  PreTokenizer pretokenizer_;
  Bpe bpe_;
};

}  // namespace mm01
