#include "cli/train_screen.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/format.h"

namespace mm01::cli {
namespace {

constexpr int64_t kStepsBarWidth = 40;

}  // namespace

void TrainScreen::Clear() {
  if (!bar_.empty()) notes_.Write("\r\x1b[K");
  bar_.clear();
}

void TrainScreen::Note(const std::string& text) {
  const std::string bar = bar_;
  Clear();
  notes_.Write(text + "\n" + bar);
  bar_ = bar;
}

void TrainScreen::Step(const train::StepMetrics& m) {
  Clear();
  notes_.Write(train::ToLine(m) + "\n");
  if (!notes_.is_terminal()) return;
  const int64_t done = m.report.step + 1;
  const int64_t full = std::min(kStepsBarWidth, kStepsBarWidth * done / m.total_steps);
  bar_ = fmt::format("training [{:#<{}}{:.<{}}] {:.0f} %, {} tokens, {} left", "", full, "",
                     kStepsBarWidth - full,
                     100.0 * static_cast<double>(done) / static_cast<double>(m.total_steps),
                     FormatCount(m.tokens), FormatSeconds(m.seconds_left));
  notes_.Write(bar_);
}

}  // namespace mm01::cli
