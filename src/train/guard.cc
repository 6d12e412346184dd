#include "train/guard.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace mm01::train {
namespace {

constexpr double kLeastLossSigma = 0.02, kLeastLogNormSigma = 0.2;

struct Moments {
  double mean = 0;
  double sigma = 0;

  double z(double x) const { return sigma > 0 ? (x - mean) / sigma : 0; }
};

Moments MomentsOf(const std::deque<double>& values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double x : values) sum += x;
  const double mean = sum / n;
  for (const double x : values) squares += (x - mean) * (x - mean);
  return {mean, std::sqrt(squares / n)};
}

Moments OfLosses(const std::deque<double>& losses) {
  if (losses.size() < 2) return {};
  Moments m = MomentsOf(losses);
  m.sigma = std::max(m.sigma, kLeastLossSigma * std::abs(m.mean));
  return m;
}

// A norm of 0 is that of a step that taught nothing; its logarithm would swamp the others.
double LogOfNorm(double norm) {
  return std::log(std::max(norm, 1e-12));
}

Moments OfLogNorms(const std::deque<double>& norms) {
  if (norms.size() < 2) return {};
  std::deque<double> logs;
  for (const double norm : norms) logs.push_back(LogOfNorm(norm));
  Moments m = MomentsOf(logs);
  m.sigma = std::max(m.sigma, kLeastLogNormSigma);
  return m;
}

std::string Objection(const char* what, double x, double z, double mean, size_t steps) {
  if (!std::isfinite(x)) return fmt::format("the {} is {}", what, x);
  return fmt::format("the {} {:.4g} is {:.1f} sigmas above {:.4g}, the mean of {} steps", what, x,
                     z, mean, steps);
}

}  // namespace

Verdict Guard::Judge(double loss, double norm) {
  const Moments losses = OfLosses(state_.losses), norms = OfLogNorms(state_.norms);
  Verdict v;
  if (std::isfinite(loss)) v.loss_z = losses.z(loss);
  if (std::isfinite(norm)) v.norm_z = norms.z(LogOfNorm(norm));
  const bool full = std::ssize(state_.losses) >= spec_.window;
  const auto bad = [&](double x, double z) {
    return !std::isfinite(x) || (full && z > spec_.sigmas);
  };
  const size_t steps = state_.losses.size();
  if (bad(loss, v.loss_z)) {
    v.reason = Objection("loss", loss, v.loss_z, losses.mean, steps);
  } else if (bad(norm, v.norm_z)) {
    v.reason = Objection("gradient norm", norm, v.norm_z, std::exp(norms.mean), steps);
  }
  v.skip = !v.reason.empty();
  state_.skipped += v.skip ? 1 : 0;
  state_.skipped_in_row = v.skip ? state_.skipped_in_row + 1 : 0;
  if (!std::isfinite(loss) || !std::isfinite(norm)) return v;
  if (v.skip) {
    loss = std::min(loss, losses.mean + spec_.sigmas * losses.sigma);
    norm = std::min(norm, std::exp(norms.mean + spec_.sigmas * norms.sigma));
  }
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
