#include "cli/progress.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/format.h"

namespace mm01::cli {
namespace {

constexpr double kBarSeconds = 0.1;
constexpr double kLineSeconds = 10.0;
constexpr double kFirstBarSeconds = 0.3;  // what is done by then needs no bar
constexpr int kBarWidth = 24;

std::string Amount(Progress::Unit unit, int64_t n) {
  return unit == Progress::Unit::kBytes ? FormatBytes(static_cast<double>(n)) : FormatCount(n);
}

}  // namespace

Progress::Progress(const Notes& notes, std::string what, Unit unit)
    : notes_(notes),
      what_(std::move(what)),
      unit_(unit),
      begin_(std::chrono::steady_clock::now()),
      next_seconds_(notes.is_terminal() ? kFirstBarSeconds : kLineSeconds) {}

Progress::~Progress() {
  if (drawn_) notes_.Write("\r\x1b[K");
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

void Progress::Update(int64_t done, int64_t total) {
  Update(done, total, total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0);
}

void Progress::Update(int64_t done, int64_t total, double share) {
  if (notes_.quiet() || seconds() < next_seconds_) return;
  next_seconds_ = seconds() + (notes_.is_terminal() ? kBarSeconds : kLineSeconds);
  const std::string line = Line(done, total, std::clamp(share, 0.0, 1.0));
  if (notes_.is_terminal()) {
    drawn_ = true;
    notes_.Write("\r" + line + "\x1b[K");
  } else {
    notes_.Write(line + "\n");
  }
}

std::string Progress::Line(int64_t done, int64_t total, double share) const {
  const double elapsed = seconds();
  const double per_second = static_cast<double>(done) / elapsed;
  const std::string speed = unit_ == Unit::kBytes ? FormatBytes(per_second) + "/s"
                                                  : fmt::format("{:.0f} tokens/s", per_second);
  const std::string left =
      share > 0.0 ? ", " + FormatSeconds(elapsed * (1.0 - share) / share) + " left" : "";
  std::string bar;
  if (notes_.is_terminal()) {
    const int full = static_cast<int>(share * kBarWidth);
    bar = fmt::format(" [{:#<{}}{:.<{}}]", "", full, "", kBarWidth - full);
  }
  return fmt::format("{}{} {:3.0f} %, {} of {}{}, {}{}", what_, bar, 100.0 * share,
                     Amount(unit_, done), Amount(unit_, total),
                     unit_ == Unit::kTokens ? " tokens" : "", speed, left);
}

}  // namespace mm01::cli
