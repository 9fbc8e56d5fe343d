#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "core/base/command_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/results/experiment.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/points/sweep_model.hpp"
#include "experiments/points/sweep_points.hpp"
#include "experiments/points/sweep_study.hpp"
#include "experiments/points/sweep_summary.hpp"
#include "profiler/report/phase_diagram.hpp"
#include "profiler/report/regression_text.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

struct SweepOptions {
  CommonOptions machine;
  SimulatorOptions simulator;  ///< for --backend model
  std::string file;
  std::string shard = "1/1";
  std::optional<std::int64_t> draw_seed;
  bool dry_run = false;
  std::string baseline;
  std::string threshold = "5%";
  bool phase_diagram = false;

  bool modelled() const { return machine.backend == kModelBackend; }
};

constexpr const char* kPhaseDiagram = "phase-diagram";

/// A backend that measures points, or the simulator.
class PointRunner {
 public:
  explicit PointRunner(const SweepOptions& options) {
    if (options.modelled()) {
      model_.emplace(options.simulator);
    }
  }

  /// Throws InvalidArgument and FileError.
  void plan(PlannedPoint& planned) {
    if (model_) {
      model_->plan(planned);
    } else if (!planned.point.device.empty()) {
      throw InvalidArgument("device", planned.point.device, "is for --backend model");
    }
  }
  /// Opens what the points run on; header of the run.
  RunHeader start(const SweepOptions& options, const Invocation& invocation) {
    backend_ = make_backend(model_ ? "cpu" : options.machine.backend);
    RunHeader header = run_header(invocation, *backend_);
    if (model_) {
      header.device = modelled_header({});
    } else {
      study_.emplace(*backend_);
    }
    return header;
  }
  PointResult run(const PlannedPoint& planned, const StudyProgress& progress) {
    return model_ ? model_->simulate(planned, progress) : study_->measure(planned, progress);
  }

 private:
  std::unique_ptr<MoeBackend> backend_;
  std::optional<PlannedStudy> study_;
  std::optional<PlannedModel> model_;
};

void require_known_metrics(const Experiment& experiment, bool modelled) {
  std::vector<std::string_view> known(study_metrics().begin(), study_metrics().end());
  for (const std::string_view metric : modelled ? model_metrics() : std::span<const std::string_view>()) {
    if (std::ranges::find(known, metric) == known.end()) {
      known.push_back(metric);
    }
  }
  for (const std::string& metric : experiment.metrics) {
    if (std::ranges::find(known, metric) == known.end()) {
      throw InvalidArgument("metrics", metric, fmt::format("must be one of {}", fmt::join(known, ", ")));
    }
  }
}

/// Values that cannot work on any machine end the sweep here, before anything is written.
std::vector<PlannedPoint> plan_points(const Experiment& experiment, const SweepOptions& options,
                                      PointRunner& runner) {
  const Shard shard = parse_shard(options.shard);
  std::vector<PlannedPoint> planned;
  for (std::size_t p = 0; p < experiment.points.size(); ++p) {
    if (!shard.has(p)) {
      continue;
    }
    runner.plan(planned.emplace_back(plan_point(experiment, experiment.points[p], options.machine)));
  }
  return planned;
}

std::filesystem::path output_directory(const Experiment& experiment, const SweepOptions& options) {
  if (!options.machine.output.empty()) {
    return options.machine.output;
  }
  std::string name = fmt::format("{}-{}", experiment.name, options.machine.backend);
  if (const Shard shard = parse_shard(options.shard); shard.count > 1) {
    name += fmt::format("-{}-of-{}", shard.index, shard.count);
  }
  return std::filesystem::path("results") / name;
}

/// Rows of the metrics asked for, with the command that gives them again.
std::vector<ResultRow> rows_of(PointResult& result, const PlannedPoint& planned,
                               const std::vector<std::string>& metrics) {
  std::vector<ResultRow> rows = std::move(result.rows);
  // What could not be had stays, whatever was asked for: a hole has a reason.
  std::erase_if(rows, [&](const ResultRow& row) {
    return !metrics.empty() && row.status == Status::kOk && std::ranges::count(metrics, row.metric) == 0;
  });
  for (ResultRow& row : rows) {
    row.system = planned.point.system;
    row.repro = planned.repro;
  }
  return rows;
}

/// ", about 2 min with cpu for all of them" where the file says so; a shard takes its share.
std::string expected_text(const Experiment& experiment, const SweepOptions& options) {
  const auto minutes = experiment.minutes.find(options.machine.backend);
  const auto shards = static_cast<double>(parse_shard(options.shard).count);
  return minutes == experiment.minutes.end() ? ""
                                             : fmt::format(", about {:.2g} min with {} for all of them",
                                                           minutes->second / shards, minutes->first);
}

