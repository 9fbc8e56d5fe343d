#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <set>
#include <utility>

#include "core/experiment.hpp"
#include "experiments/backends.hpp"
#include "experiments/command.hpp"
#include "experiments/options.hpp"
#include "experiments/regression_text.hpp"
#include "experiments/sweep_points.hpp"
#include "experiments/sweep_study.hpp"
#include "profiler/format.hpp"
#include "profiler/layer_rows.hpp"
#include "profiler/table.hpp"

namespace moescope {
namespace {

struct SweepOptions {
  CommonOptions machine;
  std::string file;
  std::string shard = "1/1";
  bool dry_run = false;
  std::string baseline;
  std::string threshold = "5%";
};

void require_known_metrics(const Experiment& experiment) {
  const auto known = study_metrics();
  for (const std::string& metric : experiment.metrics) {
    if (std::ranges::find(known, metric) == known.end()) {
      throw InvalidArgument("metrics", metric, fmt::format("must be one of {}", fmt::join(known, ", ")));
    }
  }
}

/// Values that cannot work on any machine end the sweep here, before anything is written.
std::vector<PlannedPoint> plan_points(const Experiment& experiment, const SweepOptions& options) {
  const Shard shard = parse_shard(options.shard);
  std::vector<PlannedPoint> planned;
  for (std::size_t p = 0; p < experiment.points.size(); ++p) {
    if (!shard.has(p)) {
      continue;
    }
    planned.push_back(plan_point(experiment, experiment.points[p], options.machine));
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

std::vector<ResultRow> rows_of(const LayerStudy& study, const PlannedPoint& planned,
                               const std::vector<std::string>& metrics) {
  std::vector<ResultRow> rows = study_rows(study);
  // What could not be had stays, whatever was asked for: a hole has a reason.
  std::erase_if(rows, [&](const ResultRow& row) {
    return !metrics.empty() && row.status == Status::kOk && std::ranges::count(metrics, row.metric) == 0;
  });
  for (ResultRow& row : rows) {
    row.system = planned.options.system;
    row.repro = planned.repro;
  }
  return rows;
}

RecordedPoint summary(const LayerStudy& study, const std::string& id, double elapsed_s) {
  RecordedPoint point;
  point.id = id;
  point.elapsed_s = elapsed_s;
  for (const Status status : {Status::kOk, Status::kFailed, Status::kSkipped}) {
    const auto found = std::ranges::find(study.schedules, status, &ScheduleStudy::status);
    if (found != study.schedules.end()) {
      point.status = status;
      point.reason = found->reason;
      break;
    }
  }
  return point;
}

void list_points(const std::vector<PlannedPoint>& planned, const std::filesystem::path& directory) {
  std::set<std::string> done;
  if (std::ifstream stream(directory / "rows.jsonl", std::ios::binary); stream) {
    for (const RecordedRun& run : parse_rows(stream, (directory / "rows.jsonl").string()).runs) {
      for (const RecordedPoint& point : run.points) {
        done.insert(point.id);
      }
    }
  }
  Table table(
      {{"point"}, {"id", Align::kLeft}, {"", Align::kLeft}, {"what", Align::kLeft}, {"repro", Align::kLeft}});
  for (const PlannedPoint& each : planned) {
    table.add_row({fmt::format("{}", table.num_rows() + 1), each.point.id,
                   done.contains(each.point.id) ? "done" : "", each.point.label, each.repro});
  }
  std::cout << table.text()
            << fmt::format(
                   "\n{} points, {} done in {}\n", planned.size(),
                   std::ranges::count_if(
                       planned, [&](const PlannedPoint& each) { return done.contains(each.point.id); }),
                   directory.string());
}

/// Measures what is left. Returns the code of the first failure if nothing could be measured.
ExitCode measure(const std::vector<PlannedPoint>& planned, const Experiment& experiment, MoeBackend& backend,
                 ResultWriter& writer, const CommonOptions& machine) {
  std::vector<const PlannedPoint*> left;
  for (const PlannedPoint& each : planned) {
    if (!writer.points().contains(each.point.id)) {
      left.push_back(&each);
    }
  }
  PlannedStudy study(backend);
  Progress progress(std::cerr, progress_style(machine), std::ssize(left));
  bool any = left.empty();
  ExitCode failure = ExitCode::kOk;
  for (const PlannedPoint* each : left) {
    progress.begin(each->point.label);
    const auto start = std::chrono::steady_clock::now();
    const LayerStudy result = study.study(*each, [&](std::string_view what) { progress.detail(what); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const RecordedPoint point = summary(result, each->point.id, elapsed.count());
    writer.write_point(point, rows_of(result, *each, experiment.metrics));
    any = any || point.status != Status::kFailed;
    for (const ScheduleStudy& schedule : result.schedules) {
      failure = failure == ExitCode::kOk ? schedule.code : failure;
      if (schedule.code == ExitCode::kDeviceError) {
        // No later point would work in this process.
        progress.finish();
        throw Error(ExitCode::kDeviceError,
                    fmt::format("{}; the point is recorded as failed, the same command goes on after it",
                                schedule.reason));
      }
    }
    progress.advance();
  }
  return any ? ExitCode::kOk : failure;
}

void print_summary(const std::filesystem::path& directory) {
  std::int64_t points = 0;
  double elapsed_s = 0;
  std::string failures;
  for (const RecordedRun& run : read_rows(directory / "rows.jsonl")) {
    for (const RecordedPoint& point : run.points) {
      ++points;
      elapsed_s += point.elapsed_s;
      if (point.status != Status::kOk) {
        const auto row = std::ranges::find(run.rows, point.id, &ResultRow::point);
        failures += fmt::format("{}: {}{}\n", to_string(point.status), point.reason,
                                row == run.rows.end() ? "" : fmt::format("\n  {}", row->repro));
      }
    }
  }
  std::cout << failures
            << fmt::format("{} points, {} of measuring\nrows: {}/rows.jsonl, rows.csv, run.json\n", points,
                           format_seconds(elapsed_s), directory.string());
}

ExitCode hold_against(const std::vector<RecordedRun>& baseline, const std::filesystem::path& directory,
                      double threshold) {
  const RegressionReport report = compare_times(baseline, read_rows(directory / "rows.jsonl"), threshold);
  print_regressions(std::cout, report, threshold);
  return report.holds() ? ExitCode::kOk : ExitCode::kCheckFailed;
}

ExitCode sweep(const SweepOptions& options, const Invocation& invocation) {
  apply_threads(options.machine);
  const Experiment experiment = read_experiment(options.file);
  require_known_metrics(experiment);
  const double threshold = parse_threshold(options.threshold);
  const auto planned = plan_points(experiment, options);
  const std::filesystem::path directory = output_directory(experiment, options);
  if (options.dry_run) {
    list_points(planned, directory);
    return ExitCode::kOk;
  }
  std::vector<RecordedRun> baseline;
  if (!options.baseline.empty()) {
    baseline = read_rows(options.baseline);
  }
  const auto backend = make_backend(options.machine.backend);
  RunHeader header = run_header(invocation, *backend);
  header.experiment = experiment.canonical;
  ExitCode code = ExitCode::kOk;
  {
    ResultWriter writer(directory, std::move(header), ExistingRun::kContinue);
    code = measure(planned, experiment, *backend, writer, options.machine);
  }
  if (planned.empty()) {
    std::cout << "this shard has no points\n";
    return code;
  }
  print_summary(directory);
  return baseline.empty() || code != ExitCode::kOk ? code : hold_against(baseline, directory, threshold);
}

}  // namespace

Command add_sweep(CLI::App& app, const Invocation& invocation) {
  auto options = std::make_shared<SweepOptions>();
  auto* sub = app.add_subcommand("sweep",
                                 "every point of an experiment file; the same command again goes on after an "
                                 "interruption");
  sub->footer(
      examples({"moescope sweep experiments/configs/skew-small.json", "moescope sweep my.json --dry-run",
                "moescope sweep my.json --backend cuda --shard 2/8",
                "moescope sweep my.json --output results/new --baseline results/old/rows.jsonl "
                "--threshold 5%"}) +
      "\n\nThe format is core/experiment.schema.json; README has an example.");
  sub->add_option("file", options->file, "the experiment, JSON")->required()->type_name("FILE");
  add_machine_options(*sub, options->machine);
  add_output_option(*sub, options->machine, "default: results/<name>-<backend>, and the shard");
  sub->add_option("--shard", options->shard, "this machine's share of the points (default 1/1: all)")
      ->type_name("I/N");
  sub->add_flag("-n,--dry-run", options->dry_run, "list the points, measure none");
  sub->add_option(
         "--baseline", options->baseline,
         "rows.jsonl of an earlier run: exit with 1 when a time is slower by more than the threshold "
         "and the noise, or is no more")
      ->type_name("ROWS");
  sub->add_option("--threshold", options->threshold, "share by which a time may grow (default 5%)")
      ->type_name("SHARE");
  return {sub, [options, invocation] { return sweep(*options, invocation); }};
}

}  // namespace moescope
