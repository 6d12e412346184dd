#include "io/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>

#include "io/utf8.h"

namespace mm01 {
namespace {

// Bytes of the longest beginning of `text` that holds no valid code point.
size_t InvalidPrefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.kind == Utf8Kind::kValid) break;
    at += step.length;
  }
  return at;
}

}  // namespace

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, Special special,
                                               size_t most_tokens) const {
  if (text.size() > kMaxTextBytes) {
    return Status::TooLarge(fmt::format("a text of {} bytes, at most {} are encoded at once",
                                        text.size(), kMaxTextBytes));
  }
  std::vector<int32_t> ids;
  ids.reserve(std::min(text.size() / 4 + 1, most_tokens));
  BpeEncoder encoder(bpe_);
  RegexScanner scanner(text.size());
  const PreTokenizer::Sink piece = [&](std::string_view bytes) {
    if (const auto missing = encoder.Append(bytes, ids)) {
      return Status::Invalid(fmt::format(
          "the text has the byte 0x{:02x}, for which the vocabulary has no token", *missing));
    }
    if (ids.size() <= most_tokens) return Status::Ok();
    return Status::TooLarge(fmt::format("the text has more than {} tokens", most_tokens));
  };
  Status status;
  const AddedTokens::Sink part_sink = [&](const AddedToken* token, std::string_view part) {
    if (!status.ok()) return;
    if (token != nullptr) {
      ids.push_back(token->id);
    } else {
      status = pretokenizer_.Run(part, scanner, piece);
    }
  };
  while (!text.empty() && status.ok()) {
    const size_t valid = ValidUtf8Prefix(text);
    added_.Split(text.substr(0, valid), special == Special::kAsText, part_sink);
    text.remove_prefix(valid);
    const size_t invalid = InvalidPrefix(text);
    if (status.ok()) status = piece(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
  MM01_RETURN_IF_ERROR(status);
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  for (const int32_t id : ids) {
    const Token& token = At(id);
    if (!skip_special || !token.special) text += token.bytes;
  }
  return text;
}

const Tokenizer::Token& Tokenizer::At(int32_t id) const {
  static const Token kNoToken;
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() ? tokens_[static_cast<size_t>(id)]
                                                             : kNoToken;
}

const std::string& Tokenizer::Bytes(int32_t id) const {
  return At(id).bytes;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return At(id).special;
}

std::optional<int32_t> Tokenizer::Find(std::string_view token) const {
  const auto it = ids_.find(std::string(token));
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace mm01
