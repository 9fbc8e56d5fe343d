#include "experiments/points/compare_systems.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iostream>
#include <iterator>
#include <utility>

#include "core/workload/trace_file.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/points/compare_report.hpp"
#include "experiments/points/system_lineup.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/system_study.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

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
    if (!reason.empty() && point.status != Status::kFailed) {
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

/// The options for each workload asked for, "#layer=all" of a trace as one a layer.
std::vector<CommonOptions> one_workload_each(const CommonOptions& options) {
  std::vector<CommonOptions> jobs;
  for (const std::string& text : options.workloads) {
    for (const std::string& workload : expand_trace_layers(text)) {
      jobs.push_back(options);
      jobs.back().workloads = {workload};
    }
  }
  return jobs.empty() ? std::vector{options} : jobs;
}

}  // namespace

ExitCode compare_systems(const CommonOptions& options, const Invocation& invocation) {
  const SamplingOptions sampling = sampling_options(options);
  const L2State l2 = parse_l2_state(options.l2);
  (void)chosen_schedules(options);  // refused before anything is written
  std::deque<SystemLineup> lineups;
  for (CommonOptions& job : one_workload_each(options)) {
    lineups.emplace_back(std::move(job));
  }
  const auto backend = make_backend(options.backend);
  ResultWriter writer = open_results(options.output, run_header(invocation, *backend));
  const std::filesystem::path& directory = writer.directory();
  std::vector<std::vector<LayerStudy>> by_workload;
  {
    Progress progress(std::cerr, progress_style(options), std::ssize(lineups));
    for (; !lineups.empty(); lineups.pop_front()) {  // inputs are gone before the next ones are made
      progress.begin(lineups.front().workload());
      const auto subjects = lineups.front().subjects();
      by_workload.push_back(study_systems(*backend, subjects, sampling, l2,
                                          [&](std::string_view what) { progress.detail(what); }));
      for (const LayerStudy& study : by_workload.back()) {
        for (const ResultRow& row : study_rows(study)) {
          writer.write(row);
        }
      }
      progress.advance();
    }
  }
  std::vector<LayerStudy> studies;
  for (std::vector<LayerStudy>& part : by_workload) {
    std::cout << (studies.empty() ? "" : "\n");
    print(part, backend->device());
    std::ranges::move(part, std::back_inserter(studies));
  }
  for (const LayerStudy& study : studies) {
    const ScheduleStudy& point = study.schedules.front();
    if (options.explain && !point.explanation.empty()) {
      std::cout << fmt::format("{}: auto chose {}\n", study_label(study), point.explanation);
    }
  }
  std::cout << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", directory.string());
  std::cout << failures_text(studies);
  return outcome(studies);
}

}  // namespace moescope
