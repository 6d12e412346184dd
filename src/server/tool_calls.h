// Calls of functions, as MiniMax-Text-01 writes and reads them:
//
//   <function_call>```typescript
//   functions.NAME({"argument": value})
//   ```
//
// where <function_call> is a special token, and several calls may stand on lines of their own.
// Source: the function call guide of MiniMax's models.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mm01::server {

inline constexpr const char* kFunctionCallToken = "<function_call>";

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON
};

// What stands after the token, for calls that were made before.
std::string FormatToolCalls(const std::vector<ToolCall>& calls);

// A piece of a call as it is written.
struct ToolCallDelta {
  int index = 0;          // of the call
  std::string name;       // not empty in the first delta of a call, and there alone
  std::string arguments;  // what is new of them
};

// Reads the text after the token, in any pieces.
class ToolCallParser {
 public:
  std::vector<ToolCallDelta> Push(std::string_view text);
  int num_calls() const { return index_ + 1; }
  // All that was pushed, where it turned out to hold no call: it is text after all.
  const std::string& text() const { return text_; }

 private:
  enum class At { kOutside, kName, kArguments };
  void Step(char c, std::vector<ToolCallDelta>* deltas);
  void StepArguments(char c, std::vector<ToolCallDelta>* deltas);

  At at_ = At::kOutside;
  std::string text_, seen_, name_;
  int index_ = -1, depth_ = 0;
  bool in_string_ = false, escaped_ = false;
};

}  // namespace mm01::server
