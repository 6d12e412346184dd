#include "cli/prompt.h"

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/json.h"
#include "io/file.h"

namespace mm01::cli {
namespace {

constexpr std::string_view kXzMagic(
    "\xFD"
    "7zXZ\0",
    6);

Result<std::string> ReadStandardInput() {
  std::string text;
  std::array<char, 1 << 16> buffer;
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::Io(fmt::format("standard input: {}", std::strerror(errno)));
    if (n == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(n));
    if (text.size() > Tokenizer::kMaxTextBytes) {
      return Status::TooLarge(fmt::format("standard input: more than {} bytes, wanted at most that",
                                          Tokenizer::kMaxTextBytes));
    }
  }
}

}  // namespace

Result<std::string> ReadText(const std::string& path) {
  Result<std::string> text = path == "-"
                                 ? ReadStandardInput()
                                 : ReadFile(path, static_cast<int64_t>(Tokenizer::kMaxTextBytes));
  if (text.ok() && text->starts_with(kXzMagic)) {
    return Status::Unsupported(
        fmt::format("{}: compressed by xz, wanted plain text; unpack it on the way in: xz -dc FILE "
                    "| mm01 ... with '-' for the file",
                    path == "-" ? "standard input" : path));
  }
  return text;
}

Result<std::vector<RenderedPiece>> RenderForAnswer(const ChatTemplate& chat_template,
                                                   const Json& messages) {
  return chat_template.Render(messages, nullptr, true);
}

Json Message(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

const ChatTemplate& TemplateOrText01(const ChatTemplate* own, std::string* note) {
  if (own != nullptr) return *own;
  *note =
      "this model brought no chat template, so it was likely never trained on one; using that of "
      "MiniMax-Text-01\n";
  return ChatTemplate::Text01();
}

}  // namespace mm01::cli
