#include "train/guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace mm01::train {
namespace {

// Of the mean. Late in a run the norm of many steps lies within a few per cent, and a batch that is
// merely unusual would be far out; what is half as large again is left to clipping.
constexpr double kLeastLossSigma = 0.01, kLeastNormSigma = 0.1;

struct Moments {
  double mean = 0;
  double sigma = 0;
};

Moments MomentsOf(const std::deque<double>& values, double least_sigma) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double x : values) sum += x;
  const double mean = sum / n;
  for (const double x : values) squares += (x - mean) * (x - mean);
  return {mean, std::max(std::sqrt(squares / n), least_sigma * std::abs(mean))};
}

double ZScore(const std::deque<double>& values, double least_sigma, double x) {
  if (values.size() < 2 || !std::isfinite(x)) return 0;
  const Moments m = MomentsOf(values, least_sigma);
  return m.sigma > 0 ? (x - m.mean) / m.sigma : 0;
}

std::string Objection(const char* what, double x, double z, const std::deque<double>& values) {
  if (!std::isfinite(x)) return fmt::format("the {} is {}", what, x);
  const double mean = MomentsOf(values, 0).mean;
  return fmt::format("the {} {:.4g} is {:.1f} sigmas above {:.4g}, the mean of {} steps", what, x,
                     z, mean, values.size());
}

}  // namespace

Verdict Guard::Judge(double loss, double norm) {
  Verdict v{.loss_z = ZScore(state_.losses, kLeastLossSigma, loss),
            .norm_z = ZScore(state_.norms, kLeastNormSigma, norm)};
  const bool full = std::ssize(state_.losses) >= spec_.window;
  const auto bad = [&](double x, double z) {
    return !std::isfinite(x) || (full && z > spec_.sigmas);
  };
  if (bad(loss, v.loss_z)) {
    v.reason = Objection("loss", loss, v.loss_z, state_.losses);
  } else if (bad(norm, v.norm_z)) {
    v.reason = Objection("gradient norm", norm, v.norm_z, state_.norms);
  }
  v.skip = !v.reason.empty();
  if (v.skip) {
    ++state_.skipped;
    ++state_.skipped_in_row;
    return v;
  }
  state_.skipped_in_row = 0;
  for (const auto& [values, x] : {std::pair(&state_.losses, loss), {&state_.norms, norm}}) {
    values->push_back(x);
    if (std::ssize(*values) > spec_.window) values->pop_front();
  }
  return v;
}

void Guard::BeginStage() {
  state_.losses.clear();
  state_.norms.clear();
}

}  // namespace mm01::train
