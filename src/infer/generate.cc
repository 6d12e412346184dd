#include "infer/generate.h"

#include <algorithm>
#include <chrono>

#include "io/detokenizer.h"

namespace mm01::infer {
namespace {

// Text that may still turn out to be a stop string is held back.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}

  // What of the text so far may go out. Sets stopped() where a stop string is complete.
  std::string Push(std::string_view text) {
    held_ += text;
    size_t first = std::string::npos;
    for (const std::string& s : stops_) {
      if (!s.empty()) first = std::min(first, held_.find(s));
    }
    stopped_ = first != std::string::npos;
    return Release(stopped_ ? first : held_.size() - LongestBeginning());
  }
  std::string Finish() { return Release(held_.size()); }
  bool stopped() const { return stopped_; }

 private:
  // The longest end of held_ that begins a stop string.
  size_t LongestBeginning() const {
    size_t longest = 0;
    for (const std::string& s : stops_) {
      for (size_t n = std::min(s.size(), held_.size()); n > longest; --n) {
        if (held_.compare(held_.size() - n, n, s, 0, n) == 0) longest = n;
      }
    }
    return longest;
  }

  std::string Release(size_t n) {
    // A stop string may begin inside a code point; whole ones only go out.
    while (n > 0 && n < held_.size() && (held_[n] & '\xC0') == '\x80') --n;
    std::string out = held_.substr(0, n);
    held_.erase(0, n);
    return out;
  }

  const std::vector<std::string>& stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace

const char* ToString(Finish finish) {
  switch (finish) {
    case Finish::kEnd:
      return "end";
    case Finish::kStopString:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kCancelled:
      return "cancelled";
  }
  return "?";
}

Result<GenerateResult> Generate(Session& session, const GenerateOptions& options,
                                const OnText& on_text) {
  MM01_RETURN_IF_ERROR(options.sampling.Validate());
  if (session.tokens().empty())
    return Status::Invalid("there is nothing to go on from: the prompt is empty");
  const auto start = std::chrono::steady_clock::now();
  Engine& engine = session.engine();
  std::optional<StreamingDetokenizer> detokenizer;
  if (engine.tokenizer()) detokenizer.emplace(*engine.tokenizer(), true);
  StopFilter filter(options.stop);
  GenerateResult result;
  bool goes_on = true;
  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (goes_on && on_text && !text.empty()) goes_on = on_text(text);
  };

  while (static_cast<int64_t>(result.tokens.size()) < options.max_tokens) {
    const int32_t token = Sample(session.logits(), options.sampling, session.tokens(), 0,
                                 static_cast<uint64_t>(session.length()));
    result.tokens.push_back(token);
    if (!options.ignore_end && engine.IsEnd(token)) {
      result.finish = Finish::kEnd;
      break;
    }
    emit(filter.Push(detokenizer ? detokenizer->Push(token) : ""));
    if (filter.stopped()) {
      result.finish = Finish::kStopString;
      break;
    }
    MM01_RETURN_IF_ERROR(session.Read({&token, 1}));
    if (!goes_on) {
      result.finish = Finish::kCancelled;
      break;
    }
  }
  if (!filter.stopped()) {
    emit(filter.Push(detokenizer ? detokenizer->Finish() : ""));
    if (filter.stopped()) {
      result.finish = Finish::kStopString;
    } else {
      emit(filter.Finish());
    }
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace mm01::infer
