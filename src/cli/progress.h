// How far a long job is: a bar on a terminal, a line every ten seconds elsewhere, nothing where
// quiet.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/console.h"

namespace mm01::cli {

class Progress {
 public:
  enum class Unit { kTokens, kBytes };

  // `what` is a verb: "reading". `notes` must outlive it. The clock starts here.
  Progress(const Notes& notes, std::string what, Unit unit);
  // Wipes the bar.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `share` is the part of the work that is done, where that is not done / total. Cheap: writes at
  // most ten times a second.
  void Update(int64_t done, int64_t total);
  void Update(int64_t done, int64_t total, double share);

  double seconds() const;

 private:
  std::string Line(int64_t done, int64_t total, double share) const;

  const Notes& notes_;
  std::string what_;
  Unit unit_;
  std::chrono::steady_clock::time_point begin_;
  double next_seconds_;
  bool drawn_ = false;
};

}  // namespace mm01::cli
