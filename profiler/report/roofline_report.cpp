// Rooflines as a figure and as a table.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>
#include <string_view>

#include "core/layer/stage.hpp"
#include "profiler/report/roofline.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

using Intensity = std::optional<double> (RooflinePoint::*)() const;
using Roof = std::optional<double> (Roofline::*)(double) const;

struct Level {
  std::string_view name;
  Intensity intensity;
  Roof roof;
};
constexpr std::array<Level, 2> kLevels = {{{"HBM", &RooflinePoint::hbm_intensity, &Roofline::hbm_roof},
                                           {"L2", &RooflinePoint::l2_intensity, &Roofline::l2_roof}}};

/// Stages whose work does not depend on the schedule.
bool is_common(const std::string& stage) {
  return stage == to_string(Stage::kRouterProject) || stage == to_string(Stage::kRouterSelect) ||
         stage == to_string(Stage::kSharedMlp);
}

/// Whether the point has a place in the figure at some level.
bool drawable(const RooflinePoint& point) {
  return point.stage != to_string(Stage::kLayer) && point.performance() &&
         (point.hbm_intensity() || point.l2_intensity());
}

/// Labels of all layers, and of those that have something to draw, in order.
struct Labels {
  std::vector<std::string> all;
  std::vector<std::string> drawable;
};

Labels labels_of(const Roofline& roofline) {
  Labels labels;
  std::set<std::string_view> seen;
  std::set<std::string_view> seen_drawable;
  for (const RooflinePoint& point : roofline.points) {
    if (seen.insert(point.label).second) {
      labels.all.push_back(point.label);
    }
    if (drawable(point) && seen_drawable.insert(point.label).second) {
      labels.drawable.push_back(point.label);
    }
  }
  return labels;
}

/// Schedules of a layer that have something to draw, in order.
std::vector<std::string> schedules_of(const Roofline& roofline, const std::string& label) {
  std::vector<std::string> schedules;
  for (const RooflinePoint& point : roofline.points) {
    if (point.label == label && drawable(point) &&
        std::ranges::find(schedules, point.schedule) == schedules.end()) {
      schedules.push_back(point.schedule);
    }
  }
  return schedules;
}

/// Intensities that panels of a level span: all points of the layers that are drawn, and a factor around
/// them.
using Span = std::pair<double, double>;

Span span_of(const Roofline& roofline, const Level& level, const std::set<std::string_view>& labels) {
  double low = INFINITY;
  double high = 0;
  for (const RooflinePoint& point : roofline.points) {
    if (const auto intensity = (point.*level.intensity)(); intensity && labels.contains(point.label)) {
      low = std::min(low, *intensity);
      high = std::max(high, *intensity);
    }
  }
  return high > 0 ? std::pair(low / 3, high * 6) : std::pair(0.1, 1000.0);
}

/// The slanted and the flat part of a roof, as a line without points.
FigureSeries roof_series(const Roofline& roofline, const Level& level, const Span& span) {
  FigureSeries series;
  series.points = false;
  series.look = kReferenceLook;
  const auto [low, high] = span;
  constexpr int kSteps = 64;
  for (int i = 0; i <= kSteps; ++i) {
    const double intensity = low * std::pow(high / low, static_cast<double>(i) / kSteps);
    if (const auto value = (roofline.*level.roof)(intensity)) {
      series.x.push_back(intensity);
      series.y.push_back(*value);
    }
  }
  return series;
}

std::vector<FigureFact> point_facts(const Roofline& roofline, const Level& level, const RooflinePoint& point,
                                    double intensity) {
  std::vector<FigureFact> facts = {
      {"schedule", point.schedule},
      {"stage", point.stage},
      {"time", format_seconds(point.time_s)},
      {"performance", format_engineering(*point.performance(), "flop/s")},
      {fmt::format("FLOP per byte, {}", level.name), fmt::format("{:.3g}", intensity)}};
  if (const auto roof = (roofline.*level.roof)(intensity)) {
    facts.push_back(
        {fmt::format("of the {} roof", level.name), format_percent(*point.performance() / *roof)});
  }
  const auto add = [&](const char* name, const std::optional<double>& value,
                       const std::function<std::string(double)>& format) {
    if (value) {
      facts.push_back({name, format(*value)});
    }
  };
  add("FLOP", point.flop, [](double flop) { return format_engineering(flop, "flop"); });
  add("HBM bytes", point.hbm_bytes, format_bytes);
  add("L2 bytes", point.l2_bytes, format_bytes);
  facts.push_back({"layer", point.label});
  facts.push_back({"device", roofline.ceilings.device});
  return facts;
}

