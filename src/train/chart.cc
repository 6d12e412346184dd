#include "train/chart.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace mm01::train {
namespace {

constexpr double kWidth = 720, kHeight = 260;
constexpr double kHeatWidth = 1440;  // heat maps are as wide as two charts
constexpr double kLeft = 58, kRight = 14, kTop = 12, kBottom = 26;

using Points = std::vector<std::pair<double, double>>;

struct Range {
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();

  void Add(double x) {
    if (!std::isfinite(x)) return;
    min = std::min(min, x);
    max = std::max(max, x);
  }
  bool empty() const { return min > max; }
  double width() const { return max - min; }
};

std::string NumberText(double x) {
  const double size = std::abs(x);
  if (size >= 1e6) return fmt::format("{:g}M", std::round(x / 1e4) / 100);
  if (size >= 1e4) return fmt::format("{:g}k", std::round(x / 100) / 10);
  if (size != 0 && size < 1e-4) return fmt::format("{:.1e}", x);
  return fmt::format("{:g}", std::round(x * 1e5) / 1e5);
}

// 1, 2 or 5 times a power of ten, so that about `count` fit.
double Step(double width, int count) {
  const double raw = width / count, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double m : {1.0, 2.0, 5.0}) {
    if (raw <= m * power) return m * power;
  }
  return 10 * power;
}

class Axes {
 public:
  explicit Axes(const LineChart& chart) : log_(chart.log_y) {
    for (const Curve& c : chart.curves) {
      for (const auto& [x, y] : c.points) {
        if (log_ && y <= 0) continue;
        x_.Add(x);
        y_.Add(log_ ? std::log10(y) : y);
      }
    }
    if (empty()) return;
    if (chart.from_zero) y_.Add(0);
    if (x_.width() == 0) x_.max += 1;
    // Values that differ by rounding alone are one value, which stands in the middle.
    const double size = std::max(std::abs(y_.min), std::abs(y_.max));
    const bool flat = y_.width() <= 1e-6 * size;
    const double room = flat ? std::max(0.1 * size, 1e-9) : 0.04 * y_.width();
    if (!chart.from_zero) y_.min -= room;
    y_.max += room;
  }

  bool empty() const { return x_.empty() || y_.empty(); }
  double X(double x) const { return kLeft + (x - x_.min) / x_.width() * (kWidth - kLeft - kRight); }
  double Y(double y) const {
    const double v = log_ ? std::log10(std::max(y, 1e-300)) : y;
    return kHeight - kBottom - (v - y_.min) / y_.width() * (kHeight - kTop - kBottom);
  }

  std::string Grid() const {
    std::string svg;
    const double step = log_ ? std::max(1.0, std::ceil(y_.width() / 5)) : Step(y_.width(), 5);
    // Less than one decade of a logarithm has ticks of its own.
    const double ticks = log_ && y_.width() < 1.5 ? Step(y_.width(), 4) : step;
    for (double v = std::ceil(y_.min / ticks) * ticks; v <= y_.max; v += ticks) {
      const double value = log_ ? std::pow(10, v) : v, y = Y(value);
      svg += fmt::format(
          "<line class=grid x1={:.1f} x2={:.1f} y1={:.1f} y2={:.1f} />"
          "<text class=tick text-anchor=end x={:.1f} y={:.1f}>{}</text>",
          kLeft, kWidth - kRight, y, y, kLeft - 6, y + 4, NumberText(value));
    }
    const double across = Step(x_.width(), 8);
    for (double v = std::ceil(x_.min / across) * across; v <= x_.max; v += across) {
      svg += fmt::format("<text class=tick text-anchor=middle x={:.1f} y={:.1f}>{}</text>", X(v),
                         kHeight - 8, NumberText(v));
    }
    return svg;
  }

 private:
  bool log_;
  Range x_, y_;
};

std::string CurveSvg(const Curve& curve, const Axes& axes, bool log) {
  std::string path, dots;
  bool down = false;
  for (const auto& [x, y] : curve.points) {
    if (!std::isfinite(y) || (log && y <= 0)) {
      down = false;
      continue;
    }
    path += fmt::format("{}{:.1f} {:.1f}", down ? "L" : "M", axes.X(x), axes.Y(y));
    down = true;
    if (curve.dots) {
      dots += fmt::format(
          "<circle cx={:.1f} cy={:.1f} r=3 fill='var(--c{})'><title>{} {}: {}</title></circle>",
          axes.X(x), axes.Y(y), curve.colour, EscapeHtml(curve.name), NumberText(x), NumberText(y));
    }
  }
  return fmt::format("<path class='curve{}' stroke='var(--c{})' d='{}'/>{}",
                     curve.faint ? " faint" : "", curve.colour, path, dots);
}

std::string Legend(const std::vector<Curve>& curves) {
  std::string html;
  for (const Curve& c : curves) {
    if (c.name.empty() || c.points.empty()) continue;
    const auto& [x, y] = c.points.back();
    html += fmt::format("<span class=key><i style='background:var(--c{})'></i>{} <b>{}</b></span>",
                        c.colour, EscapeHtml(c.name), NumberText(y));
  }
  return html;
}

std::string Figure(const std::string& title, const std::string& note, const std::string& legend,
                   const std::string& svg) {
  return fmt::format("<figure><figcaption>{} <small>{}</small>{}</figcaption>{}</figure>\n",
                     EscapeHtml(title), EscapeHtml(note), legend, svg);
}

