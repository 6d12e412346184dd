#include "train/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "io/file.h"
#include "train/chart.h"
#include "train/metrics.h"

namespace mm01::train {
namespace {

constexpr size_t kMostPoints = 500;
constexpr size_t kMostColumns = 120;

using Points = std::vector<std::pair<double, double>>;

constexpr const char* kStyle = R"(<style>
:root{--back:#f6f5f1;--card:#fff;--text:#22252b;--soft:#6d7078;--grid:#e7e6e1;--border:#b9b6ab;
--c0:#2f6fd0;--c1:#d9622b;--c2:#2a9a6b;--c3:#8b4fc0;--c4:#b8860b;--c5:#9aa4b5;--bad:#d03050}
@media(prefers-color-scheme:dark){:root{--back:#14161a;--card:#1d2026;--text:#e8e8e6;--soft:#9a9ea8;
--grid:#2c3038;--border:#555b66;--c0:#6aa5ff;--c1:#ff9a62;--c2:#56d0a0;--c3:#c493ff;--c4:#e6bd53;
--c5:#5d6675}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
main{max-width:1560px;margin:0 auto;padding:28px}h1{margin:0;font-size:30px;letter-spacing:-.02em}
h2{font-size:18px;margin:34px 0 10px}.sub{color:var(--soft);margin:2px 0 20px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.card{background:var(--card);border-radius:12px;padding:12px 16px}
.card b{display:block;font-size:23px;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.card span{color:var(--soft);font-size:13px}.card.bad b{color:var(--bad)}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(520px,1fr));gap:14px;
margin-top:14px}
figure{background:var(--card);border-radius:12px;padding:14px 16px 6px;margin:0}
figcaption{font-weight:600;display:flex;gap:12px;flex-wrap:wrap;align-items:baseline}
figcaption small{font-weight:400;color:var(--soft)}
.key{font-weight:400;font-size:13px;color:var(--soft);margin-left:auto}.key+.key{margin-left:0}
.key i,.scale i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;
vertical-align:-1px}.key b{color:var(--text);font-variant-numeric:tabular-nums}
.scale{margin-left:auto;font-weight:400;font-size:12px;color:var(--soft)}
.scale i{border-radius:0;margin:0}.scale i:first-of-type{margin-left:6px}
.scale i:last-of-type{margin-right:6px}
svg{width:100%;display:block}.tick{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--grid)}.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}
.faint{opacity:.3;stroke-width:1}.border{stroke:var(--border);stroke-dasharray:3 4}
.mark{stroke:var(--bad);opacity:.55}
blockquote{background:var(--card);border-radius:12px;margin:10px 0;padding:12px 16px;
white-space:pre-wrap;overflow-wrap:anywhere;font:15px/1.6 Georgia,serif}
blockquote b{display:block;font:12px system-ui,sans-serif;color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td{padding:3px 14px 3px 0;vertical-align:top}td:first-child{color:var(--soft)}
details pre{background:var(--card);border-radius:12px;padding:14px;overflow:auto}
</style>)";

// What metrics.jsonl says.
struct Log {
  std::map<std::string, Points> steps;            // by field
  std::map<int64_t, Points> validation, needles;  // by length
  std::vector<std::pair<double, std::vector<std::vector<double>>>> experts;
  std::vector<std::pair<int64_t, std::string>> samples, notes;  // step, text
  std::vector<double> skipped, stages;
  Json last;  // the last step's line
  int64_t num_steps = 0;
};

constexpr const char* kFields[] = {"loss",       "gradient_norm",     "learning_rate",
                                   "auxiliary",  "tokens_per_second", "mfu",
                                   "expert_min", "expert_max"};

void AddStep(const Json& line, double step, Log* log) {
  for (const char* field : kFields) {
    const auto found = line.find(field);
    if (found != line.end() && found->is_number()) {
      log->steps[field].emplace_back(step, found->get<double>());
    }
  }
  if (line.contains("skip_reason") && line["skip_reason"].is_string()) {
    log->skipped.push_back(step);
    log->notes.emplace_back(static_cast<int64_t>(step),
                            "skipped: " + line["skip_reason"].get<std::string>());
  }
  if (line.contains("expert_rows")) {
    log->experts.emplace_back(step, line["expert_rows"].get<std::vector<std::vector<double>>>());
  }
  if (!log->last.is_null() && log->last.value("stage", 0) != line.value("stage", 0)) {
    log->stages.push_back(step);
  }
  log->last = line;
  ++log->num_steps;
}

void AddScores(const Json& scores, double step, std::map<int64_t, Points>* curves) {
  for (const auto& [length, score] : scores.items()) {
    if (score.is_number()) (*curves)[std::stoll(length)].emplace_back(step, score.get<double>());
  }
}

Result<Log> ReadLog(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxLogBytes));
  Log log;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string where = fmt::format("{}:{}", path, ++number);
    const Result<Json> parsed = ParseJson(std::string_view(text).substr(begin, end - begin), where);
    const bool cut_off = end == text.size();  // the run may be writing it
    begin = end + 1;
    if (!parsed.ok() && cut_off) break;
    MM01_RETURN_IF_ERROR(parsed.status());
    const Json& line = *parsed;
    try {
      const auto step = line.at("step").get<double>();
      if (line.contains("loss")) AddStep(line, step, &log);
      if (line.contains("validation")) AddScores(line["validation"], step, &log.validation);
      if (line.contains("needles")) AddScores(line["needles"], step, &log.needles);
      const auto at = static_cast<int64_t>(step);
      if (line.contains("sample")) log.samples.emplace_back(at, line["sample"].get<std::string>());
      if (line.contains("note")) log.notes.emplace_back(at, line["note"].get<std::string>());
    } catch (const std::exception& e) {
      return Status::Invalid(where + ": is no line of a run's metrics");
    }
  }
  if (log.num_steps == 0) return Status::Invalid(path + ": has no step, wanted at least one");
  return log;
}

