#include "experiments/points/compare_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <ostream>
#include <utility>

#include "core/base/line_text.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/study/system_study.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

bool measured(const ScheduleStudy& point) {
  return point.status == Status::kOk && point.times.find(Stage::kLayer) != nullptr;
}

bool routed(const LayerStudy& study) { return study.skew.num_pairs > 0; }

Table workload_table(const std::vector<LayerStudy>& studies) {
  Table table({{"workload", Align::kLeft},
               {"usage"},
               {"unevenness"},
               {"max/mean"},
               {"effective experts"},
               {"reuse"},
               {"strips/token"},
               {"floor bytes"}});
  for (const LayerStudy& study : studies) {
    const SkewMetrics& skew = study.skew;
    if (!routed(study)) {
      table.add_row({study.workload, "-", "-", "-", "-", "-", "-", "-"});
      continue;
    }
    table.add_row({study.workload, fmt::format("{:.3f}", skew.usage), fmt::format("{:.3f}", skew.unevenness),
                   fmt::format("{:.1f}", skew.max_over_mean), fmt::format("{:.0f}", skew.effective_experts),
                   fmt::format("{:.1f}", skew.reuse), fmt::format("{:.1f}", skew.strips_per_token),
                   format_bytes(static_cast<double>(study.floor_bytes))});
  }
  return table;
}

std::string ratio_text(const std::optional<RatioSummary>& ratio) {
  return ratio ? fmt::format("{:.2f}x", ratio->median) : "-";
}

std::vector<std::string> schedule_cells(const LayerStudy& study, const ScheduleStudy& point) {
  std::string name = point.name();
  if (!measured(point)) {
    return {name, std::string(to_string(point.status)), "-", "-", "-", "-", "-", "-", "-"};
  }
  if (point.is_chosen()) {
    name += fmt::format(" -> {}", to_string(point.ran));
  }
  const StageSamples& layer = *point.times.find(Stage::kLayer);
  const auto experts = expert_samples(point.times);
  const auto bytes = static_cast<double>(expert_bytes(point.cost, MemoryLevel::kL2));
  return {name,
          format_seconds(layer.median_s()),
          format_percent(layer.spread()),
          ratio_text(point.layer_speed_up),
          experts ? format_seconds(experts->median_s()) : "-",
          ratio_text(point.expert_speed_up),
          format_bytes(bytes),
          fmt::format("{:.1f}x", bytes / static_cast<double>(study.floor_bytes)),
          point.error ? fmt::format("{:.1e}", point.error->relative_error) : "-"};
}

/// Skipped schedules stand below the table, with their reason.
Table schedule_table(const std::vector<LayerStudy>& studies) {
  Table table({{"workload", Align::kLeft},
               {"schedule", Align::kLeft},
               {"layer"},
               {"spread"},
               {"speed-up"},
               {"experts"},
               {"speed-up"},
               {"requested bytes"},
               {"over floor"},
               {"error"}});
  for (const LayerStudy& study : studies) {
    table.add_rule();
    std::string workload = study.workload;
    for (const ScheduleStudy& point : study.schedules) {
      if (point.status == Status::kSkipped) {
        continue;
      }
      auto cells = schedule_cells(study, point);
      cells.insert(cells.begin(), std::exchange(workload, ""));
      table.add_row(std::move(cells));
    }
  }
  return table;
}

/// What is to be known of points that did not fail.
std::string notes_text(const std::vector<LayerStudy>& studies) {
  std::vector<std::string> lines;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      std::string line;
      if (point.status == Status::kSkipped) {
        line = fmt::format("{} skipped: {}\n", point.name(), point.reason);
      } else if (point.status == Status::kOk && !point.error) {
        line = fmt::format("{}: {} has no error: {}\n", study.workload, point.name(), point.error_reason);
      }
      if (!line.empty() && std::ranges::find(lines, line) == lines.end()) {
        lines.push_back(std::move(line));
      }
    }
  }
  return fmt::format("{}", fmt::join(lines, ""));
}

bool in_sweep(const LayerStudy& study) { return study.workload.starts_with("zipf"); }

