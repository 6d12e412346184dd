#include "infer/generate.h"

#include <chrono>

#include "infer/text_stream.h"

namespace mm01::infer {

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
  TextStream text(engine.tokenizer(), options.stop);
  GenerateResult result;
  bool goes_on = true;
  const auto emit = [&](const std::string& piece) {
    result.text += piece;
    if (goes_on && on_text && !piece.empty()) goes_on = on_text(piece);
  };

  while (static_cast<int64_t>(result.tokens.size()) < options.max_tokens) {
    const int32_t token = session.Draw(options.sampling);
    result.tokens.push_back(token);
    if (!options.ignore_end && engine.IsEnd(token)) {
      result.finish = Finish::kEnd;
      break;
    }
    emit(text.Push(token));
    if (text.stopped()) {
      result.finish = Finish::kStopString;
      break;
    }
    MM01_RETURN_IF_ERROR(session.Read({&token, 1}));
    if (!goes_on) {
      result.finish = Finish::kCancelled;
      break;
    }
  }
  if (!text.stopped()) {
    emit(text.Finish());
    if (text.stopped()) result.finish = Finish::kStopString;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace mm01::infer
