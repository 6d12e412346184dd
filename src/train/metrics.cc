#include "train/metrics.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/format.h"
#include "base/json.h"
#include "io/file.h"

namespace mm01::train {
namespace {

// JSON has neither NaN nor infinity.
Json JsonNumber(double x) {
  return std::isfinite(x) ? Json(x) : Json(nullptr);
}

std::string ZText(double z) {
  return z == 0 ? "" : fmt::format(" (z {:+.1f})", z);
}

// Lines of steps before `first_step`.
Result<std::string> LinesBefore(const std::string& path, int64_t first_step) {
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxLogBytes));
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const Result<Json> json = ParseJson(line, path);
    // A last line that was cut off by a kill is no JSON.
    const bool keep = json.ok() && json->is_object() && json->contains("step") &&
                      (*json)["step"].is_number_integer() &&
                      (*json)["step"].get<int64_t>() < first_step;
    if (keep) kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

}  // namespace

std::pair<double, double> ExpertBalance(const StepReport& report) {
  double least = 1, most = 1;
  for (const std::vector<double>& layer : report.expert_rows) {
    double sum = 0;
    for (const double rows : layer) sum += rows;
    for (const double rows : layer) {
      const double share = sum > 0 ? rows * static_cast<double>(layer.size()) / sum : 1;
      least = std::min(least, share);
      most = std::max(most, share);
    }
  }
  return {least, most};
}

std::string ToLine(const StepMetrics& m) {
  const StepReport& r = m.report;
  const auto [least, most] = ExpertBalance(r);
  std::string line = fmt::format(
      "{:>{}}/{}  loss {:.4f}{}  norm {:.3g}{}  lr {:.2e}  {:.0f} tokens/s", r.step + 1,
      fmt::formatted_size("{}", m.total_steps), m.total_steps, r.loss, ZText(r.verdict.loss_z),
      r.gradient_norm, ZText(r.verdict.norm_z), r.learning_rate, m.tokens_per_second);
  if (m.mfu > 0) line += fmt::format("  MFU {:.1f} %", 100 * m.mfu);
  line += fmt::format("  {:.0f} ms", 1e3 * r.seconds);
  if (r.data_seconds > 0.05 * r.seconds) {
    line += fmt::format(" (data {:.0f} ms)", 1e3 * r.data_seconds);
  }
  if (!r.expert_rows.empty()) line += fmt::format("  experts {:.2f}-{:.2f}", least, most);
  if (r.dropped_rows > 0) line += fmt::format("  dropped {:.0f}", r.dropped_rows);
  line += "  " + FormatBytes(static_cast<double>(m.memory_bytes));
  line += fmt::format("  skipped {}  {} left", r.skipped, FormatSeconds(m.seconds_left));
  if (r.verdict.skip) line += "\n  SKIPPED: " + r.verdict.reason;
  return line;
}

Json ToJson(const StepMetrics& m, bool with_experts) {
  const StepReport& r = m.report;
  const auto [least, most] = ExpertBalance(r);
  Json json = {{"step", r.step},
               {"stage", r.stage},
               {"length", r.length},
               {"tokens", m.tokens},
               {"loss", JsonNumber(r.loss)},
               {"loss_z", r.verdict.loss_z},
               {"gradient_norm", JsonNumber(r.gradient_norm)},
               {"norm_z", r.verdict.norm_z},
               {"learning_rate", r.learning_rate},
               {"auxiliary", JsonNumber(r.auxiliary)},
               {"tokens_per_second", m.tokens_per_second},
               {"mfu", m.mfu},
               {"milliseconds", 1e3 * r.seconds},
               {"data_milliseconds", 1e3 * r.data_seconds},
               {"memory_bytes", m.memory_bytes},
               {"expert_min", least},
               {"expert_max", most},
               {"dropped_rows", r.dropped_rows},
               {"skipped", r.skipped}};
  if (r.verdict.skip) {
    json["skip_reason"] = r.verdict.reason;
    json["skip_rows"] = r.sources;
  }
  if (with_experts) json["expert_rows"] = r.expert_rows;
  return json;
}

std::vector<std::pair<std::string, double>> ToScalars(const StepMetrics& m) {
  const StepReport& r = m.report;
  const auto [least, most] = ExpertBalance(r);
  return {{"train/loss", r.loss},
          {"train/gradient_norm", r.gradient_norm},
          {"train/learning_rate", r.learning_rate},
          {"train/auxiliary", r.auxiliary},
          {"train/skipped_steps", static_cast<double>(r.skipped)},
          {"speed/tokens_per_second", m.tokens_per_second},
          {"speed/mfu", m.mfu},
          {"speed/memory_bytes", static_cast<double>(m.memory_bytes)},
          {"experts/least_over_even", least},
          {"experts/most_over_even", most},
          {"data/tokens", static_cast<double>(m.tokens)}};
}

Result<RunLog> RunLog::Open(const std::string& run, int64_t first_step, double time) {
  const std::string path = run + "/metrics.jsonl";
  if (std::filesystem::exists(path)) {
    MM01_ASSIGN_OR_RETURN(const std::string kept, LinesBefore(path, first_step));
    MM01_RETURN_IF_ERROR(WriteFileAtomically(path, kept));
  }
  MM01_ASSIGN_OR_RETURN(AppendFile lines, AppendFile::Open(path));
  MM01_ASSIGN_OR_RETURN(EventWriter events, EventWriter::Create(run, time, first_step));
  return RunLog(std::move(lines), std::move(events));
}

Status RunLog::Line(const Json& json) {
  return lines_.Append(JsonText(json) + "\n");
}

Status RunLog::Step(const StepMetrics& m, double time, bool with_experts) {
  MM01_RETURN_IF_ERROR(Line(ToJson(m, with_experts)));
  return events_.Add(time, m.report.step, ToScalars(m));
}

Status RunLog::Validation(int64_t step, const std::vector<ValidationScore>& scores, double time) {
  Json losses = Json::object();
  std::vector<std::pair<std::string, double>> scalars;
  for (const ValidationScore& s : scores) {
    losses[std::to_string(s.length)] = JsonNumber(s.loss);
    scalars.emplace_back(fmt::format("validation/loss_{}", s.length), s.loss);
  }
  MM01_RETURN_IF_ERROR(Line({{"step", step}, {"validation", losses}}));
  return events_.Add(time, step, scalars);
}

Status RunLog::Sample(int64_t step, const SampleReport& sample, double time) {
  Json needles = Json::object();
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [length, accuracy] : sample.needles) {
    needles[std::to_string(length)] = accuracy;
    scalars.emplace_back(fmt::format("needle/accuracy_{}", length), accuracy);
  }
  MM01_RETURN_IF_ERROR(Line({{"step", step}, {"sample", sample.text}, {"needles", needles}}));
  return scalars.empty() ? Status::Ok() : events_.Add(time, step, scalars);
}

Status RunLog::Note(int64_t step, const std::string& text) {
  return Line({{"step", step}, {"note", text}});
}

}  // namespace mm01::train