std::vector<Curve> ByLength(const std::map<int64_t, Points>& scores, const char* what) {
  std::vector<Curve> curves;
  int colour = 1;
  for (const auto& [length, points] : scores) {
    curves.push_back({.name = fmt::format("{} {}", what, FormatCount(length)),
                      .colour = colour,
                      .points = points,
                      .dots = true});
    colour = colour % 4 + 1;
  }
  return curves;
}

class Page {
 public:
  Page(const Log& log, std::string name, std::string recipe)
      : log_(log), name_(std::move(name)), recipe_(std::move(recipe)) {}

  std::string Html() {
    html_ = fmt::format(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{0}</title>"
        "<meta name=viewport content='width=device-width'>{1}<main><h1>{0}</h1>",
        EscapeHtml(name_), kStyle);
    html_ += fmt::format(
        "<p class=sub>{} steps, {} tokens; dashed lines are where a stage begins, "
        "red ones are steps that were skipped</p>",
        FormatCount(log_.num_steps), FormatCount(log_.last.value("tokens", int64_t{0})));
    Cards();
    html_ += "<div class=grid2>";
    Charts();
    html_ += "</div>";
    Experts();
    Samples();
    Notes();
    html_ += fmt::format(
        "<h2>Recipe</h2><details><summary>as it was given</summary><pre>{}</pre>"
        "</details></main></html>\n",
        EscapeHtml(recipe_));
    return std::move(html_);
  }

 private:
  double Last(const std::string& field) const { return log_.last.value(field, 0.0); }

  void Card(const std::string& value, const std::string& what, bool bad = false) {
    html_ += fmt::format("<div class='card{}'><b>{}</b><span>{}</span></div>", bad ? " bad" : "",
                         value, EscapeHtml(what));
  }

  void Cards() {
    html_ += "<div class=cards>";
    const Points& losses = log_.steps.at("loss");
    Card(fmt::format("{:.4f}", Smooth(losses, 20).back().second), "loss, mean of the last steps");
    for (const auto& [length, points] : log_.validation) {
      Card(fmt::format("{:.4f}", points.back().second),
           fmt::format("validation loss at {}", FormatCount(length)));
    }
    for (const auto& [length, points] : log_.needles) {
      Card(fmt::format("{:.0f} %", 100 * points.back().second),
           fmt::format("needles found at {}", FormatCount(length)));
    }
    const double speed = Thin(log_.steps.at("tokens_per_second"), 1).front().second;
    Card(FormatCount(std::llround(speed)), "tokens/s, mean");
    if (Last("mfu") > 0) Card(fmt::format("{:.1f} %", 100 * Last("mfu")), "MFU");
    Card(FormatBytes(Last("memory_bytes")), "memory");
    Card(fmt::format("{}", log_.skipped.size()), "skipped steps", !log_.skipped.empty());
    html_ += "</div>";
  }

  void Add(LineChart chart) {
    chart.borders = log_.stages;
    html_ += ToSvg(chart);
  }

  Curve Of(const char* field, std::string name, int colour, bool smooth) const {
    const Points points = Thin(log_.steps.at(field), kMostPoints);
    return {.name = std::move(name),
            .colour = colour,
            .points = smooth ? Smooth(points, std::max<size_t>(2, points.size() / 60)) : points};
  }

