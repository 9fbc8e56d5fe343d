#include "experiments/compare_systems.hpp"

#include <fmt/format.h>

#include <deque>
#include <iostream>
#include <utility>

#include "experiments/backends.hpp"
#include "experiments/compare_report.hpp"
#include "profiler/format.hpp"
#include "profiler/layer_rows.hpp"
#include "profiler/system_study.hpp"
#include "profiler/table.hpp"
#include "reference/layer_check.hpp"
#include "reference/system_oracle.hpp"

namespace moescope {
namespace {

/// The layers asked for, with their inputs. Shapes are resolved, hence refused, before any inputs are made.
class Lineup {
 public:
  explicit Lineup(CommonOptions options)
      : options_(std::move(options)), workload_(system_workload(options_)) {
    if (options_.preset.empty()) {
      options_.preset = "small";
    }
    CommonOptions without_schedules = options_;  // these are omnimoe's alone
    without_schedules.schedules.clear();
    for (const std::string& name : options_.systems) {
      const System system = parse_system(name);
      if (system == System::kOmniMoe) {
        resolve_shape(options_, workload_.spec);
      } else {
        baselines_.push_back(resolve_system(without_schedules, system));
      }
      systems_.push_back(system);
    }
  }

  std::vector<SystemSubject> subjects() {
    std::vector<SystemSubject> subjects;
    auto baseline = baselines_.begin();
    for (const System system : systems_) {
      if (system == System::kOmniMoe) {
        add_omnimoe(subjects);
      } else {
        const SystemInputs& inputs =
            baseline_inputs_.emplace_back(make_system_inputs(workload_, *baseline++, options_.seed));
        SystemSubject& subject = subjects.emplace_back();
        subject.baseline = &inputs;
        subject.judge = system_judge(inputs, kJudgedTokens);
      }
    }
    return subjects;
  }

 private:
  void add_omnimoe(std::vector<SystemSubject>& subjects) {
    const LayerInputs& inputs = omnimoe_inputs_.emplace_back(
        make_inputs(workload_, resolve_shape(options_, workload_.spec), options_.seed));
    CommonOptions options = options_;
    if (options.schedules.empty()) {
      options.schedules = {"expert_centric", "staircase"};
    }
    for (const ScheduleOptions& schedule : chosen_schedules(options)) {
      SystemSubject& subject = subjects.emplace_back();
      subject.omnimoe = &inputs;
      subject.schedule = schedule;
      subject.judge = oracle_judge(inputs, kJudgedTokens);
    }
  }

  CommonOptions options_;
  NamedWorkload workload_;
  std::vector<System> systems_;
  std::vector<SystemShape> baselines_;
  std::deque<LayerInputs> omnimoe_inputs_;  // subjects refer to them
  std::deque<SystemInputs> baseline_inputs_;
};

std::vector<std::string> study_cells(const LayerStudy& study) {
  const ScheduleStudy& point = study.schedules.front();
  const bool scheduled = !study.baseline || study.baseline->has_routing();
  std::vector<std::string> cells = {study_label(study),
                                    scheduled ? std::string(to_string(point.options.kind)) : "none"};
  const StageSamples* layer = point.times.find(Stage::kLayer);
  if (point.status != Status::kOk || layer == nullptr) {
    cells.emplace_back(to_string(point.status));
    cells.resize(9, "-");
    return cells;
  }
  const auto experts = expert_samples(point.times);
  const auto bytes = [](std::int64_t value) { return format_bytes(static_cast<double>(value)); };
  cells.push_back(format_seconds(layer->median_s()));
  cells.push_back(format_percent(layer->spread()));
  cells.push_back(experts ? format_seconds(experts->median_s()) : "-");
  cells.push_back(bytes(point.weight_bytes));
  cells.push_back(bytes(point.peak_bytes));
  cells.push_back(bytes(point.cost.bytes(Stage::kLayer, MemoryLevel::kL2)));
  cells.push_back(point.error ? fmt::format("{:.1e}", point.error->relative_error) : "-");
  return cells;
}

void print(const std::vector<LayerStudy>& studies, const std::string& device) {
  Table table({{"layer", Align::kLeft},
               {"schedule", Align::kLeft},
               {"time"},
               {"spread"},
               {"experts"},
               {"weights"},
               {"peak"},
               {"requested bytes"},
               {"error"}});
  std::string reasons;
  for (const LayerStudy& study : studies) {
    table.add_row(study_cells(study));
    const ScheduleStudy& point = study.schedules.front();
    const std::string& reason = point.status == Status::kOk ? point.error_reason : point.reason;
    if (!reason.empty()) {
      reasons += fmt::format("{}: {}\n", study_label(study), reason);
    }
  }
  const LayerStudy& first = studies.front();
  std::cout << fmt::format("{}, {}, {} on {}, L2 {}, seed {}\n\n", first.workload,
                           to_string(first.shape.dtype), first.backend, device, to_string(first.l2),
                           first.seed);
  std::cout << table.text() << '\n';
  std::cout << "times: median over alternating samples, spread (max - min) / median; peak: weights, batch, "
               "routing and the largest workspace of a stage\nrequested bytes: analytic, the whole layer; "
               "error: relative, against the fp64 oracle on sampled tokens\n"
            << reasons;
}

}  // namespace

ExitCode compare_systems(const CommonOptions& options, const Invocation& invocation) {
  const SamplingOptions sampling = sampling_options(options);
  const L2State l2 = parse_l2_state(options.l2);
  Lineup lineup(options);
  const auto backend = make_backend(options.backend);
  const auto subjects = lineup.subjects();
  RunHeader header = run_header(invocation, *backend);
  const std::filesystem::path directory = options.output.empty()
                                              ? std::filesystem::path("results") / header.run_id
                                              : std::filesystem::path(options.output);
  ResultWriter writer(directory, std::move(header));
  Progress progress(std::cerr, progress_style(options), 1);
  progress.begin("systems");
  const auto studies =
      study_systems(*backend, subjects, sampling, l2, [&](std::string_view what) { progress.detail(what); });
  progress.finish();
  for (const LayerStudy& study : studies) {
    for (const ResultRow& row : study_rows(study)) {
      writer.write(row);
    }
  }
  print(studies, backend->device());
  std::cout << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", directory.string());
  return outcome(studies);
}

}  // namespace moescope
