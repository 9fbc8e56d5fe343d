#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>

#include "core/base/caught_error.hpp"
#include "core/base/line_text.hpp"
#include "core/workload/output_gradient.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/check_points.hpp"
#include "experiments/points/check_systems.hpp"
#include "profiler/study/layer_rows.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/training_check.hpp"

namespace moescope {
namespace {

struct CheckOptions : CommonOptions {
  bool full = false;
  bool verbose = false;
  std::int64_t sampled_tokens = 8;

  bool backward() const { return asked_direction(*this) == Direction::kBackward; }
};

struct Tally {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
  std::int64_t skipped = 0;
  std::int64_t near_ties = 0;
  std::string failures;             ///< a line each, said again at the end
  bool wrong = false;               ///< a comparison did not hold
  ExitCode unread = ExitCode::kOk;  ///< of the first point whose inputs could not be had
  bool no_memory = false;           ///< a point did not fit

  ExitCode code() const {
    if (wrong) {
      return ExitCode::kCheckFailed;
    }
    if (passed > 0 || unread != ExitCode::kOk) {
      return unread;
    }
    return no_memory ? ExitCode::kOutOfMemory : ExitCode::kCheckFailed;  // nothing compared is nothing shown
  }
};

/// The built-in list, or the one point that workload and shape options describe.
std::vector<CheckPoint> chosen_points(const CheckOptions& options) {
  const bool own = !options.workloads.empty() || !options.preset.empty() || !options.grid.empty() ||
                   options.num_experts || options.hidden_size || options.num_tokens || options.top_k;
  if (!own) {
    auto points = check_points(options.full);
    return options.backward() ? training_points(std::move(points)) : points;
  }
  std::vector<CheckPoint> points;
  for (NamedWorkload& workload : chosen_workloads(options)) {
    const LayerShape shape = resolve_shape(options, workload.spec);
    points.push_back({std::move(workload), shape, false});
  }
  return points;
}

Point point_of(const CheckPoint& checked, const MoeBackend& backend, const ScheduleOptions& schedule,
               const CheckOptions& options) {
  Point point = layer_point(checked.shape, backend.name(), checked.workload.name, options.seed);
  point.direction = to_string(asked_direction(options));
  point.set_schedule(schedule);
  point.l2_state = to_string(L2State::kCold);
  return point;
}

void write(ResultWriter* writer, const ResultRow& row) {
  if (writer != nullptr) {
    writer->write(row);
  }
}

/// What was compared, and the kernels that ran for it.
std::string what_of(const StageCheck& stage) {
  return stage.kernels.empty() ? stage.what : fmt::format("{} ({})", stage.what, stage.kernels);
}

void write_rows(ResultWriter* writer, const Point& context, const LayerCheck& check) {
  for (const StageCheck& stage : check.stages) {
    ResultRow row = value_row(context, stage.stage, Source::kMeasured, stage.metric, stage.error, "fraction");
    row.reason = what_of(stage);
    if (!stage.passed) {
      row = absent_row(context, stage.stage, Source::kMeasured, stage.metric, "fraction", Status::kFailed,
                       fmt::format("{}: {}", what_of(stage), stage.detail));
    }
    write(writer, row);
  }
  write(writer, value_row(context, Stage::kRouterSelect, Source::kMeasured, "near_ties",
                          static_cast<double>(check.near_ties()), "pairs"));
}

std::string line_of(const char* verdict, const CheckPoint& point, const ScheduleOptions& schedule,
                    const std::string& rest) {
  return fmt::format("{:<7}  {:<22} {:<5} {:<38} {:<15} {}\n", verdict, point.shape.label(),
                     to_string(point.shape.dtype), one_line(point.workload.name), to_string(schedule),
                     one_line(rest));
}

void print_line(const char* verdict, const CheckPoint& point, const ScheduleOptions& schedule,
                const std::string& rest) {
  std::cout << line_of(verdict, point, schedule, rest);
}

void note_failure(Tally& tally, const CheckPoint& point, const ScheduleOptions& schedule,
                  const std::string& what) {
  ++tally.failed;
  print_line("FAILED", point, schedule, what);
  tally.failures += line_of("FAILED", point, schedule, what);
}

/// One line per comparison: what it found, and which kernels it was about.
void print_comparisons(const LayerCheck& check) {
  for (const StageCheck& stage : check.stages) {
    const std::string found = stage.metric == "relative_error"
                                  ? fmt::format("{:.1e} of {:.1e}", stage.error, stage.tolerance)
                                  : fmt::format("{:.1e}", stage.error);
    const std::string ties = stage.near_ties == 0 ? "" : fmt::format(", {} near-ties", stage.near_ties);
    std::cout << fmt::format("  {:<6}{:<15} {:<40} {} {}{}; {}\n", stage.passed ? "ok" : "FAILED",
                             to_string(stage.stage), stage.what, stage.metric, found, ties, stage.kernels);
  }
}

std::vector<SaveMode> chosen_saves(const CheckOptions& options) {
  if (const auto save = asked_save(options)) {
    return {*save};
  }
  return {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores};
}

/// Compared in the direction that was asked for.
LayerCheck compare(MoeBackend& backend, MoeBackend* mirror, const LayerInputs& inputs,
                   const ScheduleOptions& schedule, const CheckOptions& options) {
  if (!options.backward()) {
    return check_layer(backend, mirror, inputs, schedule, options.sampled_tokens);
  }
  const HostTensor dy = make_output_gradient(inputs.shape, options.seed);
  return check_training_modes(backend, inputs, dy, schedule, chosen_saves(options), options.sampled_tokens);
}

/// What the line of a point that passed says it is about.
const StageCheck& headline(const LayerCheck& check, const CheckOptions& options) {
  return options.backward() ? *check.tightest() : *check.layer();
}

void check_point(MoeBackend& backend, MoeBackend* mirror, const CheckPoint& point, const LayerInputs& inputs,
                 const ScheduleOptions& schedule, const CheckOptions& options, ResultWriter* writer,
                 Tally& tally) {
  const Point context = point_of(point, backend, schedule, options);
  const auto skip = [&](const std::string& why) {
    ++tally.skipped;
    print_line("skipped", point, schedule, why);
    write(writer, absent_row(context, Stage::kLayer, Source::kMeasured, "relative_error", "fraction",
                             Status::kSkipped, why));
  };
  if (std::string why; options.backward() ? !backend.supports_training(inputs, schedule, {}, why)
                                          : !backend.supports_layer(inputs, schedule, why)) {
    skip(why);
    return;
  }
  std::optional<LayerCheck> check;
  try {
    check = compare(backend, mirror, inputs, schedule, options);
  } catch (...) {
    const CaughtError error = caught_error();
    if (error.code != ExitCode::kOutOfMemory) {
      throw;
    }
    tally.no_memory = true;
    skip(error.message);
    return;
  }
  write_rows(writer, context, *check);
  const std::int64_t near_ties = check->near_ties();
  tally.near_ties += near_ties;
  if (const StageCheck* failure = check->first_failure()) {
    tally.wrong = true;
    note_failure(tally, point, schedule,
                 fmt::format("{} ({}): {}", to_string(failure->stage), what_of(*failure), failure->detail));
    if (options.verbose) {
      print_comparisons(*check);
    }
    return;
  }
  ++tally.passed;
  const StageCheck& said = headline(*check, options);
  print_line(
      "ok", point, schedule,
      fmt::format("error {:.1e} of {:.1e}, {} comparisons{}", said.error, said.tolerance,
                  check->stages.size(), near_ties == 0 ? "" : fmt::format(", {} near-ties", near_ties)));
  if (options.verbose) {
    print_comparisons(*check);
  }
}

ExitCode check(const CheckOptions& options, const Invocation& invocation) {
  apply_threads(options);
  require_meaningful(options);
  if (options.sampled_tokens < 1) {
    throw InvalidArgument("sampled_tokens", fmt::format("{}", options.sampled_tokens), "must be >= 1");
  }
  chosen_saves(options);
  if (!options.systems.empty()) {
    require_forward(options,
                    "of the baselines is forward: their backward is an oracle alone (moescope golden)");
    return check_systems(options, options.full, options.sampled_tokens, invocation);
  }
  const auto schedules = chosen_schedules(options);
  const auto points = chosen_points(options);
  const auto backend = make_backend(options.backend);
  const auto mirror = backend->name() == "cpu" ? nullptr : make_backend("cpu");
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  Tally tally;
  for (const CheckPoint& point : points) {
    std::optional<LayerInputs> inputs;
    CaughtError error;
    try {
      inputs = make_check_inputs(point, options.seed,
                                 {.backend = backend->name(),
                                  .schedules = schedules,
                                  .side_by_side = false,
                                  .judged_tokens = options.sampled_tokens});
    } catch (...) {
      error = caught_error();
      if (error.code != ExitCode::kOutOfMemory && error.code != ExitCode::kBadFile) {
        throw;
      }
    }
    const bool failed = error.code == ExitCode::kBadFile;  // of this point's workload: others go on
    for (const ScheduleOptions& schedule : schedules) {
      if (inputs) {
        check_point(*backend, mirror.get(), point, *inputs, schedule, options, writer.get(), tally);
        continue;
      }
      if (failed) {
        note_failure(tally, point, schedule, error.message);
        tally.unread = tally.unread == ExitCode::kOk ? error.code : tally.unread;
      } else {
        ++tally.skipped;
        tally.no_memory = true;
        print_line("skipped", point, schedule, error.message);
      }
      write(writer.get(), absent_row(point_of(point, *backend, schedule, options), Stage::kLayer,
                                     Source::kMeasured, "relative_error", "fraction",
                                     failed ? Status::kFailed : Status::kSkipped, error.message));
    }
    std::cout << std::flush;
  }
  std::cout << fmt::format("{}: {} passed, {} failed, {} skipped, {} near-ties\n", backend->name(),
                           tally.passed, tally.failed, tally.skipped, tally.near_ties);
  if (writer) {
    std::cout << "rows: " << writer->directory().string() << "/rows.jsonl, rows.csv\n";
  }
  std::cout << tally.failures;
  return tally.code();
}

}  // namespace

Command add_check(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CheckOptions>();
  const Cli sub = app.add_subcommand(
      "check",
      "a backend against the fp64 oracle (and, for cuda, stage by stage against the CPU) on awkward shapes");
  sub.footer(examples({"moescope check", "moescope check --backend cuda --full --output results/check",
                       "moescope check --grid 48x16 -d 96 -K 24 --workload zipf:1.5 --schedule staircase",
                       "moescope check --backend cuda --system gshard --system peer --full",
                       "moescope check --direction backward"}));
  sub.add_flag("--full", options->full, "also paper Table A at L = 1024 and 4096: gigabytes and minutes");
  sub.add_flag("--verbose", options->verbose, "a line for every comparison, with the kernels that ran");
  sub.add_option(
         "--direction", options->direction,
         "forward (default), or backward: every gradient against the oracle, with either kind of gates")
      .type_name("NAME");
  sub.add_option("--save", options->save,
                 "backward: what the forward keeps: minimal, log_probs or scores (default: each in turn)")
      .type_name("MODE");
  sub.add_option("--sampled-tokens", options->sampled_tokens, "tokens compared with the oracle (default 8)")
      .type_name("N");
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  add_rank_options(sub, *options);
  add_machine_options(sub, *options);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return check(*options, invocation); }};
}

}  // namespace moescope
