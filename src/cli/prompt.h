// What a model is given to read: bytes from the command line, a file or a pipe, and their tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "io/chat_template.h"
#include "io/tokenizer.h"

namespace mm01::cli {

// All of a file, or of standard input where `path` is "-". Errors: over Tokenizer::kMaxTextBytes;
// a file compressed by xz (Unsupported, with the way around).
Result<std::string> ReadText(const std::string& path);

// A conversation up to the point where the model answers.
Result<std::vector<RenderedPiece>> RenderForAnswer(const ChatTemplate& chat_template,
                                                   const Json& messages);

Json Message(std::string_view role, std::string_view content);

// The model's own template; where it brought none, Text-01's serves and `note` says so.
const ChatTemplate& TemplateOrText01(const ChatTemplate* own, std::string* note);

}  // namespace mm01::cli
