#include "server/metrics.h"

#include <fmt/core.h>

namespace mm01::server {
namespace {

void Add(std::string* text, const char* type, const char* name, const char* help, int64_t value) {
  *text += fmt::format("# HELP mm01_{0} {1}\n# TYPE mm01_{0} {2}\nmm01_{0} {3}\n", name, help, type,
                       value);
}

}  // namespace

void HttpMetrics::Count(const std::string& route, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[{route, status}];
  ++entry.count;
  entry.seconds += seconds;
}

std::string HttpMetrics::Text() const {
  const std::lock_guard lock(mutex_);
  std::string counts =
      "# HELP mm01_http_requests_total Answers; status 499 is a client that left.\n"
      "# TYPE mm01_http_requests_total counter\n";
  std::string seconds =
      "# HELP mm01_http_request_seconds_total From the head of a request to the end of its "
      "answer.\n"
      "# TYPE mm01_http_request_seconds_total counter\n";
  for (const auto& [key, entry] : entries_) {
    const std::string labels = fmt::format("{{route=\"{}\",status=\"{}\"}}", key.first, key.second);
    counts += fmt::format("mm01_http_requests_total{} {}\n", labels, entry.count);
    seconds += fmt::format("mm01_http_request_seconds_total{} {:.6f}\n", labels, entry.seconds);
  }
  return counts + seconds;
}

std::string ServiceMetricsText(const infer::ServiceStats& stats) {
  std::string text;
  const auto counter = [&](const char* name, const char* help, int64_t value) {
    Add(&text, "counter", name, help, value);
  };
  const auto gauge = [&](const char* name, const char* help, int64_t value) {
    Add(&text, "gauge", name, help, value);
  };
  counter("requests_submitted_total", "Choices taken in.", stats.submitted);
  counter("requests_refused_total", "Choices refused, mostly for a full queue.", stats.refused);
  counter("requests_done_total", "Choices written to their end.", stats.done);
  counter("requests_failed_total", "Choices that failed.", stats.failed);
  counter("requests_cancelled_total", "Choices that were cancelled.", stats.cancelled);
  counter("prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens);
  counter("cached_tokens_total", "Tokens of prompts that a snapshot held.", stats.cached_tokens);
  counter("read_tokens_total", "Tokens computed by prefill, lost work included.",
          stats.read_tokens);
  counter("written_tokens_total", "Tokens written.", stats.written_tokens);
  counter("steps_total", "Steps of the engine.", stats.steps);
  counter("snapshots_taken_total", "Snapshots of the state taken.", stats.snapshots_taken);
  counter("snapshots_hit_total", "Prompts that began at a snapshot.", stats.snapshots_hit);
  counter("snapshots_evicted_total", "Snapshots given up for room.", stats.snapshots_evicted);
  counter("snapshots_damaged_total", "Files of snapshots that were deleted, unused.",
          stats.snapshots_damaged);
  gauge("requests_queued", "Choices that wait.", stats.queued);
  gauge("requests_running", "Choices that are read or written.", stats.running);
  gauge("slots_used", "Sequences in use.", stats.slots_used);
  gauge("slots", "Sequences there is room for.", stats.slots);
  gauge("kv_pages_used", "Pages of the KV cache in use.", stats.pages_used);
  gauge("kv_pages", "Pages of the KV cache.", stats.pages);
  gauge("snapshots", "Snapshots in memory.", stats.snapshots);
  gauge("snapshot_bytes", "Bytes of snapshots in memory.", stats.snapshot_bytes);
  gauge("snapshots_on_disk", "Snapshots on disk.", stats.snapshots_on_disk);
  gauge("snapshot_disk_bytes", "Bytes of snapshots on disk.", stats.snapshot_disk_bytes);
  return text;
}

}  // namespace mm01::server
