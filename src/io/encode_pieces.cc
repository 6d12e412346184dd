#include "io/encode_pieces.h"

#include <optional>
#include <string>

namespace mm01 {

Result<EncodedPieces> EncodePieces(const Tokenizer& tokenizer,
                                   std::span<const RenderedPiece> pieces, size_t most_tokens) {
  EncodedPieces out;
  std::string text;  // since the last special token
  const auto flush = [&] {
    const size_t room = most_tokens - std::min(most_tokens, out.ids.size());
    Result<std::vector<int32_t>> more = tokenizer.Encode(text, Tokenizer::Special::kAsText, room);
    text.clear();
    if (more.ok()) out.ids.insert(out.ids.end(), more->begin(), more->end());
    return more.status();
  };
  for (const RenderedPiece& piece : pieces) {
    if (!piece.trusted) {
      text += piece.text;
      continue;
    }
    MM01_ASSIGN_OR_RETURN(const auto parsed,
                          tokenizer.Encode(piece.text, Tokenizer::Special::kParse));
    std::optional<int64_t> turn;
    for (const int32_t id : parsed) {
      if (!tokenizer.IsSpecial(id)) {
        text += tokenizer.Bytes(id);
        continue;
      }
      MM01_RETURN_IF_ERROR(flush());
      turn = static_cast<int64_t>(out.ids.size());
      out.ids.push_back(id);
    }
    if (turn && *turn > 0) out.turns.push_back(*turn);
  }
  MM01_RETURN_IF_ERROR(flush());
  return out;
}

}  // namespace mm01