/// `value` of one schedule over the sweep, by rising unevenness.
FigureSeries sweep_series(const std::vector<LayerStudy>& studies, std::size_t schedule,
                          double (*value)(const ScheduleStudy&)) {
  std::vector<std::pair<double, double>> points;
  for (const LayerStudy& study : studies) {
    const ScheduleStudy& point = study.schedules.at(schedule);
    if (in_sweep(study) && measured(point)) {
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
                          double (*value)(const ScheduleStudy&)) {
  const ScheduleStudy& point = study.schedules[schedule];
  FigureSeries series{"", {}, {}, false, {}, point.name()};
  series.marker = study.workload;
  if (measured(point)) {
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
    if (measured(point)) {
      series.x.push_back(study.skew.unevenness);
      series.y.push_back(value(point));
    }
  }
  return series;
}

FigurePanel panel(const std::vector<LayerStudy>& studies, std::string title, std::string y_label,
                  double (*value)(const ScheduleStudy&)) {
  FigurePanel result{
      std::move(title), "unevenness of expert load: KL to uniform (nats)", std::move(y_label), true, {}};
  if (studies.empty()) {
    return result;
  }
  for (std::size_t s = 0; s < studies.front().schedules.size(); ++s) {
    result.series.push_back(sweep_series(studies, s, value));
  }
  for (const LayerStudy& study : studies) {
    if (in_sweep(study)) {
      continue;
    }
    result.series.push_back(legend_series(study, value));
    for (std::size_t s = 0; s < study.schedules.size(); ++s) {
      result.series.push_back(point_series(study, s, value));
    }
  }
  return result;
}

}  // namespace

void print_comparison(std::ostream& out, const std::vector<LayerStudy>& studies, const std::string& device) {
  if (studies.empty()) {
    return;
  }
  const LayerStudy& first = studies.front();
  out << fmt::format("{}, {}, {} on {}, L2 {}, seed {}\n\n", first.shape.label(),
                     to_string(first.shape.dtype), first.backend, device, to_string(first.l2), first.seed);
  out << workload_table(studies).text() << '\n' << schedule_table(studies).text() << '\n';
  out << "times: median over alternating samples, spread (max - min) / median; speed-up over "
         "token_centric, "
         "round "
         "by round\nrequested bytes: analytic, what the expert stage loads and stores; floor: active "
         "experts, "
         "tokens and output once\nerror: relative, against the fp64 oracle on sampled tokens\n";
  out << notes_text(studies);
}

Figure skew_figure(const std::vector<LayerStudy>& studies, const std::string& device) {
  Figure figure;
  figure.title = "no data";
  if (!studies.empty()) {
    const LayerStudy& first = studies.front();
    figure.title =
        fmt::format("{} (grid {}x{}), {}, {}, gates {}, L2 {}, seed {}, {}, {}", first.shape.label(),
                    first.shape.grid_rows, first.shape.grid_cols, to_string(first.shape.dtype),
                    to_string(first.shape.activation), to_string(first.shape.gate_mode), to_string(first.l2),
                    first.seed, first.backend, device);
  }
  figure.panels.push_back(
      panel(studies, "measured time of the layer", "seconds (median)",
            [](const ScheduleStudy& p) { return p.times.find(Stage::kLayer)->median_s(); }));
  figure.panels.push_back(panel(
      studies, "analytic bytes requested by the expert stage", "bytes",
      [](const ScheduleStudy& p) { return static_cast<double>(expert_bytes(p.cost, MemoryLevel::kL2)); }));
  return figure;
}

std::string failures_text(const std::vector<LayerStudy>& studies) {
  std::vector<std::string> lines;
  std::size_t points = 0;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      ++points;
      if (point.status == Status::kFailed) {
        lines.push_back(fmt::format("failed: {}: {}: {}\n",
                                    one_line(study.baseline ? study_label(study) : study.workload),
                                    point.name(), one_line(point.reason)));
      }
    }
  }
  return lines.empty()
             ? ""
             : fmt::format("{} of {} points failed\n{}", lines.size(), points, fmt::join(lines, ""));
}

ExitCode outcome(const std::vector<LayerStudy>& studies) {
  ExitCode failure = ExitCode::kOk;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      if (measured(point)) {
        return ExitCode::kOk;
      }
      if (failure == ExitCode::kOk && point.status == Status::kFailed) {
        failure = point.code;
      }
    }
  }
  return failure;
}

}  // namespace moescope
