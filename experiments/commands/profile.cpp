#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <iostream>
#include <memory>
#include <utility>

#include "core/workload/output_gradient.hpp"
#include "core/workload/trace_file.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/profile_sources.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/compare_report.hpp"
#include "experiments/points/study_point.hpp"
#include "experiments/points/system_lineup.hpp"
#include "profiler/counters/recorded_counters.hpp"
#include "profiler/limits/layer_profile.hpp"
#include "profiler/report/chrome_trace.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/or_failure.hpp"
#include "reference/oracle/layer_check.hpp"

namespace moescope {
namespace {

struct ProfileOptions : CommonOptions {
  std::string source;
  std::vector<std::string> metrics = {"full"};
  std::string ceilings;
  bool external = false;
};

struct ProfiledPoint {
  NamedWorkload workload;
  LayerShape shape;
};

/// A baseline's workloads, each with the layer's options; shapes are resolved, hence refused, already.
std::deque<SystemLineup> plan_systems(const ProfileOptions& options) {
  std::deque<SystemLineup> lineups;
  std::vector<std::string> workloads;
  for (const std::string& text : options.workloads) {
    const auto layers = expand_trace_layers(text);
    workloads.insert(workloads.end(), layers.begin(), layers.end());
  }
  for (const std::string& workload : workloads.empty() ? std::vector<std::string>{"gaussian:1"} : workloads) {
    CommonOptions one = options;
    one.workloads = {workload};
    lineups.emplace_back(std::move(one));
  }
  return lineups;
}

std::vector<ProfiledPoint> plan(const ProfileOptions& options) {
  std::vector<ProfiledPoint> points;
  for (NamedWorkload& workload : chosen_workloads(options)) {
    const LayerShape shape = resolve_shape(options, workload.spec);
    require_room(workload.spec, shape);
    points.push_back({std::move(workload), shape});
  }
  return points;
}

/// Recorded, or measured here and now.
DeviceCeilings obtain_ceilings(const ProfileOptions& options, const MoeBackend& backend) {
  if (options.ceilings.empty()) {
    SamplingOptions sampling = sampling_options(options);
    sampling.max_time_s = std::min(sampling.max_time_s, 1.0);
    return measure_ceilings(make_ceiling_probes(options.backend), backend.device(), sampling);
  }
  auto recorded = recorded_ceilings(read_rows(options.ceilings));
  if (!recorded) {
    throw FileError(options.ceilings, "stage",
                    "no row of a device's ceilings (moescope ceilings writes them)");
  }
  if (recorded->device != backend.device()) {
    throw InvalidArgument(
        "ceilings", options.ceilings,
        fmt::format("must be of this device, {}, not of {}", backend.device(), recorded->device));
  }
  return *recorded;
}

/// Of a layer of which nothing came: every schedule failed.
LayerProfile failed_profile(LayerStudy study, const DeviceCeilings& ceilings) {
  LayerProfile profile;
  profile.counted.resize(study.schedules.size());
  profile.kernels.resize(study.schedules.size());
  profile.study = std::move(study);
  profile.ceilings = ceilings;
  return profile;
}

/// Runs a loaded layer once, warm, and once more for a profiler around this process.
void run_once(LayerExecution& execution, L2State l2, const std::string& backend) {
  execution.run(l2);
  if (l2 == L2State::kCold) {
    execution.empty_cache();
  }
  const ExternalProfilerRange range(backend);
  for (const Stage stage : execution.stages()) {
    execution.enqueue(stage);
  }
  execution.synchronize();
}

/// A baseline likewise.
ExitCode run_systems_for_external_profiler(const ProfileOptions& options) {
  const L2State l2 = sampling_options(options).l2;
  std::deque<SystemLineup> lineups = plan_systems(options);
  const auto backend = make_backend(options.backend);
  for (SystemLineup& lineup : lineups) {
    for (const SystemSubject& subject : lineup.subjects()) {
      if (subject.failed) {
        throw Error(subject.failed->schedules.front().code, subject.failed->schedules.front().reason);
      }
      const auto execution = backend->prepare_ruled_system(*subject.baseline);
      run_once(*execution, l2, options.backend);
      std::cout << fmt::format("{}: {} ran once\n", lineup.workload(),
                               to_string(execution->schedule_options()));
    }
  }
  return ExitCode::kOk;
}

/// Every schedule once, for a profiler around this process: warm, then one run between cudaProfilerStart and
/// cudaProfilerStop, each stage in an NVTX range of its name.
ExitCode run_for_external_profiler(const ProfileOptions& options) {
  const auto schedules = chosen_schedules(options);
  const L2State l2 = sampling_options(options).l2;
  const auto training = asked_training(options);
  const auto points = plan(options);
  const auto backend = make_backend(options.backend);
  for (const auto& [workload, shape] : points) {
    const LayerInputs inputs = make_inputs(workload, shape, options.seed,
                                           {.backend = backend->name(),
                                            .schedules = schedules,
                                            .side_by_side = false,
                                            .trains = training.has_value()});
    const HostTensor dy = training ? make_output_gradient(shape, options.seed) : HostTensor();
    for (const ScheduleOptions& schedule : schedules) {
      if (std::string why; training ? !backend->supports_training(inputs, schedule, *training, why)
                                    : !backend->supports(schedule.kind, why)) {
        std::cout << fmt::format("{}: {} skipped: {}\n", workload.name, to_string(schedule), why);
        continue;
      }
      const std::unique_ptr<LayerExecution> execution =
          training ? backend->prepare_training(inputs, dy, schedule, *training)
                   : backend->prepare(inputs, schedule);
      run_once(*execution, l2, options.backend);
      std::cout << fmt::format("{}: {} ran once\n", workload.name, to_string(schedule));
    }
  }
  return ExitCode::kOk;
}

constexpr const char* kTrace = "trace.json";

std::string counters_name(std::size_t number, const ScheduleOptions& options) {
  std::string schedule = to_string(options);
  std::ranges::replace(schedule, ':', '-');
  return fmt::format("counters-{}-{}.json", number, schedule);
}

/// What may come to lie beside the rows.
std::vector<std::string> files_beside(std::size_t workloads, const std::vector<ScheduleOptions>& schedules) {
  std::vector<std::string> names = {kTrace};
  for (std::size_t number = 1; number <= workloads; ++number) {
    for (const ScheduleOptions& schedule : schedules) {
      names.push_back(counters_name(number, schedule));
    }
  }
  return names;
}

/// Raw counters of every schedule as counters-<workload's number>-<schedule>.json: --source recorded:FILE
/// reads them again, under other metrics or formulas.
void record_counters(const LayerProfile& layer, std::size_t number, const std::string& device,
                     const std::filesystem::path& directory) {
  for (std::size_t s = 0; s < layer.counted.size(); ++s) {
    const CountedLayer& counted = layer.counted[s];
    if (counted.plan.passes > 0) {
      write_recording({counted.source, device, counted.plan, counted.ranges},
                      directory / counters_name(number, layer.study.schedules[s].options));
    }
  }
}

ExitCode profile(const ProfileOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const System system = chosen_system(options);
  const bool omnimoe = system == System::kOmniMoe;
  if (!omnimoe) {
    require_forward(options, "of the baselines is forward: their backward is an oracle alone");
  }
  const auto training = asked_training(options);
  require_meaningful(options);
  if (options.external) {
    return omnimoe ? run_for_external_profiler(options) : run_systems_for_external_profiler(options);
  }
  StandardTables out(options.tables);
  const auto schedules = omnimoe ? chosen_schedules(options) : baseline_schedules(options, system);
  const SamplingOptions sampling = sampling_options(options);
  const auto points = omnimoe ? plan(options) : std::vector<ProfiledPoint>();
  std::deque<SystemLineup> lineups = omnimoe ? std::deque<SystemLineup>() : plan_systems(options);
  const auto backend = make_backend(options.backend);
  const std::size_t workloads = omnimoe ? points.size() : lineups.size();
  const ProfileSource source = make_profile_source(options.source, options.backend, options.metrics);
  ResultWriter writer =
      open_results(options.output, run_header(invocation, *backend), files_beside(workloads, schedules));
  const std::filesystem::path& directory = writer.directory();

  Progress progress(std::cerr, progress_style(options), static_cast<std::int64_t>(workloads) + 1);
  progress.begin("ceilings");
  const DeviceCeilings ceilings = obtain_ceilings(options, *backend);
  for (const ResultRow& row : ceiling_rows(ceilings, backend->name())) {
    writer.write(row);
  }
  progress.advance();
  out.text() << source.text << '\n';
  out.show("ceilings", ceilings_table(ceilings));
  out.text() << '\n';

  std::vector<LayerProfile> profiles;
  const auto record = [&](LayerProfile profile) {
    profiles.push_back(std::move(profile));
    for (const ResultRow& row : profile_rows(profiles.back())) {
      writer.write(row);
    }
    record_counters(profiles.back(), profiles.size(), backend->device(), directory);
    progress.advance();
  };
  for (; !lineups.empty(); lineups.pop_front()) {  // inputs are gone before the next ones are made
    progress.begin(lineups.front().workload());
    const auto subjects = lineups.front().subjects();
    record(profile_system(*backend, subjects, sampling, source.setup(), ceilings, source.tracer.get(),
                          [&](std::string_view what) { progress.detail(what); }));
  }
  for (const ProfiledPoint& point : points) {
    const auto& workload = point.workload;  // no bindings: clang 14 captures none
    const auto& shape = point.shape;
    progress.begin(workload.name);
    const auto measure = [&] {
      const LayerInputs inputs = make_inputs(workload, shape, options.seed,
                                             {.backend = backend->name(),
                                              .schedules = schedules,
                                              .judged_tokens = kJudgedTokens,
                                              .trains = training.has_value()});
      const auto say = [&](std::string_view what) { progress.detail(what); };
      if (training) {
        const HostTensor dy = make_output_gradient(inputs.shape, inputs.seed);
        return profile_training(*backend, inputs, dy, schedules, sampling, *training,
                                gradient_judge(inputs, dy, *training), source.setup(), ceilings,
                                source.tracer.get(), say);
      }
      return profile_layer(*backend, inputs, schedules, sampling, oracle_judge(inputs, kJudgedTokens),
                           source.setup(), ceilings, source.tracer.get(), say);
    };
    record(or_failure(measure, [&](ExitCode code, const std::string& reason) {
      return failed_profile(failed_study({workload, shape, options.seed},
                                         {.schedules = schedules, .sampling = sampling, .training = training},
                                         backend->name(), code, reason),
                            ceilings);
    }));
  }
  progress.finish();
  bool sums_hold = true;
  std::vector<LayerStudy> studies;
  for (const LayerProfile& layer : profiles) {
    print_profile(out, layer, backend->device());
    out.text() << '\n';
    sums_hold = sums_hold && stage_sums_hold(layer);
    studies.push_back(layer.study);
  }
  write_chrome_trace(profiles, backend->device(), directory / kTrace);
  out.text() << fmt::format("{}\nrows:  {}/rows.jsonl, rows.csv, run.json\n", profile_legend(),
                            directory.string());
  out.text() << fmt::format("trace: {}/trace.json (open it at ui.perfetto.dev)\n", directory.string());
  out.text() << failures_text(studies);
  if (const ExitCode code = outcome(studies); code != ExitCode::kOk) {
    return code;
  }
  if (!sums_hold) {
    return ExitCode::kCheckFailed;
  }
  return source.asked_in_vain ? ExitCode::kNoCounters : ExitCode::kOk;
}

}  // namespace

Command add_profile(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<ProfileOptions>();
  options->max_time_s = 2;
  const Cli sub = app.add_subcommand(
      "profile",
      "every stage of every schedule: time, bytes at each level, FLOP, what bounds it; writes "
      "rows and a trace");
  sub.footer(examples(
      {"moescope profile", "moescope profile --backend cuda --preset table-a-4096-512 --workload gaussian:1",
       "moescope profile --backend cuda --metrics hbm_read_bytes,sm__warps_active.avg --schedule staircase",
       "moescope profile --direction backward --save scores --backend cuda",
       "moescope profile --system gshard --preset small -L 64",
       "ncu --nvtx --nvtx-include \"router_select/\" moescope profile --backend cuda --profile"}));
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  add_machine_options(sub, *options);
  add_sampling_options(sub, *options);
  sub.add_option("--source", options->source,
                 "counters: cupti (default on cuda), perf_event (default on cpu), recorded:FILE or none")
      .type_name("NAME");
  sub.add_option("--metrics", options->metrics,
                 "comma-separated: sets (traffic, tensor, full), moescope's names, counters of the vendor "
                 "(default full)")
      .type_name("NAME,...")
      .delimiter(',');
  sub.add_option("--ceilings", options->ceilings,
                 "rows of `moescope ceilings` on this device (default: measured now)")
      .type_name("ROWS");
  sub.add_flag("--profile", options->external,
               "run each schedule once between cudaProfilerStart and cudaProfilerStop, with our own "
               "counters off, for ncu or nsys; writes nothing");
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: results/<run id>");
  return {sub, [options, invocation] { return profile(*options, invocation); }};
}

}  // namespace moescope
