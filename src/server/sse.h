// Server-sent events, as OpenAI's clients read them.
// Source: the HTML standard, section 9.2.
#pragma once

#include <string>
#include <string_view>

namespace mm01::server {

inline constexpr const char* kEventStream = "text/event-stream; charset=utf-8";

inline std::string SseData(std::string_view json) {  // JSON in one line
  return "data: " + std::string(json) + "\n\n";
}
inline std::string SseComment(std::string_view line) {
  return ": " + std::string(line) + "\n\n";
}

}  // namespace mm01::server
