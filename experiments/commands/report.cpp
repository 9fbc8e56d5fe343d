#include <fmt/format.h>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <utility>

#include "experiments/options/command.hpp"
#include "profiler/report/html_report.hpp"
#include "profiler/report/recorded_points.hpp"
#include "profiler/report/report_figures.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// More figures than this nobody looks at; the tables have everything.
constexpr std::size_t kMaxFigures = 24;

/// A directory that is gone with everything in it when the report is done.
class Scratch {
 public:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "moescope_report_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      throw FileError(name, "", "cannot be created");
    }
    path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Scratch(Scratch&&) = delete;
  Scratch& operator=(Scratch&&) = delete;

  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::vector<ReportFigure> draw_figures(const std::vector<RecordedRun>& runs) {
  const Scratch scratch;
  std::vector<ReportFigure> drawn;
  for (Figure& figure : report_figures(recorded_layers(runs), kMaxFigures)) {
    // The page has it as a caption, whole: in the figure a long one would be cut.
    const std::string title = std::exchange(figure.title, "");
    const FigureResult result = draw_figure(figure, scratch.path(), fmt::format("figure{}", drawn.size()));
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
  std::vector<RecordedRun> runs;
  for (const std::string& file : files) {
    auto more = read_rows(file);
    std::move(more.begin(), more.end(), std::back_inserter(runs));
  }
  const auto figures = draw_figures(runs);
  const std::string html =
      html_report(fmt::format("moescope: {}", fs::path(output).stem().string()), runs, figures);
  std::ofstream stream(output, std::ios::binary);
  stream << html << std::flush;
  if (!stream) {
    throw FileError(output, "", "cannot be written");
  }
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
                       "moescope report results/h100/*.jsonl* --output h100.html"}));
  sub.add_option("rows", options->files, "files of rows, rows.jsonl of any run").required().type_name("ROWS");
  sub.add_option("--output", options->output, "the page (default report.html); an older one is replaced")
      .type_name("FILE");
  return {sub, [options] { return report(options->files, options->output); }};
}

}  // namespace moescope
