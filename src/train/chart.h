// Charts as SVG text that stands in an HTML page: curves over steps, and a heat map.
//
// Colours are CSS variables of the page (--c0 .. --c5, --text, --grid), so that it may be light or
// dark.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mm01::train {

std::string EscapeHtml(std::string_view text);

struct Curve {
  std::string name;
  int colour = 0;
  std::vector<std::pair<double, double>> points;  // by rising x
  bool dots = false;                              // few points, each marked
  bool faint = false;                             // behind the others
};

struct LineChart {
  std::string title;
  std::string note;  // in small letters behind the title
  std::vector<Curve> curves;
  std::vector<double> marks;    // x of vertical lines: steps that were skipped
  std::vector<double> borders;  // x of where stages begin
  bool log_y = false;
  bool from_zero = false;
};

// Empty where there are no points.
std::string ToSvg(const LineChart& chart);

// values[row][column] from 0 on, 1 is neutral; rows in groups of `group_rows` with `group_names`.
struct HeatMap {
  std::string title;
  std::string note;
  std::vector<std::vector<double>> values;
  size_t group_rows = 1;
  std::vector<std::string> group_names;
  double first_x = 0, last_x = 0;
};

std::string ToSvg(const HeatMap& map);

// The mean of neighbouring points, so that at most `most` are left.
std::vector<std::pair<double, double>> Thin(const std::vector<std::pair<double, double>>& points,
                                            size_t most);
// A running mean over `width` points before and behind.
std::vector<std::pair<double, double>> Smooth(const std::vector<std::pair<double, double>>& points,
                                              size_t width);

}  // namespace mm01::train
