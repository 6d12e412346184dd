#include "server/logprobs.h"

#include <fmt/core.h>

#include <algorithm>

#include "io/utf8.h"

namespace mm01::server {
namespace {

// JSON has no infinity, and clients want a number.
double Finite(double logprob) {
  return std::max(logprob, -9999.0);
}

Json Bytes(const std::string& text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json Entry(const Tokenizer& tokenizer, int32_t id, double logprob) {
  return {{"token", TokenText(tokenizer, id)},
          {"logprob", Finite(logprob)},
          {"bytes", Bytes(tokenizer.Bytes(id))}};
}

int64_t CountCodePoints(const std::string& text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace

std::string TokenText(const Tokenizer& tokenizer, int32_t id) {
  const std::string& bytes = tokenizer.Bytes(id);
  if (ValidUtf8Prefix(bytes) == bytes.size()) return bytes;
  std::string text = "bytes:";
  for (const char c : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return text;
}

Json ChatLogprob(const Tokenizer& tokenizer, const infer::TokenInfo& info) {
  Json entry = Entry(tokenizer, info.token, info.logprob);
  entry["top_logprobs"] = Json::array();
  for (const TokenLogprob& top : info.top) {
    entry["top_logprobs"].push_back(Entry(tokenizer, top.id, top.logprob));
  }
  return entry;
}

void TextLogprobs::AddToken(int32_t token) {
  tokens_.push_back(TokenText(tokenizer_, token));
  offsets_.push_back(offset_);
  offset_ += CountCodePoints(detokenizer_.Push(token));
}

void TextLogprobs::AddFirst(int32_t token) {
  AddToken(token);
  logprobs_.push_back(nullptr);
  tops_.push_back(nullptr);
}

void TextLogprobs::Add(const infer::TokenInfo& info) {
  AddToken(info.token);
  logprobs_.push_back(Finite(info.logprob));
  Json top = Json::object();
  for (const TokenLogprob& t : info.top) top[TokenText(tokenizer_, t.id)] = Finite(t.logprob);
  top[TokenText(tokenizer_, info.token)] = Finite(info.logprob);
  tops_.push_back(std::move(top));
}

Json TextLogprobs::Take() {
  Json all = {{"tokens", std::move(tokens_)},
              {"token_logprobs", std::move(logprobs_)},
              {"top_logprobs", std::move(tops_)},
              {"text_offset", std::move(offsets_)}};
  tokens_ = logprobs_ = tops_ = offsets_ = Json::array();
  return all;
}

}  // namespace mm01::server
