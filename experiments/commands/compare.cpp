#include <fmt/format.h>

#include <array>
#include <iostream>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/files/regular_file.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/compare_report.hpp"
#include "experiments/points/compare_systems.hpp"
#include "experiments/points/study_point.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/rank_rows.hpp"

namespace moescope {
namespace {

/// Skew of the default sweep: from none to more than trained layers show (small_layer2 lies at about zipf:1).
constexpr std::array kZipfSweep = {"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2"};
/// Tokens of the default job: each expert is used about 8 times on average, and a busy two-core machine stays
/// under a minute.
constexpr std::int64_t kDefaultTokens = 1024;
/// The default job's real routers, at the size of the paper's Table A: there schedules differ on a CPU, too.
constexpr std::array kTableA = {"snapshot:data/tablea_layer2_1024.safetensors",
                                "snapshot:data/tablea_bn_layer2_1024.safetensors"};
/// Samples of the default job, as many as a conclusion needs, so that a busy machine is done in a minute; a
/// quiet one takes more in the seconds that a workload has. Rounds of Table A take seconds, and differ much.
constexpr std::int64_t kDefaultSamples = 6;
constexpr std::int64_t kTableASamples = 5;
constexpr double kDefaultTime = 1.5;

struct CompareOptions : CommonOptions {
  bool own_min_samples = false;
  bool own_max_time = false;
};

/// Points that are measured alike.
struct PlannedPoints {
  StudyPlan plan;
  std::vector<StudyPoint> points;
};

/// Without --workload: the recorded layer and a Zipf sweep on its shape, or the sweep alone on the shape
/// asked for.
std::vector<StudyPoint> points_of(CommonOptions options) {
  std::vector<StudyPoint> points;
  const bool own_workloads = !options.workloads.empty();
  for (NamedWorkload& workload : chosen_workloads(options)) {
    const bool recorded = !own_workloads && workload.spec.family == WorkloadSpec::Family::kSnapshot;
    if (recorded && !options.num_tokens) {
      options.num_tokens = kDefaultTokens;
    }
    const LayerShape shape = resolve_shape(options, workload.spec);
    if (own_workloads || recorded) {
      points.push_back({std::move(workload), shape, options.seed});
    }
    if (!own_workloads) {
      for (const char* text : kZipfSweep) {
        points.push_back({{WorkloadSpec::parse(text), text}, shape, options.seed});
      }
    }
  }
  return points;
}

/// Whether nothing was said about the layer: the default job.
bool is_default_job(const CommonOptions& options) {
  bool asked = !options.workloads.empty();
  for_each_request_field(
      static_cast<const PointRequest&>(options), [&](const RequestField& field, const auto& value) {
        asked = asked || (field.group != RequestGroup::kSchedule && field.group != RequestGroup::kRun &&
                          value != std::decay_t<decltype(value)>());
      });
  return !asked;
}

/// The real routers that lie there; without dense_masked, which would take minutes for what is known.
PlannedPoints table_a_points(const CompareOptions& options, StudyPlan plan) {
  PlannedPoints planned;
  for (const char* text : kTableA) {
    NamedWorkload workload = named_workload(text);
    if (file_exists(workload.spec.path)) {
      const LayerShape shape = resolve_shape(options, workload.spec);
      planned.points.push_back({std::move(workload), shape, options.seed, true});
    }
  }
  std::erase_if(plan.schedules, [&](const ScheduleOptions& schedule) {
    return schedule.kind == ScheduleKind::kDenseMasked && options.schedules.empty();
  });
  if (!options.own_min_samples) {
    plan.sampling.min_samples = kTableASamples;
  }
  planned.plan = std::move(plan);
  return planned;
}

std::vector<PlannedPoints> plan_points(const CompareOptions& options) {
  StudyPlan plan = study_plan(options);
  const bool is_default = is_default_job(options);
  const bool real_routers = is_default && !plan.training;  // a step on them takes minutes on a CPU
  if (is_default && !options.own_max_time) {
    plan.sampling.max_time_s = kDefaultTime;
  }
  if (is_default && !options.own_min_samples) {
    plan.sampling.min_samples = kDefaultSamples;
  }
  std::vector<PlannedPoints> planned;
  planned.push_back({plan, points_of(options)});
  if (real_routers) {
    planned.push_back(table_a_points(options, std::move(plan)));
  }
  return planned;
}

ExitCode compare(const CompareOptions& options, const Invocation& invocation) {
  apply_threads(options);
  require_meaningful(options);
  if (!options.systems.empty()) {
    require_forward(options, "of the baselines is forward: their backward is an oracle alone");
    if (!options.tuned_on.empty()) {
      throw InvalidArgument("tuned_on", options.tuned_on, "cannot be given beside --system");
    }
    return compare_systems(options, invocation);
  }
  StandardTables out(options.tables);
  const std::vector<PlannedPoints> planned = plan_points(options);
  const auto backend = make_backend(options.backend);
  ResultWriter writer = open_results(options.output, run_header(invocation, *backend), figure_files("skew"));
  const std::filesystem::path& directory = writer.directory();

  std::vector<LayerStudy> studies;
  PointStudy point_study(*backend);
  {
    std::size_t count = 0;
    for (const PlannedPoints& part : planned) {
      count += part.points.size();
    }
    Progress progress(std::cerr, progress_style(options), static_cast<std::int64_t>(count));
    for (const PlannedPoints& part : planned) {
      for (const StudyPoint& point : part.points) {
        progress.begin(point.workload.name);
        studies.push_back(
            point_study.study(point, part.plan, [&](std::string_view what) { progress.detail(what); }));
        for (const ResultRow& row : study_rows(studies.back())) {
          writer.write(row);
        }
        progress.advance();
      }
    }
  }
  print_comparison(out, studies, backend->device());
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      if (point.ranks) {
        out.text() << fmt::format("{}, {}: {}\n", study.workload, point.name(), rank_text(*point.ranks));
      }
    }
  }
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      if (options.explain && !point.explanation.empty()) {
        out.text() << fmt::format("\n{}: auto chose {}\n",
                                  point.tuned_on.empty() ? study.workload : point.tuned_on,
                                  point.explanation);
      }
    }
  }
  out.text() << next_text(studies, typed_command(invocation));
  const FigureResult figure = draw_figure(skew_figure(studies, backend->device()), directory, "skew");
  out.text() << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", directory.string());
  out.text() << figure_line(figure);
  out.text() << failures_text(studies);
  return outcome(studies);
}

}  // namespace

Command add_compare(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CompareOptions>();
  const Cli sub = app.add_subcommand("compare",
                                     "every schedule side by side over skew: time, bytes against the floor, "
                                     "error; writes rows and a figure");
  sub.footer(
      examples({"moescope compare",
                "moescope compare --preset table-a-1024-512 --schedule token_centric "
                "--schedule staircase --max-time 20",
                "moescope compare --workload zipf:1 --workload hot:0.5,16 -L 512 --grid 48x16 -d 96 -K 8",
                "moescope compare --system omnimoe --system peer --system gshard --preset table-a"}));
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  add_rank_options(sub, *options);
  add_tuned_option(sub, *options);
  add_machine_options(sub, *options);
  add_sampling_options(sub, *options);
  add_explain_option(sub, *options);
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: results/<run id>");
  const Option min_samples = sub.get_option("--min-samples");
  const Option max_time = sub.get_option("--max-time");
  return {sub, [options, invocation, min_samples, max_time] {
            options->own_min_samples = min_samples.given();
            options->own_max_time = max_time.given();
            return compare(*options, invocation);
          }};
}

}  // namespace moescope
