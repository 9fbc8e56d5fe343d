#include <fmt/format.h>

#include <array>
#include <iostream>
#include <memory>
#include <utility>

#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/compare_report.hpp"
#include "experiments/points/compare_systems.hpp"
#include "experiments/points/study_point.hpp"
#include "profiler/study/layer_rows.hpp"

namespace moescope {
namespace {

/// Skew of the default sweep: from none to more than trained layers show (small_layer2 lies at about zipf:1).
constexpr std::array kZipfSweep = {"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2"};
/// Tokens of the default job: each expert is used about 8 times on average, and a busy two-core machine stays
/// under a minute.
constexpr std::int64_t kDefaultTokens = 1024;

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

ExitCode compare(const CommonOptions& options, const Invocation& invocation) {
  apply_threads(options);
  require_meaningful(options);
  if (!options.systems.empty()) {
    if (!options.tuned_on.empty()) {
      throw InvalidArgument("tuned_on", options.tuned_on, "cannot be given beside --system");
    }
    return compare_systems(options, invocation);
  }
  const StudyPlan plan = study_plan(options);
  const std::vector<StudyPoint> points = points_of(options);
  const auto backend = make_backend(options.backend);
  RunHeader header = run_header(invocation, *backend);
  const std::filesystem::path directory = options.output.empty()
                                              ? std::filesystem::path("results") / header.run_id
                                              : std::filesystem::path(options.output);
  ResultWriter writer(directory, std::move(header));

  std::vector<LayerStudy> studies;
  PointStudy point_study(*backend);
  {
    Progress progress(std::cerr, progress_style(options), static_cast<std::int64_t>(points.size()));
    for (const StudyPoint& point : points) {
      progress.begin(point.workload.name);
      studies.push_back(
          point_study.study(point, plan, [&](std::string_view what) { progress.detail(what); }));
      for (const ResultRow& row : study_rows(studies.back())) {
        writer.write(row);
      }
      progress.advance();
    }
  }
  print_comparison(std::cout, studies, backend->device());
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& point : study.schedules) {
      if (options.explain && !point.explanation.empty()) {
        std::cout << fmt::format("\n{}: auto chose {}\n",
                                 point.tuned_on.empty() ? study.workload : point.tuned_on, point.explanation);
      }
    }
  }
  const FigureResult figure = draw_figure(skew_figure(studies, backend->device()), directory, "skew");
  std::cout << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", directory.string());
  std::cout << (figure.status == Status::kOk ? fmt::format("figure: {}\n", figure.image.string())
                                             : fmt::format("figure: unavailable: {}\n", figure.reason));
  return outcome(studies);
}

}  // namespace

Command add_compare(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
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
  add_tuned_option(sub, *options);
  add_machine_options(sub, *options);
  add_sampling_options(sub, *options);
  add_explain_option(sub, *options);
  add_output_option(sub, *options, "default: results/<run id>");
  return {sub, [options, invocation] { return compare(*options, invocation); }};
}

}  // namespace moescope
