// Tokens of a rendered conversation.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/chat_template.h"
#include "io/tokenizer.h"

namespace mm01 {

struct EncodedPieces {
  std::vector<int32_t> ids;
  // Ascending positions, none of them 0: where the last special token begins of each trusted piece
  // that has one. For templates that put special tokens around messages these are the ends of
  // turns: another message after such a place leaves all ids before it as they are.
  std::vector<int64_t> turns;
};

// Special tokens are found in trusted pieces only; what lies between two of them is encoded as one
// text, over the borders of pieces. Errors are those of Tokenizer::Encode; `most_tokens` counts the
// ids of all pieces but special tokens' own.
Result<EncodedPieces> EncodePieces(const Tokenizer& tokenizer,
                                   std::span<const RenderedPiece> pieces,
                                   size_t most_tokens = Tokenizer::kMaxTextBytes);

}  // namespace mm01
