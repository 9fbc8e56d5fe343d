// Profiles for the terminal.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <ostream>
#include <utility>

#include "profiler/limits/layer_profile.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

using Format = std::function<TableCell(double)>;

/// A measured value; "-" when it was not asked for or cannot be had.
TableCell cell(const StageMetrics* metrics, std::initializer_list<std::string_view> names,
               const Format& format) {
  double sum = 0;
  for (const std::string_view name : names) {
    const auto value = metrics == nullptr ? std::nullopt : metrics->find(name);
    if (!value) {
      return "-";
    }
    sum += *value;
  }
  return format(sum);
}

TableCell limit_cell(const std::vector<Limit>& limits, std::string_view resource) {
  const auto found = std::ranges::find(limits, resource, &Limit::resource);
  return found == limits.end() ? TableCell("-") : percent_cell(found->fraction);
}

TableCell flop_cell(double flop) { return {format_engineering(flop, "flop"), flop}; }

struct Column {
  TableColumn head;
  std::vector<TableCell> cells;
};

/// Columns without any value are left out: those of metrics that were not asked for or are not to be had.
Table table_of(std::vector<Column> columns) {
  std::erase_if(columns, [](const Column& column) {
    return std::ranges::all_of(column.cells, [](const TableCell& cell) { return cell.text == "-"; });
  });
  std::vector<TableColumn> heads;
  for (const Column& column : columns) {
    heads.push_back(column.head);
  }
  Table table(heads);
  const std::size_t rows = columns.front().cells.size();
  for (std::size_t row = 0; row < rows; ++row) {
    if (row + 1 == rows) {
      table.add_rule();  // before the layer
    }
    std::vector<TableCell> cells;
    for (const Column& column : columns) {
      cells.push_back(column.cells[row]);
    }
    table.add_row(std::move(cells));
  }
  return table;
}

Table stage_table(const LayerProfile& profile, std::size_t schedule) {
  using enum Need;
  std::vector<Column> columns = {{{"stage", Align::kLeft}, {}}};
  for (const auto& [title, need] :
       std::initializer_list<std::pair<const char*, Need>>{{"time", kAlways},
                                                           {"HBM floor", kUsual},
                                                           {"HBM read", kUsual},
                                                           {"HBM write", kUsual},
                                                           {"L2 read", kUsual},
                                                           {"L2 write", kExtra},
                                                           {"L2 red+atom", kExtra},
                                                           {"shared", kExtra},
                                                           {"tensor pipe", kExtra},
                                                           {"FLOP run", kExtra},
                                                           {"useful FLOP", kUsual},
                                                           {"of HBM", kAlways},
                                                           {"of L2", kAlways}}) {
    columns.push_back({{title, Align::kRight, need}, {}});
  }
  columns.push_back({{"bound by", Align::kLeft, kAlways}, {}});
  columns.push_back({{"schedule", Align::kLeft, kPrograms}, {}});
  columns.push_back({{"workload", Align::kLeft, kPrograms}, {}});
  const ScheduleStudy& point = profile.study.schedules[schedule];
  for (const StageSamples& samples : point.times.stages) {
    const Stage stage = samples.stage;
    const StageMetrics* metrics = profile.counted[schedule].find(stage);
    const auto limits = profile.limits(schedule, stage);
    const auto floor = floor_bytes_of(point.cost, stage);
    const std::vector<TableCell> cells = {
        std::string(to_string(stage)),
        seconds_cell(samples.median_s()),
        floor ? bytes_cell(*floor) : TableCell("-"),
        cell(metrics, {"hbm_read_bytes"}, bytes_cell),
        cell(metrics, {"hbm_write_bytes"}, bytes_cell),
        cell(metrics, {"l2_read_bytes"}, bytes_cell),
        cell(metrics, {"l2_write_bytes"}, bytes_cell),
        cell(metrics, {"l2_reduction_bytes", "l2_atomic_bytes"}, bytes_cell),
        cell(metrics, {"shared_bytes"}, bytes_cell),
        cell(metrics, {"tensor_utilisation"}, percent_cell),
        cell(metrics, {"tensor_flop", "cuda_core_flop"}, flop_cell),
        flop_cell(useful_flop_of(point.cost, stage)),
        limit_cell(limits, "hbm"),
        limit_cell(limits, "l2"),
        bound_text(limits),
        to_string(point.options),
        profile.study.workload};
    for (std::size_t c = 0; c < cells.size(); ++c) {
      columns[c].cells.push_back(cells[c]);
    }
  }
  return table_of(std::move(columns));
}

/// Asked for and not had, under any schedule; each line once.
std::string unavailable_text(const LayerProfile& profile) {
  std::vector<std::string> lines;
  const auto add = [&](std::string line) {
    if (std::ranges::find(lines, line) == lines.end()) {
      lines.push_back(std::move(line));
    }
  };
  for (std::size_t s = 0; s < profile.counted.size(); ++s) {
    const CountedLayer& counted = profile.counted[s];
    if (counted.stages.empty() && profile.study.schedules[s].status == Status::kOk) {
      add(fmt::format("no counters ({}): {}\n", counted.source, counted.reason));
    }
    for (const StageMetrics& stage : counted.stages) {
      for (const MetricValue& value : stage.values) {
        if (!value.value) {
          add(fmt::format("{} unavailable: {}\n", value.name, value.reason));
        }
      }
    }
  }
  return fmt::format("{}", fmt::join(lines, ""));
}

std::string sum_text(const CountedLayer& counted) {
  return counted.hbm ? fmt::format("HBM bytes: {}\n", stage_sum_text(*counted.hbm)) : "";
}

}  // namespace

std::string profile_legend() {
  return fmt::format(
      "time: median of runs without counters. HBM floor and useful FLOP: analytic. The rest: counters of "
      "other "
      "runs; of HBM, of L2: of the measured ceilings. bound by: the resource nearest its ceiling, from "
      "{:.0f} % "
      "on; below, no unit is near its ceiling and the time goes into waiting (latency). The layer's "
      "counters "
      "are those of one range over all stages, not their sum.",
      100 * kBoundFraction);
}

void print_profile(TableOutput& out, const LayerProfile& profile, const std::string& device) {
  const LayerStudy& study = profile.study;
  out.text() << fmt::format("{}  {}  {}  seed {}  L2 {}\n{} on {}\n", study.workload, study_label(study),
                            to_string(study.shape.dtype), study.seed, to_string(study.sampling.l2),
                            study.backend, device);
  for (std::size_t s = 0; s < study.schedules.size(); ++s) {
    const ScheduleStudy& point = study.schedules[s];
    out.text() << fmt::format("\n{}", to_string(point.options));
    if (point.status != Status::kOk) {
      out.text() << fmt::format(" {}: {}\n", to_string(point.status), point.reason);
      continue;
    }
    if (point.is_chosen()) {
      out.text() << fmt::format(" -> {}", to_string(point.ran));
    }
    out.text() << '\n';
    out.show(fmt::format("{} {}", study.workload, to_string(point.options)), stage_table(profile, s));
    out.text() << sum_text(profile.counted[s]);
  }
  if (const std::string missing = unavailable_text(profile); !missing.empty()) {
    out.text() << '\n' << missing;
  }
}

}  // namespace moescope