  // A faint curve of every step behind its running mean.
  std::vector<Curve> WithMean(const char* field, const char* name, int colour) const {
    Curve raw = Of(field, "", colour, false);
    raw.faint = true;
    return {raw, Of(field, name, colour, true)};
  }

  void Charts() {
    LineChart loss{.title = "Loss", .note = "nats a token", .curves = WithMean("loss", "train", 0)};
    for (Curve& c : ByLength(log_.validation, "validation at")) loss.curves.push_back(std::move(c));
    loss.marks = log_.skipped;
    Add(std::move(loss));
    Add({.title = "Gradient norm",
         .note = "before clipping",
         .curves = WithMean("gradient_norm", "norm", 3),
         .marks = log_.skipped,
         .log_y = true});
    Add({.title = "Learning rate",
         .curves = {Of("learning_rate", "rate", 2, false)},
         .from_zero = true});
    Add({.title = "Speed",
         .note = "tokens/s",
         .curves = WithMean("tokens_per_second", "tokens/s", 1),
         .from_zero = true});
    Add({.title = "Needles found",
         .note = "share of magic numbers, by length",
         .curves = ByLength(log_.needles, "at"),
         .from_zero = true});
    Add({.title = "Auxiliary loss",
         .note = "without its coefficient",
         .curves = WithMean("auxiliary", "auxiliary", 4)});
  }

  // Columns are means of neighbouring steps; a value is an expert's share over an even one.
  void Experts() {
    if (log_.experts.empty() || log_.experts[0].second.empty() ||
        log_.experts[0].second[0].empty()) {
      return;
    }
    const auto& first = log_.experts[0].second;
    const size_t layers = first.size(), experts = first[0].size();
    const size_t columns = std::min(kMostColumns, log_.experts.size());
    HeatMap map{.title = "Balance of the experts",
                .note = "rows are experts, layer by layer; steps from left to right",
                .values = std::vector<std::vector<double>>(layers * experts,
                                                           std::vector<double>(columns, 0)),
                .group_rows = experts,
                .first_x = log_.experts.front().first,
                .last_x = log_.experts.back().first};
    for (size_t l = 0; l < layers; ++l) map.group_names.push_back(fmt::format("layer {}", l));
    for (size_t c = 0; c < columns; ++c) {
      const size_t begin = log_.experts.size() * c / columns;
      const size_t end = log_.experts.size() * (c + 1) / columns;
      for (size_t i = begin; i < end; ++i) AddColumn(log_.experts[i].second, c, end - begin, &map);
    }
    html_ += "<h2>Experts</h2>" + ToSvg(map);
  }

  static void AddColumn(const std::vector<std::vector<double>>& rows, size_t column, size_t of,
                        HeatMap* map) {
    const size_t experts = map->group_rows;
    for (size_t l = 0; l < rows.size() && l < map->group_names.size(); ++l) {
      double sum = 0;
      for (const double n : rows[l]) sum += n;
      for (size_t e = 0; e < experts && e < rows[l].size() && sum > 0; ++e) {
        map->values[l * experts + e][column] +=
            rows[l][e] * static_cast<double>(experts) / sum / static_cast<double>(of);
      }
    }
  }

  void Samples() {
    if (log_.samples.empty()) return;
    html_ += "<h2>What it wrote</h2>";
    // The first, the last, and some between.
    std::set<size_t> shown;
    for (size_t i = 0; i < 5; ++i) shown.insert(i * (log_.samples.size() - 1) / 4);
    for (const size_t i : shown) {
      html_ +=
          fmt::format("<blockquote><b>after step {}</b>{}</blockquote>",
                      FormatCount(log_.samples[i].first + 1), EscapeHtml(log_.samples[i].second));
    }
  }

  void Notes() {
    if (log_.notes.empty()) return;
    html_ += "<h2>Notes</h2><table>";
    for (const auto& [step, text] : log_.notes) {
      html_ += fmt::format("<tr><td>step {}<td>{}", FormatCount(step), EscapeHtml(text));
    }
    html_ += "</table>";
  }

  const Log& log_;
  std::string name_, recipe_;
  std::string html_;
};

}  // namespace

Result<std::string> MakeReport(const std::string& run) {
  MM01_ASSIGN_OR_RETURN(const Log log, ReadLog(run + "/metrics.jsonl"));
  const Result<std::string> recipe = ReadFile(run + "/recipe.toml", 1 << 20);
  std::error_code error;
  const std::filesystem::path path = std::filesystem::weakly_canonical(run, error);
  const std::string name = path.filename().string();
  return Page(log, name.empty() ? run : name, recipe.ok() ? *recipe : "").Html();
}

}  // namespace mm01::train