void list_points(TableOutput& out, const std::vector<PlannedPoint>& planned,
                 const std::filesystem::path& directory, const std::string& expected) {
  std::set<std::string> done;
  if (const std::filesystem::path file = directory / "rows.jsonl"; file_exists(file)) {
    std::istringstream stream(read_text(file, kMostRowsBytes));
    for (const RecordedRun& run : parse_rows(stream, file.string()).runs) {
      for (const RecordedPoint& point : run.points) {
        done.insert(point.id);
      }
    }
  }
  Table table({{"point"},
               {"id", Align::kLeft},
               {"state", Align::kLeft},
               {"what", Align::kLeft, Need::kBelow},
               {"repro", Align::kLeft, Need::kBelow}});
  for (const PlannedPoint& each : planned) {
    table.add_row({fmt::format("{}", table.num_rows() + 1), each.point.id,
                   done.contains(each.point.id) ? "done" : "", each.point.label, each.repro});
  }
  out.show("points", table);
  out.text() << fmt::format(
      "\n{} points, {} done in {}{}\n", planned.size(),
      std::ranges::count_if(planned, [&](const PlannedPoint& each) { return done.contains(each.point.id); }),
      directory.string(), expected);
}

/// Runs what is left. Returns the code of the first failure.
ExitCode run_points(const std::vector<PlannedPoint>& planned, const Experiment& experiment,
                    PointRunner& runner, ResultWriter& writer, const CommonOptions& machine) {
  std::vector<const PlannedPoint*> left;
  for (const PlannedPoint& each : planned) {
    if (!writer.points().contains(each.point.id)) {
      left.push_back(&each);
    }
  }
  Progress progress(std::cerr, progress_style(machine), std::ssize(left));
  ExitCode failure = ExitCode::kOk;
  for (const PlannedPoint* each : left) {
    progress.begin(each->point.label);
    const auto start = std::chrono::steady_clock::now();
    PointResult result = runner.run(*each, [&](std::string_view what) { progress.detail(what); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    RecordedPoint point;
    point.id = each->point.id;
    point.status = result.status;
    point.reason = result.reason;
    point.elapsed_s = elapsed.count();
    writer.write_point(point, rows_of(result, *each, experiment.metrics));
    failure = failure == ExitCode::kOk ? result.code : failure;
    if (result.code == ExitCode::kDeviceError) {
      // No later point would work in this process.
      progress.finish();
      throw Error(ExitCode::kDeviceError,
                  fmt::format("{}; the point is recorded as failed, the same command goes on after it",
                              result.reason));
    }
    progress.advance();
  }
  return failure;
}

/// Which schedule is fastest over L and K, from the rows of the sweep.
void draw_phase_diagram(TableOutput& out, const std::filesystem::path& directory) {
  const std::vector<RecordedRun> runs = read_rows(directory / "rows.jsonl");
  const auto panels = phase_panels(recorded_layers(runs));
  if (panels.empty()) {
    out.text() << "phase diagram: needs two L, two K and two schedules that differ in nothing else\n";
    return;
  }
  out.text() << '\n';
  out.show("fastest schedules", crossover_table(panels));
  out.text() << '\n';
  const FigureResult figure = draw_figure(phase_figure(panels), directory, kPhaseDiagram);
  out.text() << figure_line(figure);
}

ExitCode hold_against(TableOutput& out, const std::vector<RecordedRun>& baseline,
                      const std::filesystem::path& directory, double threshold) {
  const RegressionReport report =
      compare_times(baseline, read_rows(directory / "rows.jsonl"), {.threshold = threshold});
  out.text() << '\n';
  print_regressions(out, report, {"the baseline", "this run"}, threshold, false);
  return report.holds() ? ExitCode::kOk : ExitCode::kCheckFailed;
}

/// A sweep that goes on makes its files again: none may be what it reads, but for its rows, which only grow.
void require_own_outputs(const SweepOptions& options, const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> outputs;
  std::vector<std::string> names = figure_files(kPhaseDiagram);
  names.insert(names.end(), {"rows.csv", "run.json"});
  for (const std::string& name : names) {
    outputs.push_back(directory / name);
  }
  require_other_file("file", options.file, outputs);
  if (!options.baseline.empty()) {
    require_other_file("baseline", options.baseline, outputs);
  }
  for (const std::filesystem::path& file : simulator_files(options.simulator)) {
    require_other_file("device", file, outputs);
  }
}

ExitCode sweep(const SweepOptions& options, const Invocation& invocation) {
  apply_threads(options.machine);
  StandardTables out(options.machine.tables);
  const Experiment experiment = read_experiment(options.file, options.draw_seed);
  require_known_metrics(experiment, options.modelled());
  const double threshold = parse_threshold(options.threshold);
  PointRunner runner(options);
  const auto planned = plan_points(experiment, options, runner);
  const std::filesystem::path directory = output_directory(experiment, options);
  if (options.dry_run) {
    list_points(out, planned, directory, expected_text(experiment, options));
    return ExitCode::kOk;
  }
  std::vector<RecordedRun> baseline;
  if (!options.baseline.empty()) {
    baseline = read_rows(options.baseline);
  }
  require_own_outputs(options, directory);
  RunHeader header = runner.start(options, invocation);
  header.experiment = experiment.canonical;
  ExitCode failure = ExitCode::kOk;
  bool nothing_left = false;
  if (file_exists(directory / "rows.jsonl") && !file_exists(directory / "run.json")) {
    out.text() << fmt::format("{} is missing: it is made again of rows.jsonl\n",
                              (directory / "run.json").string());
  }
  {
    ResultWriter writer(OutputFolder(directory), std::move(header), ExistingRun::kContinue,
                        options.phase_diagram ? figure_files(kPhaseDiagram) : std::vector<std::string>());
    nothing_left = std::ranges::all_of(
        planned, [&](const PlannedPoint& each) { return writer.points().contains(each.point.id); });
    failure = run_points(planned, experiment, runner, writer, options.machine);
  }
  if (planned.empty()) {
    out.text() << "this shard has no points\n";
    return ExitCode::kOk;
  }
  if (nothing_left) {
    out.text() << fmt::format(
        "nothing was run: every point of this sweep was recorded before. To start anew, name another folder "
        "by --output, or remove {}\n",
        directory.string());
  }
  const SweepSummary summary = summarize(directory, planned);
  out.text() << fmt::format("{} points, {} in all\nrows: {}/rows.jsonl, rows.csv, run.json\n", summary.points,
                            format_seconds(summary.elapsed_s), directory.string());
  if (options.phase_diagram) {
    draw_phase_diagram(out, directory);
  }
  ExitCode code = ExitCode::kOk;
  if (!summary.any) {
    // Points that failed in an earlier call are not measured again, and their codes are not recorded.
    code = failure == ExitCode::kOk ? ExitCode::kCheckFailed : failure;
  } else if (!options.baseline.empty()) {
    code = hold_against(out, baseline, directory, threshold);
  }
  out.text() << summary.text();
  if (summary.any) {
    out.text() << fmt::format("next: all of it on one page:\n      moescope report {}\n",
                              shell_word(directory.string()));
  }
  return code;
}

}  // namespace

Command add_sweep(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<SweepOptions>();
  const Cli sub =
      app.add_subcommand("sweep",
                         "every point of an experiment file; the same command again goes on after an "
                         "interruption");
  sub.footer(
      examples({"moescope sweep experiments/configs/skew-small.json", "moescope sweep my.json --dry-run",
                "moescope sweep my.json --backend cuda --shard 2/8",
                "moescope sweep experiments/configs/random-shapes.json --backend cuda --draw-seed 2",
                "moescope sweep my.json --backend model --device a100-sxm-80gb",
                "moescope sweep my.json --output results/new --baseline results/old/rows.jsonl "
                "--threshold 5%"}) +
      "\n\nThe format is core/results/experiment.schema.json; docs/guide/sweeps.md has an example.");
  sub.add_option("file", options->file, "the experiment, JSON").required().type_name("FILE");
  add_machine_options(sub, options->machine);
  sub.get_option("--backend").description("cpu (default), cuda, or model: the simulator");
  add_simulator_options(sub.add_option_group("Model", "For --backend model"), options->simulator);
  add_output_option(sub, options->machine, "default: results/<name>-<backend>, and the shard");
  add_table_options(sub, options->machine.tables);
  sub.add_option("--shard", options->shard, "this machine's share of the points (default 1/1: all)")
      .type_name("I/N");
  sub.add_option("--draw-seed", options->draw_seed, "draw other points than the file's \"draw\" does")
      .type_name("SEED");
  sub.add_flag("-n,--dry-run", options->dry_run, "list the points, measure none");
  sub.add_flag("--phase-diagram", options->phase_diagram,
               "print and draw which schedule is fastest over L and K: phase-diagram.svg beside the rows");
  sub.add_option("--baseline", options->baseline,
                 "rows.jsonl of an earlier run: exit with 1 when a time is slower by more than the threshold "
                 "and the noise, or is no more")
      .type_name("ROWS");
  sub.add_option("--threshold", options->threshold, "share by which a time may grow (default 5%)")
      .type_name("SHARE");
  return {sub, [options, invocation] { return sweep(*options, invocation); }};
}

}  // namespace moescope
