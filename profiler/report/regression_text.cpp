#include "profiler/report/regression_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <ostream>
#include <vector>

#include "core/base/line_text.hpp"
#include "core/layer/stage.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/report/row_facts.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

Mark mark_of(TimeVerdict verdict) {
  switch (verdict) {
    case TimeVerdict::kFaster:
      return Mark::kGood;
    case TimeVerdict::kSlower:
    case TimeVerdict::kLost:
      return Mark::kBad;
    case TimeVerdict::kUnclear:
      return Mark::kWithinSpread;
    case TimeVerdict::kSame:
      break;
  }
  return Mark::kNone;
}

/// What needs a look first.
int urgency(const TimeComparison& time) {
  constexpr std::array kOrder = {TimeVerdict::kLost, TimeVerdict::kSlower, TimeVerdict::kFaster,
                                 TimeVerdict::kUnclear, TimeVerdict::kSame};
  return static_cast<int>(std::ranges::find(kOrder, time.verdict) - kOrder.begin());
}

void add(Table& table, const TimeComparison& time) {
  const ResultRow& row = time.after;
  const bool lost = time.verdict == TimeVerdict::kLost;
  TableCell verdict(to_string(time.verdict));
  verdict.mark = mark_of(time.verdict);
  table.add_row({verdict, short_workload(row.workload), row.system, row.schedule, row.stage,
                 seconds_cell(time.before_s), lost ? TableCell("-") : seconds_cell(*row.value),
                 lost ? TableCell("-") : TableCell(fmt::format("{:.3f}", time.ratio), time.ratio),
                 percent_cell(time.noise_s / time.before_s), short_shape(row), row.l2_state,
                 lost ? row.reason : "", row.repro});
}

std::string names_of(const RegressionReport& report, TimeVerdict verdict) {
  constexpr std::size_t kMost = 3;
  std::vector<std::string> names;
  std::size_t count = 0;
  for (const TimeComparison& time : report.times) {
    if (time.verdict == verdict && ++count <= kMost) {
      const std::string stage =
          time.after.stage == to_string(Stage::kLayer) ? "" : fmt::format(" {}", time.after.stage);
      const std::string what = time.after.schedule == "none" ? time.after.system : time.after.schedule;
      names.push_back(
          fmt::format("{}{} on {}{}", what, stage, short_workload(time.after.workload),
                      verdict == TimeVerdict::kLost ? "" : fmt::format(" ({:.2f}x)", time.ratio)));
    }
  }
  return fmt::format("{}{}", fmt::join(names, ", "),
                     count > kMost ? fmt::format(" and {} more", count - kMost) : "");
}

}  // namespace

std::string recording_line(const std::string& name, std::span<const RecordedRun> runs) {
  const RunHeader& header = runs.back().header;
  return fmt::format("{}: {}, revision {}{}, {}", one_line(name), one_line(header.device),
                     one_line(header.git_revision.substr(0, 10)), header.git_dirty ? " with changes" : "",
                     one_line(header.started_utc.substr(0, 16)));
}

std::string regression_conclusion(const RegressionReport& report, const SideNames& names, double threshold) {
  const std::int64_t compared = std::ssize(report.times);
  if (compared == 0) {
    return fmt::format(
        "nothing to compare: no time is of the same point in both; {} only in {}, {} only in {}\n",
        report.only_before, names.before, report.only_after, names.after);
  }
  std::string text;
  for (const auto& [verdict, word] : {std::pair(TimeVerdict::kSlower, "slower"),
                                      {TimeVerdict::kLost, "lost"},
                                      {TimeVerdict::kFaster, "faster"}}) {
    if (report.count(verdict) > 0) {
      text += fmt::format("{} is {} beyond noise at {} of {} points: {}\n", names.after, word,
                          report.count(verdict), compared, names_of(report, verdict));
    }
  }
  if (text.empty()) {
    const auto unclear = report.count(TimeVerdict::kUnclear);
    text =
        fmt::format("{} is the same beyond noise at every one of {} points{}\n", names.after, compared,
                    unclear > 0 ? fmt::format("; at {} of them noise is all that can be seen", unclear) : "");
  }
  text += fmt::format(
      "{} same, {} faster, {} slower by more than {:g} % and noise, {} unclear, {} lost\n"
      "{} only in {}, {} only in {}\n",
      report.count(TimeVerdict::kSame), report.count(TimeVerdict::kFaster),
      report.count(TimeVerdict::kSlower), 100 * threshold, report.count(TimeVerdict::kUnclear),
      report.count(TimeVerdict::kLost), report.only_before, names.before, report.only_after, names.after);
  if (report.count(TimeVerdict::kUnclear) > 0) {
    text += fmt::format(
        "unclear: more than {:g} % apart, but within the noise of the two; measure both again with more "
        "--min-samples on a quiet machine\n",
        100 * threshold);
  }
  return text;
}