FigureSeries stage_series(const Roofline& roofline, const Level& level, const std::string& label,
                          const std::string& schedule, bool common) {
  FigureSeries series;
  series.label = common ? "any schedule" : schedule;
  series.line = false;
  for (const RooflinePoint& point : roofline.points) {
    const auto intensity = (point.*level.intensity)();
    if (point.label != label || point.schedule != schedule || is_common(point.stage) != common ||
        point.stage == to_string(Stage::kLayer) || !intensity || !point.performance()) {
      continue;
    }
    series.x.push_back(*intensity);
    series.y.push_back(*point.performance());
    series.facts.push_back(point_facts(roofline, level, point, *intensity));
    series.tags.push_back(common || point.stage != to_string(Stage::kExperts) ? point.stage : schedule);
  }
  return series;
}

/// More rows of panels than this are no figure any more.
constexpr std::size_t kMaxDrawnLayers = 12;

/// Room that a tag takes on the axes, in decades.
constexpr double kTagWidth = 0.9;
constexpr double kTagHeight = 0.15;
/// From a point to its tag.
constexpr double kTagGap = 0.12;

/// Places the tags of all points of a panel to the right of them, and above where another tag stands already:
/// stages of different schedules lie close together.
void place_tags(std::vector<FigureSeries>& all) {
  struct Tag {
    double x, y;  ///< logarithms
    FigureSeries* series;
    std::size_t index;
  };
  std::vector<Tag> tags;
  for (FigureSeries& series : all) {
    for (std::size_t i = 0; i < series.tags.size(); ++i) {
      tags.push_back({std::log10(series.x[i]) + kTagGap, std::log10(series.y[i]), &series, i});
    }
    series.tag_x.resize(series.tags.size());
    series.tag_y.resize(series.tags.size());
  }
  std::ranges::sort(tags, {}, &Tag::y);
  for (std::size_t t = 0; t < tags.size(); ++t) {
    for (std::size_t below = 0; below < t; ++below) {
      if (std::abs(tags[below].x - tags[t].x) < kTagWidth) {
        tags[t].y = std::max(tags[t].y, tags[below].y + kTagHeight);
      }
    }
    tags[t].series->tag_x[tags[t].index] = std::pow(10, tags[t].x);
    tags[t].series->tag_y[tags[t].index] = std::pow(10, tags[t].y);
  }
}

FigurePanel panel_of(const Roofline& roofline, const Level& level, const Span& span,
                     const std::string& label) {
  FigurePanel panel;
  panel.x_label = fmt::format("{} FLOP per byte from or to {}",
                              roofline.flop == RooflineFlop::kUseful ? "useful" : "executed", level.name);
  panel.y_label = "FLOP/s";
  panel.log_x = panel.log_y = true;
  const auto bandwidth =
      level.name == "HBM" ? roofline.ceilings.hbm_bytes_per_s() : roofline.ceilings.rate(ceiling::kL2Read);
  const auto peak = roofline.ceilings.rate(ceiling::kBf16Matrix);
  panel.title = fmt::format("{}: {}", level.name, label);
  panel.x_label +=
      fmt::format("; measured roofs: {}, {}", bandwidth ? format_engineering(*bandwidth, "B/s") : "none",
                  peak ? format_engineering(*peak, "flop/s") : "none");
  panel.series.push_back(roof_series(roofline, level, span));
  const auto schedules = schedules_of(roofline, label);
  for (const std::string& schedule : schedules) {
    panel.series.push_back(stage_series(roofline, level, label, schedule, false));
  }
  if (!schedules.empty()) {
    auto series = stage_series(roofline, level, label, schedules.front(), true);
    series.look = kReferenceLook;
    panel.series.push_back(std::move(series));
  }
  place_tags(panel.series);
  return panel;
}

