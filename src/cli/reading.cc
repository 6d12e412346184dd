#include "cli/reading.h"

#include "cli/progress.h"
#include "planner/flops.h"

namespace mm01::cli {

double ReadingReport::tokens_per_second() const {
  return seconds > 0.0 ? static_cast<double>(num_tokens) / seconds : 0.0;
}

ReadingReport ReadWithProgress(infer::Session& session, std::span<const int32_t> tokens,
                               const Notes& notes) {
  const TextConfig& config = session.engine().config();
  const int64_t begin = session.length();
  const double all = PrefillFlops(config, begin, static_cast<int64_t>(tokens.size()));
  Progress progress(notes, "reading", Progress::Unit::kTokens);
  ReadingReport report;
  report.status = session.Read(tokens, [&](int64_t done, int64_t total) {
    progress.Update(done, total, PrefillFlops(config, begin, done) / all);
    return !InterruptScope::requested();
  });
  report.num_tokens = session.length() - begin;
  report.seconds = progress.seconds();
  return report;
}

}  // namespace mm01::cli
