#include "io/pretokenizer.h"

#include <fmt/core.h>

#include "base/json.h"
#include "io/checked.h"
#include "io/json_fields.h"

namespace mm01 {
namespace {

constexpr size_t kMaxSteps = 16;

// The pattern of GPT-2, which ByteLevel uses where use_regex is true.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Status At(const std::string& where, const Status& status) {
  return {status.code(), where + ": " + status.message()};
}

}  // namespace

Result<PreTokenizer> PreTokenizer::Parse(const Json& json, const std::string& where) {
  PreTokenizer result;
  MM01_RETURN_IF_ERROR(result.AddStep(json, where + ": pre_tokenizer"));
  if (!result.byte_level_) {
    return Status::Unsupported(where +
                               ": pre_tokenizer has no ByteLevel step, and only byte-level BPE is "
                               "supported");
  }
  return result;
}

Status PreTokenizer::AddStep(const Json& json, const std::string& where) {
  if (!json.is_object()) {
    return Status::Invalid(
        fmt::format("{} is a {}, wanted an object with a \"type\"", where, json.type_name()));
  }
  MM01_ASSIGN_OR_RETURN(const std::string type, StringField(json, "type", where));
  if (type == "Sequence") {
    const Json* list = FindField(json, "pretokenizers");
    if (list == nullptr || !list->is_array()) {
      return Status::Invalid(where + ": \"pretokenizers\" is no array");
    }
    for (size_t i = 0; i < list->size(); ++i) {
      MM01_RETURN_IF_ERROR(AddStep((*list)[i], fmt::format("{}[{}]", where, i)));
    }
    return Status::Ok();
  }
  if (byte_level_) {
    return Status::Unsupported(
        fmt::format("{}: {} after ByteLevel, which must be the last step", where, Quoted(type)));
  }
  if (steps_.size() == kMaxSteps) {
    return Status::TooLarge(fmt::format("{}: more than {} steps", where, kMaxSteps));
  }
  if (type == "ByteLevel") return AddByteLevel(json, where);
  if (type == "Split") return AddSplit(json, where);
  if (type == "Digits") return AddDigits(json, where);
  return Status::Unsupported(fmt::format(
      "{}: type {}, supported are ByteLevel, Split, Digits and Sequence", where, Quoted(type)));
}

Status PreTokenizer::AddByteLevel(const Json& json, const std::string& where) {
  Step step;
  MM01_ASSIGN_OR_RETURN(step.add_prefix_space, BoolField(json, "add_prefix_space", true, where));
  MM01_ASSIGN_OR_RETURN(const bool use_regex, BoolField(json, "use_regex", true, where));
  if (use_regex) {
    Result<SplitRegex> regex = SplitRegex::Compile(kGpt2Pattern);
    if (!regex.ok()) return At(where, regex.status());
    step.regex = std::move(regex).value();
  }
  steps_.push_back(std::move(step));
  byte_level_ = true;
  return Status::Ok();
}

Status PreTokenizer::AddSplit(const Json& json, const std::string& where) {
  static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  Step step;
  MM01_ASSIGN_OR_RETURN(step.invert, BoolField(json, "invert", false, where));
  MM01_ASSIGN_OR_RETURN(const std::string behavior, StringField(json, "behavior", where));
  bool known = false;
  for (const auto& [name, value] : kBehaviors) {
    if (behavior != name) continue;
    step.behavior = value;
    known = true;
  }
  if (!known) {
    return Status::Invalid(
        fmt::format("{}: behavior {}, wanted Removed, Isolated, MergedWithPrevious, "
                    "MergedWithNext or Contiguous",
                    where, Quoted(behavior)));
  }
  const Json* pattern = FindField(json, "pattern");
  const bool wrapped = pattern != nullptr && pattern->is_object() && pattern->size() == 1 &&
                       pattern->front().is_string();
  const bool literal = wrapped && pattern->contains("String");
  if (!wrapped || (!literal && !pattern->contains("Regex"))) {
    return Status::Invalid(where +
                           R"(: "pattern" is neither {"Regex": string} nor {"String": string})");
  }
  const auto& text = pattern->front().get_ref<const std::string&>();
  Result<SplitRegex> regex = literal ? SplitRegex::Literal(text) : SplitRegex::Compile(text);
  if (!regex.ok()) return At(where, regex.status());
  step.regex = std::move(regex).value();
  steps_.push_back(std::move(step));
  return Status::Ok();
}

Status PreTokenizer::AddDigits(const Json& json, const std::string& where) {
  MM01_ASSIGN_OR_RETURN(const bool individual, BoolField(json, "individual_digits", false, where));
  Result<SplitRegex> regex = SplitRegex::Compile(R"(\p{N})");
  if (!regex.ok()) return At(where, regex.status());
  Step step;
  step.regex = std::move(regex).value();
  step.behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
  steps_.push_back(std::move(step));
  return Status::Ok();
}

Status PreTokenizer::Run(std::string_view text, RegexScanner& scanner, const Sink& sink) const {
  if (text.empty()) return Status::Ok();
  return RunFrom(0, text, scanner, sink);
}

bool PreTokenizer::Joins(Behavior behavior, const Part& left, const Part& right) {
  switch (behavior) {
    case Behavior::kRemoved:
    case Behavior::kIsolated:
      return false;
    case Behavior::kMergedWithPrevious:
      return right.matched && !left.matched;
    case Behavior::kMergedWithNext:
      return left.matched && !right.matched;
    case Behavior::kContiguous:
      return left.matched == right.matched;
  }
  Fail("unknown behavior");
}

Status PreTokenizer::RunFrom(size_t index, std::string_view text, RegexScanner& scanner,
                             const Sink& sink) const {
  if (index == steps_.size()) return sink(text);
  const Step& step = steps_[index];
  std::string prefixed;
  if (step.add_prefix_space && text.front() != ' ') {
    prefixed.reserve(text.size() + 1);
    prefixed += ' ';
    prefixed += text;
    text = prefixed;
  }
  if (!step.regex) return RunFrom(index + 1, text, scanner, sink);

  std::optional<Part> pending;  // a part that may still join the next one
  const auto flush = [&]() -> Status {
    if (!pending || (step.behavior == Behavior::kRemoved && pending->matched)) return Status::Ok();
    const std::string_view part = text.substr(pending->begin, pending->end - pending->begin);
    return RunFrom(index + 1, part, scanner, sink);
  };
  const auto add = [&](Part part) -> Status {
    if (part.begin == part.end) return Status::Ok();
    part.matched ^= step.invert;
    if (pending && Joins(step.behavior, *pending, part)) {
      part.begin = pending->begin;
    } else {
      MM01_RETURN_IF_ERROR(flush());
    }
    pending = part;
    return Status::Ok();
  };

  size_t at = 0;
  while (at < text.size()) {
    const RegexScanner::Found found = scanner.Find(*step.regex, text, at);
    if (found == RegexScanner::Found::kError) return scanner.status();
    if (found == RegexScanner::Found::kNone) break;
    const size_t begin = scanner.begin(), end = scanner.end();
    MM01_RETURN_IF_ERROR(add({at, begin, false}));
    MM01_RETURN_IF_ERROR(add({begin, end, true}));
    at = end;
  }
  MM01_RETURN_IF_ERROR(add({at, text.size(), false}));
  return flush();
}

}  // namespace mm01
