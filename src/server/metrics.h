// Counters in Prometheus' text format.
// Source: Prometheus' exposition format 0.0.4.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "infer/service.h"

namespace mm01::server {

// Answers by route and status, and how long they took.
class HttpMetrics {
 public:
  void Count(const std::string& route, int status, double seconds);
  std::string Text() const;

 private:
  struct Entry {
    int64_t count = 0;
    double seconds = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, Entry> entries_;
};

std::string ServiceMetricsText(const infer::ServiceStats& stats);

}  // namespace mm01::server
