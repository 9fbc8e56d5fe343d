#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <new>
#include <optional>

#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/check_points.hpp"
#include "experiments/points/check_systems.hpp"
#include "profiler/study/layer_rows.hpp"
#include "reference/oracle/layer_check.hpp"

namespace moescope {
namespace {

struct CheckOptions : CommonOptions {
  bool full = false;
  std::int64_t sampled_tokens = 8;
};

struct Tally {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
  std::int64_t skipped = 0;
  std::int64_t near_ties = 0;
};

/// The built-in list, or the one point that workload and shape options describe.
std::vector<CheckPoint> chosen_points(const CheckOptions& options) {
  const bool own = !options.workloads.empty() || !options.preset.empty() || !options.grid.empty() ||
                   options.num_experts || options.hidden_size || options.num_tokens || options.top_k;
  if (!own) {
    return check_points(options.full);
  }
  std::vector<CheckPoint> points;
  for (NamedWorkload& workload : chosen_workloads(options)) {
    const LayerShape shape = resolve_shape(options, workload.spec);
    points.push_back({std::move(workload), shape, false});
  }
  return points;
}

RowContext row_context(const CheckPoint& point, const MoeBackend& backend, const ScheduleOptions& schedule,
                       std::uint64_t seed) {
  return {.shape = point.shape,
          .schedule = to_string(schedule),
          .backend = std::string(backend.name()),
          .workload = point.workload.name,
          .seed = seed,
          .l2_state = std::string(to_string(L2State::kCold)),
          .tile_tokens = tile_tokens_of(schedule)};
}

void write(ResultWriter* writer, const ResultRow& row) {
  if (writer != nullptr) {
    writer->write(row);
  }
}

void write_rows(ResultWriter* writer, const RowContext& context, const LayerCheck& check) {
  for (const StageCheck& stage : check.stages) {
    ResultRow row = value_row(context, stage.stage, Source::kMeasured, stage.metric, stage.error, "fraction");
    row.reason = stage.what;
    if (!stage.passed) {
      row = absent_row(context, stage.stage, Source::kMeasured, stage.metric, "fraction", Status::kFailed,
                       fmt::format("{}: {}", stage.what, stage.detail));
    }
    write(writer, row);
  }
  write(writer, value_row(context, Stage::kRouterSelect, Source::kMeasured, "near_ties",
                          static_cast<double>(check.near_ties), "pairs"));
}

void print_line(const char* verdict, const CheckPoint& point, const ScheduleOptions& schedule,
                const std::string& rest) {
  std::cout << fmt::format("{:<8}{:<22} {:<5} {:<38} {:<15} {}\n", verdict, point.shape.label(),
                           to_string(point.shape.dtype), point.workload.name, to_string(schedule), rest);
}

void check_point(MoeBackend& backend, MoeBackend* mirror, const CheckPoint& point, const LayerInputs& inputs,
                 const ScheduleOptions& schedule, const CheckOptions& options, ResultWriter* writer,
                 Tally& tally) {
  const RowContext context = row_context(point, backend, schedule, options.seed);
  const auto skip = [&](const std::string& why) {
    ++tally.skipped;
    print_line("skipped", point, schedule, why);
    write(writer, absent_row(context, Stage::kLayer, Source::kMeasured, "relative_error", "fraction",
                             Status::kSkipped, why));
  };
  if (std::string why; !backend.supports_layer(inputs, schedule, why)) {
    skip(why);
    return;
  }
  std::optional<LayerCheck> check;
  try {
    check = check_layer(backend, mirror, inputs, schedule, options.sampled_tokens);
  } catch (const OutOfMemory& error) {
    skip(error.what());
    return;
  } catch (const std::bad_alloc&) {
    skip("out of memory");
    return;
  }
  write_rows(writer, context, *check);
  tally.near_ties += check->near_ties;
  if (const StageCheck* failure = check->first_failure()) {
    ++tally.failed;
    print_line("FAILED", point, schedule,
               fmt::format("{} ({}): {}", to_string(failure->stage), failure->what, failure->detail));
    return;
  }
  ++tally.passed;
  print_line("ok", point, schedule,
             fmt::format("error {:.1e} of {:.1e}, {} comparisons{}", check->layer()->error,
                         check->layer()->tolerance, check->stages.size(),
                         check->near_ties == 0 ? "" : fmt::format(", {} near-ties", check->near_ties)));
}

ExitCode check(const CheckOptions& options, const Invocation& invocation) {
  apply_threads(options);
  require_meaningful(options);
  if (options.sampled_tokens < 1) {
    throw InvalidArgument("sampled_tokens", fmt::format("{}", options.sampled_tokens), "must be >= 1");
  }
  if (!options.systems.empty()) {
    return check_systems(options, options.full, options.sampled_tokens, invocation);
  }
  const auto schedules = chosen_schedules(options);
  const auto points = chosen_points(options);
  const auto backend = make_backend(options.backend);
  const auto mirror = backend->name() == "cpu" ? nullptr : make_backend("cpu");
  std::unique_ptr<ResultWriter> writer;
  if (!options.output.empty()) {
    writer = std::make_unique<ResultWriter>(options.output, run_header(invocation, *backend));
  }
  Tally tally;
  for (const CheckPoint& point : points) {
    std::optional<LayerInputs> inputs;
    std::string why;
    try {
      inputs = make_check_inputs(point, options.seed,
                                 {.backend = backend->name(),
                                  .schedules = schedules,
                                  .side_by_side = false,
                                  .judged_tokens = options.sampled_tokens});
    } catch (const OutOfMemory& error) {
      why = error.what();
    } catch (const std::bad_alloc&) {
      why = "out of memory";
    }
    for (const ScheduleOptions& schedule : schedules) {
      if (inputs) {
        check_point(*backend, mirror.get(), point, *inputs, schedule, options, writer.get(), tally);
      } else {
        ++tally.skipped;
        print_line("skipped", point, schedule, why);
        write(writer.get(),
              absent_row(row_context(point, *backend, schedule, options.seed), Stage::kLayer,
                         Source::kMeasured, "relative_error", "fraction", Status::kSkipped, why));
      }
    }
    std::cout << std::flush;
  }
  std::cout << fmt::format("{}: {} passed, {} failed, {} skipped, {} near-ties\n", backend->name(),
                           tally.passed, tally.failed, tally.skipped, tally.near_ties);
  if (writer) {
    std::cout << "rows: " << writer->directory().string() << "/rows.jsonl, rows.csv\n";
  }
  // A check that compared nothing has shown nothing.
  return tally.failed > 0 || tally.passed == 0 ? ExitCode::kCheckFailed : ExitCode::kOk;
}

}  // namespace

Command add_check(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CheckOptions>();
  const Cli sub = app.add_subcommand(
      "check",
      "a backend against the fp64 oracle (and, for cuda, stage by stage against the CPU) on awkward shapes");
  sub.footer(examples({"moescope check", "moescope check --backend cuda --full --output results/check",
                       "moescope check --grid 48x16 -d 96 -K 24 --workload zipf:1.5 --schedule staircase",
                       "moescope check --backend cuda --system gshard --system peer --full"}));
  sub.add_flag("--full", options->full, "also paper Table A at L = 1024 and 4096: gigabytes and minutes");
  sub.add_option("--sampled-tokens", options->sampled_tokens, "tokens compared with the oracle (default 8)")
      .type_name("N");
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  add_machine_options(sub, *options);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return check(*options, invocation); }};
}

}  // namespace moescope
