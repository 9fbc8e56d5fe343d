#include "profiler/simulator/sim_validation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

/// Philox stream of the draw; other uses of one seed have others.
constexpr std::uint32_t kDrawStream = 0x7d7a;

template <class T>
std::set<std::string> distinct(std::span<const Prediction> predictions, const T& name) {
  std::set<std::string> names;
  for (const Prediction& one : predictions) {
    names.insert(name(one));
  }
  return names;
}

}  // namespace

double Prediction::error() const { return std::abs(predicted - measured) / measured; }

std::string Prediction::point() const {
  return fmt::format("{} {} seed {} {}", shape, workload, seed, schedule);
}

std::string_view to_string(HoldOut what) { return what == HoldOut::kPoints ? "points" : "shapes"; }

HoldOut parse_hold_out(std::string_view text) {
  for (const HoldOut what : {HoldOut::kPoints, HoldOut::kShapes}) {
    if (text == to_string(what)) {
      return what;
    }
  }
  throw InvalidArgument("hold_out", text, "must be points or shapes");
}

void draw_held_out(std::span<Prediction> predictions, HoldOut what, std::uint64_t seed) {
  constexpr std::size_t kFewestShapes = 3;
  std::map<std::string, std::set<std::string>> groups;  // what is drawn, and the points in it
  for (const Prediction& one : predictions) {
    groups[what == HoldOut::kShapes ? one.shape : one.point()].insert(one.point());
  }
  if (what == HoldOut::kShapes && groups.size() < kFewestShapes) {
    throw InvalidArgument("hold_out", to_string(what),
                          fmt::format("needs rows of {} shapes, there are {}", kFewestShapes, groups.size()));
  }
  std::vector<std::string> order;
  for (const auto& group : groups) {
    order.push_back(group.first);
  }
  const Philox random(seed, kDrawStream);
  for (std::size_t i = order.size(); i > 1; --i) {  // Fisher and Yates
    std::swap(order[i - 1], order[random.bits(i) % i]);
  }
  const auto name_of_point = [](const Prediction& one) { return one.point(); };
  const std::size_t wanted = (distinct(predictions, name_of_point).size() + 2) / 3;
  std::set<std::string> drawn;
  for (std::size_t i = 0; drawn.size() < wanted; ++i) {
    drawn.merge(groups[order[i]]);
  }
  for (Prediction& one : predictions) {
    one.held_out = drawn.contains(one.point());
  }
}

Calibration fit_calibration(std::span<const Prediction> predictions, std::string device, std::string source,
                            std::optional<SourcedConstants> constants) {
  std::map<std::pair<std::string, std::string>, std::vector<FitPoint>> points;
  for (const Prediction& one : predictions) {
    if (one.metric == "time_s" && !one.held_out && one.bound_s > 0) {
      points[{one.kernel, one.stage}].push_back({one.bound_s, one.measured});
    }
  }
  Calibration calibration;
  calibration.device = std::move(device);
  calibration.source = std::move(source);
  calibration.constants = std::move(constants);
  for (const auto& [name, of_stage] : points) {
    calibration.fits.push_back(fit_stage(name.first, name.second, of_stage));
  }
  return calibration;
}

ErrorSummary summarise_errors(std::span<const Prediction> predictions) {
  ErrorSummary summary;
  if (predictions.empty()) {
    return summary;
  }
  std::vector<double> errors;
  double off = 0;
  double measured = 0;
  for (const Prediction& one : predictions) {
    errors.push_back(one.error());
    off += std::abs(one.predicted - one.measured);
    measured += one.measured;
  }
  std::ranges::sort(errors);
  const std::size_t count = errors.size();
  summary.count = static_cast<std::int64_t>(count);
  summary.median = (errors[(count - 1) / 2] + errors[count / 2]) / 2;
  summary.p90 = errors[static_cast<std::size_t>(std::ceil(0.9 * static_cast<double>(count))) - 1];
  summary.worst = errors.back();
  summary.weighted = off / measured;
  return summary;
}

