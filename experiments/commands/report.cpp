#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>

#include "core/base/utf8.hpp"
#include "core/files/output_file.hpp"
#include "experiments/options/command.hpp"
#include "experiments/points/sweep_points.hpp"
#include "profiler/page/html_report.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

struct ReportOptions {
  std::vector<std::string> files;
  std::string output = "report.html";
  std::string baseline;
  std::string threshold = "5%";
  bool stages = false;
  bool any_device = false;
  std::string chart_js;
};

std::vector<RecordedRun> read_all(const std::vector<std::string>& files) {
  std::vector<RecordedRun> runs;
  for (const std::string& file : files) {
    auto more = read_rows(file);
    std::move(more.begin(), more.end(), std::back_inserter(runs));
  }
  return runs;
}

std::optional<ReportBaseline> baseline_of(const ReportOptions& options,
                                          const std::vector<RecordedRun>& runs) {
  if (options.baseline.empty()) {
    return std::nullopt;
  }
  const TimeRules rules{.threshold = parse_threshold(options.threshold),
                        .layers_alone = !options.stages,
                        .any_device = options.any_device};
  const auto before = read_rows(options.baseline);
  const std::string name =
      options.files.size() == 1 ? options.files.front() : fmt::format("{} files", options.files.size());
  return ReportBaseline{recording_line(options.baseline, before), recording_line(name, runs), rules.threshold,
                        compare_times(before, runs, rules)};
}

ExitCode report(const ReportOptions& options) {
  std::vector<fs::path> inputs;
  std::ranges::transform(options.files, std::back_inserter(inputs), rows_file);
  if (!options.baseline.empty()) {
    inputs.push_back(rows_file(options.baseline));
  }
  if (!options.chart_js.empty()) {
    inputs.emplace_back(options.chart_js);
  }
  const OutputFile page("output", options.output, inputs);
  const PlottingLibrary library =
      options.chart_js.empty() ? find_plotting_library(plotting_library_files(std::getenv("XDG_DATA_DIRS")))
                               : read_plotting_library(options.chart_js);
  const auto runs = read_all(options.files);
  const auto baseline = baseline_of(options, runs);
  const ReportPage made = html_report(fmt::format("moescope: {}", valid_utf8(page.path().stem().string())),
                                      runs, library, baseline ? &*baseline : nullptr);
  page.write(made.html);
  if (baseline) {
    std::cout << regression_conclusion(baseline->report, {"A", "B"}, baseline->threshold);
  }
  std::cout << fmt::format("report: {} ({} run{}, {} figure{})\n", options.output, runs.size(),
                           runs.size() == 1 ? "" : "s", made.figures, made.figures == 1 ? "" : "s");
  if (!library.reason.empty()) {
    std::cout << fmt::format("figures: none: {}\n", library.reason);
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_report(Cli app, const Invocation&) {
  auto options = std::make_shared<ReportOptions>();
  const Cli sub = app.add_subcommand(
      "report", "one HTML page of recorded runs to explore: tables and figures, no network needed");
  sub.footer(
      examples({"moescope report results/skew-small-cpu/rows.jsonl",
                "moescope report results/h200/*.jsonl* --output h200.html",
                "moescope report results/after --baseline results/before --output what-changed.html"}) +
      "\n\nOn the page tables sort and filter; a point of a figure shows the row behind it. Figures "
      "are drawn by Chart.js, which is put into the page: libjs-chart.js of Debian is found by itself.");
  sub.add_option("rows", options->files, "rows.jsonl of any run, or the run's folder")
      .required()
      .type_name("ROWS");
  sub.add_option("--output", options->output, "the page (default report.html); an older one is replaced")
      .type_name("FILE");
  sub.add_option("--baseline", options->baseline,
                 "rows, or a run's folder: what changed since, as `moescope diff` says it")
      .type_name("ROWS");
  sub.add_option("--threshold", options->threshold,
                 "with --baseline: share by which a time may differ (default 5%)")
      .type_name("SHARE");
  sub.add_flag("--stages", options->stages, "with --baseline: every stage, not the layers' times alone");
  sub.add_flag("--any-device", options->any_device,
               "with --baseline: also when the recordings are of different devices");
  sub.add_option("--chart-js", options->chart_js,
                 "Chart.js 3 or 4 as one script (default: javascript/chart.js/ in $XDG_DATA_DIRS)")
      .type_name("FILE");
  return {sub, [options] { return report(*options); }};
}

}  // namespace moescope