/// "31.2 %" of the roof at this point's intensity; without FLOP the bandwidth's part of its ceiling.
TableCell roof_cell(const Roofline& roofline, const RooflinePoint& point, const Level& level,
                    std::optional<double> bytes, std::optional<double> bandwidth) {
  const auto intensity = (point.*level.intensity)();
  if (const auto performance = point.performance(); intensity && performance) {
    const auto roof = (roofline.*level.roof)(*intensity);
    return roof ? percent_cell(*performance / *roof) : TableCell("-");
  }
  return bytes && bandwidth && point.time_s > 0 ? percent_cell(*bytes / point.time_s / *bandwidth)
                                                : TableCell("-");
}

TableCell number(std::optional<double> value) {
  return value ? TableCell(fmt::format("{:.3g}", *value), *value) : TableCell("-");
}

}  // namespace

Figure roofline_figure(const Roofline& roofline) {
  Figure figure;
  figure.title = fmt::format("{}, {}: every stage against the measured ceilings", roofline.ceilings.device,
                             fmt::join(roofline.recorded, "; "));
  figure.columns = static_cast<int>(kLevels.size());
  figure.panel_width = 760;
  figure.plot_height = 430;
  Labels labels = labels_of(roofline);
  const std::size_t all = labels.all.size();
  // Roofs with nothing under them only where there is nothing else.
  const bool counted = !labels.drawable.empty();
  auto& drawn = counted ? labels.drawable : labels.all;
  const char* const which = drawn.size() <= kMaxDrawnLayers ? "those" : "the first";
  drawn.resize(std::min(drawn.size(), kMaxDrawnLayers));
  if (drawn.size() < all) {
    figure.title += fmt::format("; {} of {} layers, {}{}, the table has all", drawn.size(), all, which,
                                counted ? " with counted bytes" : "");
  }
  for (const std::string& label : drawn) {
    for (const Level& level : kLevels) {
      figure.panels.push_back(
          panel_of(roofline, level, span_of(roofline, level, {drawn.begin(), drawn.end()}), label));
    }
  }
  return figure;
}

std::vector<RooflineTable> roofline_tables(const Roofline& roofline) {
  std::vector<RooflineTable> tables;
  for (const RooflinePoint& point : roofline.points) {
    if (tables.empty() || tables.back().label != point.label) {
      tables.push_back({point.label, Table({{"schedule", Align::kLeft, Need::kAlways, true},
                                            {"stage", Align::kLeft, Need::kAlways},
                                            {"time", Align::kRight, Need::kAlways},
                                            {"FLOP/s"},
                                            {"FLOP/B HBM"},
                                            {"of HBM roof"},
                                            {"FLOP/B L2"},
                                            {"of L2 roof"},
                                            {"layer", Align::kLeft, Need::kPrograms}})});
    }
    const auto performance = point.performance();
    tables.back().table.add_row(
        {point.schedule, point.stage, seconds_cell(point.time_s),
         performance ? TableCell(format_engineering(*performance, ""), *performance) : TableCell("-"),
         number(point.hbm_intensity()),
         roof_cell(roofline, point, kLevels[0], point.hbm_bytes, roofline.ceilings.hbm_bytes_per_s()),
         number(point.l2_intensity()),
         roof_cell(roofline, point, kLevels[1], point.l2_bytes, roofline.ceilings.rate(ceiling::kL2Read)),
         point.label});
  }
  return tables;
}

std::string roofline_legend(const Roofline& roofline) {
  return fmt::format(
      "{} FLOP over measured time; bytes are counted. Roof: the smaller of peak and FLOP/B times bandwidth, "
      "as measured; of a stage without FLOP, its bandwidth of the ceiling.\n",
      roofline.flop == RooflineFlop::kUseful ? "useful (analytic)" : "executed (counted)");
}

}  // namespace moescope
