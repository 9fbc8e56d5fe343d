#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <memory>
#include <new>
#include <utility>

#include "experiments/backends.hpp"
#include "experiments/command.hpp"
#include "experiments/compare_report.hpp"
#include "experiments/options.hpp"
#include "profiler/layer_rows.hpp"
#include "profiler/layer_study.hpp"
#include "reference/layer_check.hpp"

namespace moescope {
namespace {

/// Skew of the default sweep: from none to more than trained layers show (small_layer2 lies at about zipf:1).
constexpr std::array kZipfSweep = {"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2"};
/// Tokens of the default job: each expert is used about 8 times on average, and a busy two-core machine stays
/// under a minute.
constexpr std::int64_t kDefaultTokens = 1024;

struct Point {
  NamedWorkload workload;
  LayerShape shape;
};

/// Without --workload: the recorded layer and a Zipf sweep on its shape, or the sweep alone on the shape
/// asked for.
std::vector<Point> plan(CommonOptions options) {
  std::vector<Point> points;
  const bool own_workloads = !options.workloads.empty();
  for (NamedWorkload& workload : chosen_workloads(options)) {
    const bool recorded = !own_workloads && workload.spec.family == WorkloadSpec::Family::kSnapshot;
    if (recorded && !options.num_tokens) {
      options.num_tokens = kDefaultTokens;
    }
    const LayerShape shape = resolve_shape(options, workload.spec);
    if (own_workloads || recorded) {
      points.push_back({std::move(workload), shape});
    }
    if (!own_workloads) {
      for (const char* text : kZipfSweep) {
        points.push_back({{WorkloadSpec::parse(text), text}, shape});
      }
    }
  }
  return points;
}

bool same_weights(const LayerShape& a, const LayerShape& b) {
  return a.grid_rows * a.grid_cols == b.grid_rows * b.grid_cols && a.hidden_size == b.hidden_size &&
         a.shared_size == b.shared_size && a.dtype == b.dtype;
}

bool synthetic(const WorkloadSpec& spec) {
  return spec.family != WorkloadSpec::Family::kSnapshot && spec.family != WorkloadSpec::Family::kTrace;
}

/// Makes inputs point by point; synthetic ones of one shape share their weights, which are most of the
/// memory.
class InputMaker {
 public:
  explicit InputMaker(std::uint64_t seed) : seed_(seed) {}

  LayerInputs make(const Point& point) {
    const bool share = synthetic(point.workload.spec);
    if (!share || !experts_ || !same_weights(shape_, point.shape)) {
      experts_.reset();
    }
    LayerInputs inputs = make_inputs(point.workload, point.shape, seed_, experts_);
    if (share) {
      shape_ = point.shape;
      experts_ = inputs.experts;
    }
    return inputs;
  }

 private:
  std::uint64_t seed_;
  LayerShape shape_;
  std::shared_ptr<const ExpertWeights> experts_;
};

/// A point that could not be studied at all: one failed row per schedule, and the sweep goes on.
LayerStudy failed_study(const Point& point, const std::vector<ScheduleOptions>& schedules,
                        const MoeBackend& backend, const CommonOptions& options, ExitCode code,
                        const std::string& reason) {
  LayerStudy study;
  study.shape = point.shape;
  study.workload = point.workload.name;
  study.seed = options.seed;
  study.backend = backend.name();
  study.l2 = parse_l2_state(options.l2);
  for (const ScheduleOptions& schedule : schedules) {
    ScheduleStudy& failed = study.schedules.emplace_back();
    failed.options = schedule;
    failed.status = Status::kFailed;
    failed.code = code;
    failed.reason = reason;
  }
  return study;
}

ExitCode compare(const CommonOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const auto schedules = chosen_schedules(options);
  const SamplingOptions sampling = sampling_options(options);
  const L2State l2 = parse_l2_state(options.l2);
  const std::vector<Point> points = plan(options);
  const auto backend = make_backend(options.backend);
  RunHeader header = run_header(invocation, *backend);
  const std::filesystem::path directory = options.output.empty()
                                              ? std::filesystem::path("results") / header.run_id
                                              : std::filesystem::path(options.output);
  ResultWriter writer(directory, std::move(header));

  std::vector<LayerStudy> studies;
  InputMaker maker(options.seed);
  {
    Progress progress(std::cerr, progress_style(options), static_cast<std::int64_t>(points.size()));
    for (const Point& point : points) {
      progress.begin(point.workload.name);
      try {
        const LayerInputs inputs = maker.make(point);
        studies.push_back(study_layer(*backend, inputs, schedules, sampling, l2,
                                      oracle_judge(inputs, kJudgedTokens),
                                      [&](std::string_view what) { progress.detail(what); }));
      } catch (const InternalError&) {
        throw;
      } catch (const Error& error) {
        studies.push_back(failed_study(point, schedules, *backend, options, error.code(), error.what()));
      } catch (const std::bad_alloc&) {
        studies.push_back(
            failed_study(point, schedules, *backend, options, ExitCode::kOutOfMemory, "out of memory"));
      }
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
        std::cout << fmt::format("\n{}: auto chose {}\n", study.workload, point.explanation);
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

Command add_compare(CLI::App& app, const Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
  auto* sub = app.add_subcommand("compare",
                                 "every schedule side by side over skew: time, bytes against the floor, "
                                 "error; writes rows and a figure");
  sub->footer(
      examples({"moescope compare",
                "moescope compare --preset table-a-1024-512 --schedule token_centric "
                "--schedule staircase --max-time 20",
                "moescope compare --workload zipf:1 --workload hot:0.5,16 -L 512 --grid 48x16 -d 96 -K 8"}));
  add_shape_options(*sub, *options);
  add_workload_options(*sub, *options);
  add_schedule_options(*sub, *options);
  add_machine_options(*sub, *options);
  add_sampling_options(*sub, *options);
  add_explain_option(*sub, *options);
  add_output_option(*sub, *options, "default: results/<run id>");
  return {sub, [options, invocation] { return compare(*options, invocation); }};
}

}  // namespace moescope