Table regression_table(const RegressionReport& report, bool all) {
  using enum Align;
  Table table({{"verdict", kLeft, Need::kAlways},
               {"workload", kLeft, Need::kAlways},
               {"system", kLeft, Need::kExtra},
               {"schedule", kLeft, Need::kAlways},
               {"stage", kLeft},
               {"before", kRight},
               {"after", kRight, Need::kAlways},
               {"ratio", kRight, Need::kAlways},
               {"noise", kRight},
               {"shape", kLeft, Need::kBelow},
               {"L2", kLeft, Need::kPrograms},
               {"reason", kLeft, Need::kBelow},
               {"repro", kLeft, Need::kPrograms}});
  std::vector<const TimeComparison*> times;
  for (const TimeComparison& time : report.times) {
    if (all || time.verdict != TimeVerdict::kSame) {
      times.push_back(&time);
    }
  }
  std::ranges::stable_sort(times, {}, [](const TimeComparison* time) { return urgency(*time); });
  for (const TimeComparison* time : times) {
    add(table, *time);
  }
  return table;
}

void print_regressions(TableOutput& out, const RegressionReport& report, const SideNames& names,
                       double threshold, bool all) {
  const Table table = regression_table(report, all || !out.for_people());
  if (table.num_rows() > 0 || !out.for_people()) {
    out.show("times", table);
    out.text() << '\n';
  }
  out.text() << regression_conclusion(report, names, threshold);
}

Figure regression_figure(const RegressionReport& report, const SideNames& names, double threshold) {
  constexpr std::size_t kMostNames = 16;
  struct Place {
    std::size_t panel = 0;
    double x = 0;
  };
  std::map<std::string, Place> places;
  Figure figure;
  figure.title = fmt::format("time of {} over time of {}; grey: {:g} % more and less", names.after,
                             names.before, 100 * threshold);
  figure.columns = 1;
  for (const TimeComparison& time : report.times) {
    if (time.verdict == TimeVerdict::kLost) {
      continue;
    }
    const ResultRow& row = time.after;
    const std::string name =
        fmt::format("{} L{} d{} K{}{}", short_workload(row.workload), row.num_tokens, row.hidden_size,
                    row.top_k, row.stage == to_string(Stage::kLayer) ? "" : " " + row.stage);
    auto [place, is_new] = places.try_emplace(name);
    if (is_new) {
      if (figure.panels.empty() || figure.panels.back().x_names.size() == kMostNames) {
        figure.panels.push_back({"", "", "after / before", false, {}});
      }
      place->second = {figure.panels.size() - 1, static_cast<double>(figure.panels.back().x_names.size())};
      figure.panels.back().x_names.push_back(name);
    }
    FigurePanel& panel = figure.panels[place->second.panel];
    auto series = std::ranges::find(panel.series, row.schedule, &FigureSeries::label);
    if (series == panel.series.end()) {
      series = panel.series.insert(series, FigureSeries{row.schedule, {}, {}, false, {}});
    }
    series->x.push_back(place->second.x);
    series->y.push_back(time.ratio);
    series->facts.push_back({{"verdict", std::string(to_string(time.verdict))},
                             {names.before, format_seconds(time.before_s)},
                             {names.after, format_seconds(*row.value)},
                             {"ratio", fmt::format("{:.3f}", time.ratio)},
                             {"noise", format_percent(time.noise_s / time.before_s)},
                             {"schedule", row.schedule},
                             {"system", row.system},
                             {"stage", row.stage},
                             {"workload", row.workload},
                             {"shape", short_shape(row)},
                             {"L2", row.l2_state},
                             {"again", row.repro}});
  }
  for (FigurePanel& panel : figure.panels) {
    const double last = static_cast<double>(panel.x_names.size()) - 0.5;
    for (const double y : {1 / (1 + threshold), 1 + threshold}) {
      FigureSeries bound{"", {-0.5, last}, {y, y}, true, {}, std::string(kReferenceLook)};
      bound.points = false;
      panel.series.push_back(std::move(bound));
    }
  }
  return figure;
}

}  // namespace moescope
