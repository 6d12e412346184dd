// Reading tokens into a session with a progress bar, until Ctrl-C.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "cli/console.h"
#include "infer/session.h"

namespace mm01::cli {

struct ReadingReport {
  Status status;           // Cancelled after Ctrl-C; what was read then stays read
  int64_t num_tokens = 0;  // that were read
  double seconds = 0.0;

  double tokens_per_second() const;
};

// Needs an InterruptScope. The time left counts floating-point operations, so that it holds for the
// softmax layers' growing share too.
ReadingReport ReadWithProgress(infer::Session& session, std::span<const int32_t> tokens,
                               const Notes& notes);

}  // namespace mm01::cli
