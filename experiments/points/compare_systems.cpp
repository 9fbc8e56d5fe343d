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
#include "profiler/study/fastest.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/system_study.hpp"

namespace moescope {
namespace {

std::string schedule_name(const LayerStudy& study) {
  const bool scheduled = !study.baseline || study.baseline->has_routing();
  return scheduled ? to_string(study.schedules.front().options) : "none";
}

/// Every layer that was measured, the fastest first.
std::vector<Standing> standings_of(const std::vector<LayerStudy>& studies) {
  std::vector<Standing> all;
  for (const LayerStudy& study : studies) {
    if (is_measured(study.schedules.front())) {
      const bool named = !study.baseline || !study.schedules.front().options.tokens.every();
      const std::string schedule = named ? fmt::format(" {}", schedule_name(study)) : "";
      const auto system = study.baseline ? to_string(study.baseline->system) : "omnimoe";
      all.push_back({&study.schedules.front(), fmt::format("{}{}", system, schedule), false, std::nullopt});
    }
  }
  return ranked(std::move(all));
}

void add_study(Table& table, const LayerStudy& study, const std::vector<Standing>& standings) {
  const ScheduleStudy& point = study.schedules.front();
  if (!is_measured(point)) {
    table.add_row({study_label(study), schedule_name(study), to_string(point.status), "-", "-", "-", "-", "-",
                   "-", "-", "-", "-", "-"});
    return;
  }
  const StageSamples& layer = *point.times.find(Stage::kLayer);
  const auto experts = expert_samples(point.times);
  const auto bytes = [](std::int64_t value) { return bytes_cell(static_cast<double>(value)); };
  table.add_row(
      {study_label(study), schedule_name(study), seconds_cell(layer.median_s()), percent_cell(layer.spread()),
       against_fastest(*std::ranges::find(standings, &point, &Standing::schedule)),
       experts ? seconds_cell(experts->median_s()) : TableCell("-"), bytes(point.weight_bytes),
       bytes(point.peak_bytes), bytes(point.cost.bytes(Stage::kLayer, MemoryLevel::kL2)),
       point.ffn ? ratio_cell(point.ffn->rows.padding_waste()) : TableCell("-"),
       point.ffn && point.ffn->dropless_error ? percent_cell(point.ffn->dropped_share()) : TableCell("-"),
       point.ffn && point.ffn->dropless_error
           ? TableCell(fmt::format("{:.1e}", point.ffn->dropless_error->relative_error),
                       point.ffn->dropless_error->relative_error)
           : TableCell("-"),
       point.error
           ? TableCell(fmt::format("{:.1e}", point.error->relative_error), point.error->relative_error)
           : TableCell("-")});
}

void print(TableOutput& out, const std::vector<LayerStudy>& studies, const std::string& device,
           const std::string& repro) {
  using enum Need;
  const auto any = [&](const auto& has) {
    return std::ranges::any_of(studies,
                               [&](const LayerStudy& study) { return has(study.schedules.front()); });
  };
  // What no layer here has is for programs alone.
  const bool rules = any([](const ScheduleStudy& point) { return point.ffn && point.ffn->has_rule; });
  const bool ffn = any([](const ScheduleStudy& point) { return point.ffn.has_value(); });
  const Need ffn_need = rules ? kAlways : ffn ? kUsual : kPrograms;
  const Need rule_need = rules ? kAlways : kPrograms;
  Table table({{"layer", Align::kLeft, kAlways},
               {"schedule", Align::kLeft},
               {"time", Align::kRight, kAlways},
               {"spread"},
               {"vs fastest", Align::kRight, kAlways},
               {"experts"},
               {"weights"},
               {"peak", Align::kRight, kExtra},
               {"requested bytes", Align::kRight, kExtra},
               {"padding", Align::kRight, ffn_need},
               {"dropped", Align::kRight, rule_need},
               {"loss", Align::kRight, rule_need},
               {"error", Align::kRight, kExtra}});
  std::string reasons;
  const auto all = standings_of(studies);
  for (const LayerStudy& study : studies) {
    add_study(table, study, all);
    const ScheduleStudy& point = study.schedules.front();
    const std::string& reason = point.status == Status::kOk ? point.error_reason : point.reason;
    if (!reason.empty() && point.status != Status::kFailed) {
      reasons += fmt::format("{}: {}\n", study_label(study), reason);
    }
  }
  const LayerStudy& first = studies.front();
  out.text() << fmt::format("{}, {}, {} on {}, L2 {}, seed {}\n\n", first.workload,
                            to_string(first.shape.dtype), first.backend, device, to_string(first.sampling.l2),
                            first.seed);
  out.show("systems", table);
  out.text()
      << fmt::format("\n{}\n{}", conclusion_text(all), noise_text(studies, repro))
      << "\ntimes: median over alternating samples, spread (max - min) / median; vs fastest: round by "
         "round, ~ where it may be 1; peak: weights, batch, routing and the largest workspace of a "
         "stage; requested bytes: analytic, the whole layer; error: relative, against the fp64 oracle "
         "on sampled tokens\n"
      << (ffn ? "padding: rows executed (on a GPU in tiles of 128) over pairs that run\n" : "")
      << (rules ? "dropped: share of the router's pairs; loss: relative error against the output of all of "
                  "them\n"
                : "")
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
  StandardTables out(options.tables);
  const SamplingOptions sampling = sampling_options(options);
  (void)chosen_schedules(options);  // refused before anything is written
  if (options.ranks.value_or(1) > 1) {
    throw InvalidArgument("ranks", fmt::to_string(*options.ranks), "cannot be given beside --system here");
  }
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
      by_workload.push_back(
          study_systems(*backend, subjects, sampling, [&](std::string_view what) { progress.detail(what); }));
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
    out.text() << (studies.empty() ? "" : "\n");
    print(out, part, backend->device(), typed_command(invocation));
    std::ranges::move(part, std::back_inserter(studies));
  }
  for (const LayerStudy& study : studies) {
    const ScheduleStudy& point = study.schedules.front();
    if (options.explain && !point.explanation.empty()) {
      out.text() << fmt::format("{}: auto chose {}\n", study_label(study), point.explanation);
    }
  }
  out.text() << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", directory.string());
  out.text() << failures_text(studies);
  return outcome(studies);
}

}  // namespace moescope
