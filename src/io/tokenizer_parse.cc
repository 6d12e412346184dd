// tokenizer.json, checked field by field, into a Tokenizer.
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>

#include "base/json.h"
#include "io/byte_level.h"
#include "io/checked.h"
#include "io/file.h"
#include "io/json_fields.h"
#include "io/tokenizer.h"

namespace mm01 {

class TokenizerParser {
 public:
  TokenizerParser(const Json& root, const std::string& where) : root_(root), where_(where) {}

  Result<Tokenizer> Run() {
    if (!root_.is_object()) {
      return Status::Invalid(fmt::format("{}: a {}, wanted an object", where_, root_.type_name()));
    }
    MM01_RETURN_IF_ERROR(CheckNormalizerAndDecoder());
    MM01_RETURN_IF_ERROR(CheckModel());
    MM01_RETURN_IF_ERROR(ReadVocab());
    MM01_RETURN_IF_ERROR(ReadMerges());
    MM01_RETURN_IF_ERROR(ReadAddedTokens());
    MM01_RETURN_IF_ERROR(BuildBpe());
    const Json* pre = FindField(root_, "pre_tokenizer");
    MM01_ASSIGN_OR_RETURN(out_.pretokenizer_,
                          PreTokenizer::Parse(pre == nullptr ? Json() : *pre, where_));
    return std::move(out_);
  }

 private:
  template <typename... Args>
  std::string At(fmt::format_string<Args...> format, Args&&... args) const {
    return where_ + ": " + fmt::format(format, std::forward<Args>(args)...);
  }

  Status CheckNormalizerAndDecoder() const;
  Status CheckModel();
  Status ReadVocab();
  Status ReadMerges();
  Status ReadMerge(const Json& entry, size_t index);
  Status ReadAddedTokens();
  Status ReadAddedToken(const Json& entry, const std::string& where,
                        std::vector<AddedToken>& added);
  Result<int32_t> ReadId(const Json& value, const std::string& where) const;
  Status Claim(int32_t id, const std::string& token);
  Status BuildBpe();

