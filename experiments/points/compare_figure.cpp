#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "experiments/points/compare_report.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/study/fastest.hpp"

namespace moescope {
namespace {

using Studies = std::span<const LayerStudy>;

bool in_sweep(const LayerStudy& study) { return study.workload.starts_with("zipf"); }

/// `value` of one schedule over the sweep, by rising unevenness.
FigureSeries sweep_series(Studies studies, std::size_t schedule, double (*value)(const ScheduleStudy&)) {
  std::vector<std::pair<double, double>> points;
  for (const LayerStudy& study : studies) {
    const ScheduleStudy& point = study.schedules.at(schedule);
    if (in_sweep(study) && is_measured(point)) {
      points.emplace_back(study.skew.unevenness, value(point));
    }
  }
  std::ranges::sort(points);
  FigureSeries series;
  series.label = studies.front().schedules[schedule].name();
  for (const auto& [x, y] : points) {
    series.x.push_back(x);
    series.y.push_back(y);
  }
  return series;
}

/// One workload beside the sweep under one schedule: a point in the schedule's colour, in the workload's
/// shape.
FigureSeries point_series(const LayerStudy& study, std::size_t schedule,
                          double (*value)(const ScheduleStudy&), bool in_legend) {
  const ScheduleStudy& point = study.schedules[schedule];
  FigureSeries series{in_legend ? point.name() : "", {}, {}, false, {}, point.name()};
  series.marker = study.workload;
  if (is_measured(point)) {
    series.x.push_back(study.skew.unevenness);
    series.y.push_back(value(point));
  }
  return series;
}

/// All points of one workload beside the sweep, for the legend: in grey, below the coloured ones.
FigureSeries legend_series(const LayerStudy& study, double (*value)(const ScheduleStudy&)) {
  FigureSeries series{short_workload(study.workload), {}, {}, false, {}, std::string(kReferenceLook)};
  series.marker = study.workload;
  for (const ScheduleStudy& point : study.schedules) {
    if (is_measured(point)) {
      series.x.push_back(study.skew.unevenness);
      series.y.push_back(value(point));
    }
  }
  return series;
}

FigurePanel panel(Studies studies, std::string title, std::string y_label,
                  double (*value)(const ScheduleStudy&)) {
  FigurePanel result{
      std::move(title), "unevenness of expert load: KL to uniform (nats)", std::move(y_label), true, {}};
  if (studies.empty()) {
    return result;
  }
  for (std::size_t s = 0; s < studies.front().schedules.size(); ++s) {
    result.series.push_back(sweep_series(studies, s, value));
  }
  const bool swept = std::ranges::any_of(studies, in_sweep);
  for (const LayerStudy& study : studies) {
    if (in_sweep(study)) {
      continue;
    }
    result.series.push_back(legend_series(study, value));
    for (std::size_t s = 0; s < study.schedules.size(); ++s) {
      result.series.push_back(point_series(study, s, value, !swept && &study == &studies.front()));
    }
  }
  return result;
}

}  // namespace

Figure skew_figure(const std::vector<LayerStudy>& studies, const std::string& device) {
  Figure figure;
  figure.title = "no data";
  figure.columns = 2;
  const auto groups = by_shape(studies);
  if (!studies.empty()) {
    const LayerStudy& first = studies.front();
    figure.title = fmt::format("{}{}, {}, gates {}, L2 {}, seed {}, {}, {}",
                               first.save ? backward_words(first) + ", " : "",
                               to_string(first.shape.dtype), to_string(first.shape.activation),
                               to_string(first.shape.gate_mode), to_string(first.sampling.l2), first.seed,
                               first.backend, device);
  }
  for (const Studies group : groups) {
    const LayerShape& shape = group.front().shape;
    const std::string layer = fmt::format("{} (grid {}x{})", shape.label(), shape.grid_rows, shape.grid_cols);
    figure.panels.push_back(
        panel(group, layer + ": measured time", "seconds (median)",
              [](const ScheduleStudy& p) { return p.times.find(Stage::kLayer)->median_s(); }));
    const auto on_ranks = [](const ScheduleStudy& schedule) { return schedule.options.ranks.several(); };
    if (std::ranges::any_of(group.front().schedules, on_ranks)) {
      continue;  // no bytes of one device
    }
    figure.panels.push_back(panel(
        group, layer + ": bytes requested by the experts, analytic", "bytes",
        [](const ScheduleStudy& p) { return static_cast<double>(expert_bytes(p.cost, MemoryLevel::kL2)); }));
  }
  return figure;
}

}  // namespace moescope