Table make_error_table() {
  return Table({{"metric", Align::kLeft, Need::kAlways, true},
                {"of", Align::kLeft, Need::kAlways},
                {"held out"},
                {"median"},
                {"90 %"},
                {"worst"},
                {"by size"},
                {"others"},
                {"their median"},
                {"their 90 %"},
                {"their worst"},
                {"their by size"}});
}

void add_error_rows(Table& table, std::span<const Prediction> predictions, std::string_view metric,
                    const std::function<std::string(const Prediction&)>& group) {
  std::map<std::string, std::array<std::vector<Prediction>, 2>> groups;
  for (const Prediction& one : predictions) {
    if (one.metric == metric) {
      groups[group(one)][one.held_out ? 0 : 1].push_back(one);
    }
  }
  table.add_rule();
  for (const auto& [of, both] : groups) {
    std::vector<TableCell> cells = {metric, of};
    for (const std::vector<Prediction>& part : both) {
      const ErrorSummary summary = summarise_errors(part);
      cells.push_back(count_cell(summary.count));
      for (const double value : {summary.median, summary.p90, summary.worst, summary.weighted}) {
        cells.push_back(summary.count == 0 ? TableCell("-") : percent_cell(value));
      }
    }
    table.add_row(std::move(cells));
  }
}

std::string target_text(std::span<const Prediction> predictions) {
  struct Target {
    const char* metric;
    const char* name;
    double most;
    double ErrorSummary::*value;
  };
  constexpr std::array kTargets = {Target{"time_s", "median", 0.10, &ErrorSummary::median},
                                   Target{"time_s", "90th percentile", 0.20, &ErrorSummary::p90},
                                   Target{"hbm_bytes", "median", 0.05, &ErrorSummary::median},
                                   Target{"hbm_bytes", "worst", 0.15, &ErrorSummary::worst}};
  std::vector<std::string> words;
  for (const Target& target : kTargets) {
    std::vector<Prediction> held_out;
    std::ranges::copy_if(predictions, std::back_inserter(held_out),
                         [&](const Prediction& one) { return one.held_out && one.metric == target.metric; });
    if (held_out.empty()) {
      continue;
    }
    const double value = summarise_errors(held_out).*target.value;
    words.push_back(
        fmt::format("{} {} {} ({} {})", target.metric, target.name, format_percent(value),
                    value <= target.most ? "target met:" : "target missed:", format_percent(target.most)));
  }
  return fmt::format("held out: {}", fmt::join(words, ", "));
}

std::vector<std::string> outliers(std::span<const Prediction> predictions, std::string_view metric,
                                  std::size_t count) {
  std::vector<const Prediction*> sorted;
  for (const Prediction& one : predictions) {
    if (one.metric == metric) {
      sorted.push_back(&one);
    }
  }
  std::ranges::stable_sort(sorted, std::greater<>(), &Prediction::error);
  sorted.resize(std::min(sorted.size(), count));
  std::vector<std::string> lines;
  for (const Prediction* one : sorted) {
    lines.push_back(fmt::format("{}: {} {}: predicted {:.4g}, measured {:.4g} ({}){}", one->metric,
                                one->point(), one->stage, one->predicted, one->measured,
                                format_percent(one->error()), one->held_out ? ", held out" : ""));
  }
  return lines;
}

Figure validation_figure(std::span<const Prediction> predictions, const std::string& title) {
  Figure figure;
  figure.title = title;
  const auto schedules = distinct(predictions, [](const Prediction& one) { return one.schedule; });
  for (const std::string& metric : distinct(predictions, [](const Prediction& one) { return one.metric; })) {
    FigurePanel panel{metric + ": predicted / measured", "log10 of the measurement", "ratio", true, {}};
    for (const std::string& schedule : schedules) {
      FigureSeries series;
      series.label = schedule;
      series.line = false;
      for (const Prediction& one : predictions) {
        if (one.metric == metric && one.schedule == schedule) {
          series.x.push_back(std::log10(one.measured));
          series.y.push_back(one.predicted / one.measured);
        }
      }
      panel.series.push_back(std::move(series));
    }
    figure.panels.push_back(std::move(panel));
  }
  return figure;
}

}  // namespace moescope