// From an unused expert over an even share to one with twice that or more.
constexpr std::array<const char*, 11> kHeat = {"#1b2a6b", "#2f4fa3", "#5a83c6", "#93b5dd",
                                               "#cfdcec", "#eef0ee", "#f8dfc0", "#f3b97d",
                                               "#e58a44", "#c9571f", "#8f2d0c"};

size_t HeatLevel(double value) {
  const double level = std::clamp(value, 0.0, 2.0) / 2 * (kHeat.size() - 1);
  return static_cast<size_t>(std::lround(level));
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string html;
  for (const char c : text) {
    switch (c) {
      case '&':
        html += "&amp;";
        break;
      case '<':
        html += "&lt;";
        break;
      case '>':
        html += "&gt;";
        break;
      case '"':
        html += "&quot;";
        break;
      case '\'':
        html += "&#39;";
        break;
      default:
        html += c;
    }
  }
  return html;
}

std::string ToSvg(const LineChart& chart) {
  const Axes axes(chart);
  if (axes.empty()) return "";
  std::string svg = fmt::format("<svg viewBox='0 0 {} {}' role=img>", kWidth, kHeight);
  svg += axes.Grid();
  const auto vertical = [&](double x, const char* kind) {
    svg += fmt::format("<line class={} x1={:.1f} x2={:.1f} y1={} y2={} />", kind, axes.X(x),
                       axes.X(x), kTop, kHeight - kBottom);
  };
  for (const double x : chart.borders) vertical(x, "border");
  for (const double x : chart.marks) vertical(x, "mark");
  for (const Curve& c : chart.curves) svg += CurveSvg(c, axes, chart.log_y);
  return Figure(chart.title, chart.note, Legend(chart.curves), svg + "</svg>");
}

std::string ToSvg(const HeatMap& map) {
  if (map.values.empty() || map.values[0].empty()) return "";
  constexpr double kRow = 6, kGap = 5, kLabel = 58;
  const size_t columns = map.values[0].size();
  const double cell = (kHeatWidth - kLabel - kRight) / static_cast<double>(columns);
  const auto groups = static_cast<double>(map.values.size() / map.group_rows);
  const double height = static_cast<double>(map.values.size()) * kRow + groups * kGap + kBottom;
  std::array<std::string, kHeat.size()> paths;  // one of each colour keeps the page small
  std::string labels;
  for (size_t r = 0; r < map.values.size(); ++r) {
    const size_t group = r / map.group_rows;
    const double y = static_cast<double>(r) * kRow + static_cast<double>(group) * kGap;
    if (r % map.group_rows == 0) {
      labels += fmt::format("<text class=tick text-anchor=end x={:.1f} y={:.1f}>{}</text>",
                            kLabel - 6, y + kRow * static_cast<double>(map.group_rows) / 2 + 4,
                            EscapeHtml(map.group_names[group]));
    }
    for (size_t c = 0; c < columns;) {
      const size_t level = HeatLevel(map.values[r][c]);
      size_t end = c + 1;
      while (end < columns && HeatLevel(map.values[r][end]) == level) ++end;
      paths[level] += fmt::format(
          "M{:.1f} {:.1f}h{:.1f}v{}h-{:.1f}z", kLabel + static_cast<double>(c) * cell, y,
          static_cast<double>(end - c) * cell, kRow - 0.5, static_cast<double>(end - c) * cell);
      c = end;
    }
  }
  std::string svg = fmt::format("<svg viewBox='0 0 {} {:.0f}' role=img>", kHeatWidth, height);
  for (size_t i = 0; i < paths.size(); ++i) {
    if (!paths[i].empty()) svg += fmt::format("<path fill='{}' d='{}'/>", kHeat[i], paths[i]);
  }
  svg += labels;
  for (const auto& [x, at] : {std::pair(kLabel, map.first_x), {kHeatWidth - kRight, map.last_x}}) {
    svg += fmt::format("<text class=tick text-anchor={} x={:.1f} y={:.1f}>{}</text>",
                       x == kLabel ? "start" : "end", x, height - 8, NumberText(at));
  }
  std::string scale = "<span class=scale>unused";
  for (const char* colour : kHeat) scale += fmt::format("<i style='background:{}'></i>", colour);
  return Figure(map.title, map.note, scale + "twice an even share</span>", svg + "</svg>");
}

Points Thin(const Points& points, size_t most) {
  if (points.size() <= most) return points;
  Points thin;
  for (size_t i = 0; i < most; ++i) {
    const size_t begin = points.size() * i / most, end = points.size() * (i + 1) / most;
    double x = 0, y = 0;
    for (size_t j = begin; j < end; ++j) {
      x += points[j].first;
      y += points[j].second;
    }
    const auto n = static_cast<double>(end - begin);
    thin.emplace_back(x / n, y / n);
  }
  return thin;
}

Points Smooth(const Points& points, size_t width) {
  Points smooth;
  for (size_t i = 0; i < points.size(); ++i) {
    const size_t begin = i > width ? i - width : 0, end = std::min(points.size(), i + width + 1);
    double sum = 0;
    for (size_t j = begin; j < end; ++j) sum += points[j].second;
    smooth.emplace_back(points[i].first, sum / static_cast<double>(end - begin));
  }
  return smooth;
}

}  // namespace mm01::train