  const Json& root_;
  const std::string& where_;
  const Json* model_ = nullptr;
  size_t num_tokens_ = 0;
  size_t max_tokens_ = 0;  // grows with the file, lest a short one ask for much memory
  Tokenizer out_;
  std::unordered_map<int32_t, std::string> names_;  // of every id so far, as the file spells it
  std::vector<Bpe::Merge> merges_;
};

namespace {

std::string TypeName(const Json& component) {
  const auto it = component.is_object() ? component.find("type") : component.end();
  return component.is_object() && it != component.end() && it->is_string()
             ? Quoted(it->get_ref<const std::string&>())
             : std::string("none");
}

}  // namespace

Status TokenizerParser::CheckNormalizerAndDecoder() const {
  if (const Json* normalizer = FindField(root_, "normalizer")) {
    return Status::Unsupported(
        At("normalizer of type {}, only null is supported", TypeName(*normalizer)));
  }
  const Json* decoder = FindField(root_, "decoder");
  const std::string type = decoder == nullptr ? "none" : TypeName(*decoder);
  if (type != "\"ByteLevel\"") {
    return Status::Unsupported(At("decoder of type {}, only \"ByteLevel\" is supported", type));
  }
  return Status::Ok();
}

Status TokenizerParser::CheckModel() {
  model_ = FindField(root_, "model");
  if (model_ == nullptr || !model_->is_object()) {
    return Status::Invalid(At("\"model\" is missing or no object"));
  }
  const std::string type = TypeName(*model_);
  if (type != "\"BPE\"" && FindField(*model_, "type") != nullptr) {
    return Status::Unsupported(At("model of type {}, only \"BPE\" is supported", type));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* affix = FindField(*model_, key);
    if (affix != nullptr && *affix != "") {
      return Status::Unsupported(At("model: \"{}\" is supported only as null or \"\"", key));
    }
  }
  if (const Json* dropout = FindField(*model_, "dropout"); dropout != nullptr && *dropout != 0) {
    return Status::Unsupported(At("model: \"dropout\" is supported only as null or 0"));
  }
  MM01_ASSIGN_OR_RETURN(const bool fallback,
                        BoolField(*model_, "byte_fallback", false, At("model")));
  if (fallback) {
    return Status::Unsupported(At("model: \"byte_fallback\" is supported only as false"));
  }
  return Status::Ok();
}

Result<int32_t> TokenizerParser::ReadId(const Json& value, const std::string& where) const {
  if (!value.is_number_integer()) {
    return Status::Invalid(
        At("{} has a {} for an id, wanted an integer", where, value.type_name()));
  }
  // A negative number reads as a huge one.
  const auto id = value.get<uint64_t>();
  if (id >= max_tokens_) {
    return Status::Invalid(At("{} has the id {}, wanted 0 to {} (the file has {} tokens)", where,
                              JsonText(value), max_tokens_ - 1, num_tokens_));
  }
  return static_cast<int32_t>(id);
}

// One id, one token.
Status TokenizerParser::Claim(int32_t id, const std::string& token) {
  const auto [it, fresh] = names_.emplace(id, token);
  if (!fresh && it->second != token) {
    return Status::Invalid(
        At("the id {} is given to {} and to {}", id, Quoted(it->second), Quoted(token)));
  }
  if (out_.tokens_.size() <= static_cast<size_t>(id)) {
    out_.tokens_.resize(static_cast<size_t>(id) + 1);
  }
  return Status::Ok();
}

Status TokenizerParser::ReadVocab() {
  const Json* vocab = FindField(*model_, "vocab");
  if (vocab == nullptr || !vocab->is_object()) {
    return Status::Invalid(At("model: \"vocab\" is missing or no object"));
  }
  if (vocab->size() > Tokenizer::kMaxTokens) {
    return Status::TooLarge(At("model: \"vocab\" has {} tokens, at most {} are read", vocab->size(),
                               Tokenizer::kMaxTokens));
  }
  const Json* added = FindField(root_, "added_tokens");
  num_tokens_ = vocab->size() + (added == nullptr ? 0 : added->size());
  max_tokens_ = std::min(4 * num_tokens_ + 4096, Tokenizer::kMaxTokens);
  out_.ids_.reserve(vocab->size());
  names_.reserve(vocab->size());
  for (const auto& [token, value] : vocab->items()) {
    if (token.empty()) return Status::Invalid(At("model.vocab has an empty token"));
    MM01_ASSIGN_OR_RETURN(const int32_t id, ReadId(value, "model.vocab: " + Quoted(token)));
    MM01_RETURN_IF_ERROR(Claim(id, token));
    out_.ids_.emplace(token, id);
    out_.tokens_[static_cast<size_t>(id)].bytes = UnspellBytes(token).value_or(token);
  }
  return Status::Ok();
}

Status TokenizerParser::ReadMerges() {
  const Json* merges = FindField(*model_, "merges");
  if (merges == nullptr || !merges->is_array()) {
    return Status::Invalid(At("model: \"merges\" is missing or no array"));
  }
  if (merges->size() > Tokenizer::kMaxMerges) {
    return Status::TooLarge(At("model: \"merges\" has {} entries, at most {} are read",
                               merges->size(), Tokenizer::kMaxMerges));
  }
  merges_.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) MM01_RETURN_IF_ERROR(ReadMerge((*merges)[i], i));
  return Status::Ok();
}

Status TokenizerParser::ReadMerge(const Json& entry, size_t index) {
  std::string left, right;
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    left = entry[0].get<std::string>();
    right = entry[1].get<std::string>();
  } else if (entry.is_string()) {
    const auto& both = entry.get_ref<const std::string&>();
    const size_t space = both.find(' ');
    if (space != std::string::npos && both.find(' ', space + 1) == std::string::npos) {
      left = both.substr(0, space);
      right = both.substr(space + 1);
    }
  }
  if (left.empty() || right.empty()) {
    return Status::Invalid(At("model.merges[{}] is neither \"a b\" nor [\"a\", \"b\"]", index));
  }
  Bpe::Merge merge;
  for (const auto& [token, id] : {std::pair(left, &merge.left), std::pair(right, &merge.right),
                                  std::pair(left + right, &merge.result)}) {
    const auto it = out_.ids_.find(token);
    if (it == out_.ids_.end()) {
      return Status::Invalid(
          At("model.merges[{}] needs {}, which is not in the vocabulary", index, Quoted(token)));
    }
    *id = it->second;
  }
  merges_.push_back(merge);
  return Status::Ok();
}

