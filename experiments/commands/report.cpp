#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <utility>

#include "core/base/utf8.hpp"
#include "core/files/output_file.hpp"
#include "core/files/output_folder.hpp"
#include "experiments/options/command.hpp"
#include "profiler/report/html_report.hpp"
#include "profiler/report/recorded_points.hpp"
#include "profiler/report/report_figures.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// More figures than this nobody looks at; the tables have everything.
constexpr std::size_t kMaxFigures = 24;

std::vector<ReportFigure> draw_figures(const std::vector<RecordedRun>& runs, const fs::path& scratch) {
  std::vector<ReportFigure> drawn;
  for (Figure& figure : report_figures(recorded_layers(runs), kMaxFigures)) {
    // The page has it as a caption and in its contents.
    const std::string title =
        fmt::format("time over {}: {}", figure.panels.front().x_label, std::exchange(figure.title, ""));
    const FigureResult result = draw_figure(figure, scratch, fmt::format("figure{}", drawn.size()));
    ReportFigure& report = drawn.emplace_back();
    report.title = title;
    report.reason = result.reason;
    if (result.status == Status::kOk) {
      std::ifstream stream(result.image, std::ios::binary);
      report.svg.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
  }
  return drawn;
}

ExitCode report(const std::vector<std::string>& files, const std::string& output) {
  const OutputFile page("output", output, std::vector<fs::path>(files.begin(), files.end()));
  const ScratchFolder scratch;
  std::vector<RecordedRun> runs;
  for (const std::string& file : files) {
    auto more = read_rows(file);
    std::move(more.begin(), more.end(), std::back_inserter(runs));
  }
  const auto figures = draw_figures(runs, scratch.path());
  const std::string html =
      html_report(fmt::format("moescope: {}", valid_utf8(page.path().stem().string())), runs, figures);
  page.write(html);
  std::cout << fmt::format("report: {} ({} runs, {} figures)\n", output, runs.size(), figures.size());
  return ExitCode::kOk;
}

}  // namespace

Command add_report(Cli app, const Invocation&) {
  struct Options {
    std::vector<std::string> files;
    std::string output = "report.html";
  };
  auto options = std::make_shared<Options>();
  const Cli sub =
      app.add_subcommand("report", "one HTML page of recorded runs: tables and figures, no network needed");
  sub.footer(examples({"moescope report results/skew-small-cpu/rows.jsonl",
                       "moescope report results/h200/*.jsonl* --output h200.html"}));
  sub.add_option("rows", options->files, "files of rows, rows.jsonl of any run").required().type_name("ROWS");
  sub.add_option("--output", options->output, "the page (default report.html); an older one is replaced")
      .type_name("FILE");
  return {sub, [options] { return report(options->files, options->output); }};
}

}  // namespace moescope