Status TokenizerParser::ReadAddedTokens() {
  const Json* list = FindField(root_, "added_tokens");
  if (list == nullptr) return Status::Ok();
  if (!list->is_array() || list->size() > Tokenizer::kMaxTokens) {
    return Status::Invalid(
        At("\"added_tokens\" is no array of at most {} entries", Tokenizer::kMaxTokens));
  }
  std::vector<AddedToken> added;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    MM01_RETURN_IF_ERROR(ReadAddedToken((*list)[i], where, added));
  }
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (size_t i = 1; i < added.size(); ++i) {
    if (added[i].content == added[i - 1].content) {
      return Status::Invalid(At("added_tokens has {} twice", Quoted(added[i].content)));
    }
  }
  out_.added_ = AddedTokens(added);
  return Status::Ok();
}

Status TokenizerParser::ReadAddedToken(const Json& entry, const std::string& where,
                                       std::vector<AddedToken>& added) {
  if (!entry.is_object()) {
    return Status::Invalid(At("{} is a {}, wanted an object", where, entry.type_name()));
  }
  AddedToken token;
  MM01_ASSIGN_OR_RETURN(token.content, StringField(entry, "content", At("{}", where)));
  if (token.content.empty() || token.content.size() > AddedTokens::kMaxContentBytes) {
    return Status::Invalid(At("{}: \"content\" of {} bytes, wanted 1 to {}", where,
                              token.content.size(), AddedTokens::kMaxContentBytes));
  }
  for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
    MM01_ASSIGN_OR_RETURN(const bool on, BoolField(entry, flag, false, At("{}", where)));
    if (on) {
      return Status::Unsupported(At("{}: {} has \"{}\" true, only false is supported", where,
                                    Quoted(token.content), flag));
    }
  }
  MM01_ASSIGN_OR_RETURN(token.special, BoolField(entry, "special", false, At("{}", where)));
  MM01_ASSIGN_OR_RETURN(token.normalized,
                        BoolField(entry, "normalized", !token.special, At("{}", where)));
  const Json* id = FindField(entry, "id");
  if (id == nullptr) return Status::Invalid(At("{}: \"id\" is missing", where));
  MM01_ASSIGN_OR_RETURN(token.id, ReadId(*id, where));
  const auto [it, fresh] = out_.ids_.emplace(token.content, token.id);
  if (!fresh && it->second != token.id) {
    return Status::Invalid(At("{}: {} has the id {}, but {} before", where, Quoted(token.content),
                              token.id, it->second));
  }
  MM01_RETURN_IF_ERROR(Claim(token.id, token.content));
  // Added tokens are found in plain text, so they stand for their content as it is.
  out_.tokens_[static_cast<size_t>(token.id)] = {token.content, token.special};
  added.push_back(std::move(token));
  return Status::Ok();
}

Status TokenizerParser::BuildBpe() {
  MM01_ASSIGN_OR_RETURN(const bool ignore_merges,
                        BoolField(*model_, "ignore_merges", false, At("model")));
  const auto special = [this](int32_t id) { return out_.IsSpecial(id); };
  std::array<int32_t, 256> byte_tokens;
  for (size_t b = 0; b < 256; ++b) {
    const auto id = out_.Find(SpellByte(static_cast<uint8_t>(b)));
    byte_tokens[b] = id.value_or(Bpe::kNoToken);
    if (id && special(*id)) {
      return Status::Unsupported(
          At("the special token {} is also the byte 0x{:02x}, so text could not avoid it", *id, b));
    }
  }
  std::erase_if(merges_, [&](const Bpe::Merge& merge) { return special(merge.result); });
  Result<Bpe> bpe = Bpe::Build(byte_tokens, merges_);
  if (!bpe.ok()) return {bpe.status().code(), At("model: {}", bpe.status().message())};
  out_.bpe_ = std::move(bpe).value();
  if (!ignore_merges) return Status::Ok();
  for (const auto& [token, value] : FindField(*model_, "vocab")->items()) {
    const auto id = value.get<int32_t>();
    const std::optional<std::string> bytes = UnspellBytes(token);
    if (bytes && !special(id)) out_.bpe_.AddWholePiece(*bytes, id);
  }
  return Status::Ok();
}

Result<Tokenizer> Tokenizer::Parse(std::string_view json, const std::string& where) {
  MM01_ASSIGN_OR_RETURN(const Json root, ParseJson(json, where));
  return TokenizerParser(root, where).Run();
}

Result<Tokenizer> Tokenizer::Load(const std::string& path) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const std::string file = folder ? path + "/tokenizer.json" : path;
  MM01_ASSIGN_OR_RETURN(const std::string json,
                        ReadFile(file, static_cast<int64_t>(JsonLimits().max_bytes)));
  return Parse(json, file);
}

}  // namespace mm01
