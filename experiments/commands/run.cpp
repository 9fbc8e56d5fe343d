#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <utility>

#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/study_point.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/layer_study.hpp"
#include "profiler/study/rank_rows.hpp"
#include "profiler/study/system_study.hpp"
#include "profiler/text/format.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/system_oracle.hpp"

namespace moescope {
namespace {

constexpr std::string_view kForwardAlone = "of the baselines is forward: their backward is an oracle alone";
/// A layer on several ranks has no cost of one device.
bool has_cost(const AnalyticCost& cost) { return !cost.traffic.empty() || !cost.flop.empty(); }

TableCell bytes_of(const AnalyticCost& cost, Stage stage, MemoryLevel level) {
  if (!has_cost(cost)) {
    return "-";
  }
  return bytes_cell(static_cast<double>(cost.bytes(stage, level)));
}

TableCell flop_cell(std::int64_t count) {
  const auto flop = static_cast<double>(count);
  return {format_engineering(flop, "flop"), flop};
}

Table stage_table(const ScheduleStudy& point) {
  Table table({{"stage", Align::kLeft},
               {"time", Align::kRight, Need::kAlways},
               {"min"},
               {"max"},
               {"HBM bytes"},
               {"requested bytes"},
               {"useful flop"},
               {"executed flop", Align::kRight, Need::kExtra},
               {"workspace", Align::kRight, Need::kExtra}});
  for (const StageSamples& samples : point.times.stages) {
    const Stage stage = samples.stage;
    if (stage == Stage::kLayer) {
      table.add_rule();
    }
    const auto memory = std::ranges::find(point.memory, stage, &StageMemory::stage);
    table.add_row({to_string(stage), seconds_cell(samples.median_s()), seconds_cell(samples.min_s()),
                   seconds_cell(samples.max_s()), bytes_of(point.cost, stage, MemoryLevel::kHbm),
                   bytes_of(point.cost, stage, MemoryLevel::kL2),
                   has_cost(point.cost) ? flop_cell(point.cost.useful_flop(stage)) : TableCell("-"),
                   has_cost(point.cost) ? flop_cell(point.cost.executed_flop(stage)) : TableCell("-"),
                   memory == point.memory.end() ? TableCell("-")
                                                : bytes_cell(static_cast<double>(memory->workspace_bytes))});
  }
  return table;
}

/// Where the time goes.
std::string conclusion(const ScheduleStudy& point) {
  const StageSamples* layer = point.times.find(Stage::kLayer);
  const StageSamples* longest = nullptr;
  for (const StageSamples& stage : point.times.stages) {
    if (&stage != layer && (longest == nullptr || stage.median_s() > longest->median_s())) {
      longest = &stage;
    }
  }
  if (layer == nullptr || longest == nullptr) {
    return "";
  }
  return fmt::format("most of the time: {}, {:.0f} % of the layer\n", to_string(longest->stage),
                     100 * longest->median_s() / layer->median_s());
}

/// What became of the pairs, and the rows that were executed for them.
std::string ffn_text(const FfnStudy& ffn) {
  std::string text;
  if (ffn.dropless_error) {
    text = fmt::format("{} of {} pairs dropped ({:.2f} %), {} added; {} tokens left without experts{}\n",
                       ffn.dropped_pairs, ffn.chosen_pairs, 100 * ffn.dropped_share(), ffn.added_pairs,
                       ffn.tokens_without,
                       ffn.capacity > 0 ? fmt::format("; {} rows an expert", ffn.capacity) : "");
  }
  text += fmt::format("rows of experts: {} executed, {:.3f} a pair that runs", ffn.rows.executed,
                      ffn.rows.padding_waste());
  if (ffn.dropless_error) {
    text += fmt::format("; dropless {}, {:.3f}\noutput against that of all pairs: {}", ffn.dropless.executed,
                        ffn.dropless.padding_waste(), ffn.dropless_error->describe());
  }
  return text + '\n';
}

void print(TableOutput& out, const LayerStudy& study, const ScheduleStudy& point, const std::string& device,
           bool explain) {
  const bool scheduled = !study.baseline || study.baseline->has_routing();
  out.text() << fmt::format("{}  {}  {}  seed {}  L2 {}\n", study.workload, study_label(study),
                            to_string(study.shape.dtype), study.seed, to_string(study.sampling.l2));
  out.text() << fmt::format("{}{}on {} ({})\n\n",
                            study.save ? backward_words(study) + ", " : "",
                            scheduled ? fmt::format("{} ", to_string(point.ran)) : "", study.backend, device);
  out.show("stages", stage_table(point));
  out.text() << '\n' << conclusion(point);
  if (point.ranks) {
    out.text() << '\n';
    out.show("ranks", rank_table(*point.ranks));
    out.text() << fmt::format("\n{}\n", rank_text(*point.ranks));
  }
  if (const StageSamples* layer = point.times.find(Stage::kLayer)) {
    out.text() << fmt::format("median of {} samples, {} discarded; bytes and flop are analytic\n",
                              layer->count(), point.times.discarded);
  }
  if (scheduled) {
    out.text() << fmt::format("reuse {:.1f} pairs per active expert", study.skew.reuse)
               << (study.save ? std::string("\n")
                              : fmt::format("; floor of the expert stage {}\n",
                                            format_bytes(static_cast<double>(study.floor_bytes))));
  }
  if (point.ffn) {
    out.text() << ffn_text(*point.ffn);
  }
  if (point.ranks) {
    out.text() << fmt::format("weights of the rank that stores most {}\n",
                              format_bytes(static_cast<double>(point.weight_bytes)));
  } else {
    out.text() << fmt::format("weights {}; peak {}: {}\n",
                              format_bytes(static_cast<double>(point.weight_bytes)),
                              format_bytes(static_cast<double>(point.peak_bytes)),
                              study.save ? "inputs, gradients, what the forward kept and working memory"
                                         : "weights, batch, routing and the largest workspace");
  }
  out.text() << (point.error_of.empty() ? "" : fmt::format("nearest to its tolerance, {}: ", point.error_of))
             << (point.error ? point.error->describe() : fmt::format("no error: {}", point.error_reason))
             << '\n';
  if (explain && !point.explanation.empty()) {
    out.text() << fmt::format("auto chose {}\n", point.explanation);
  }
  const std::string_view result = study.save ? "gradients are" : "output is";
  out.text() << (point.deterministic
                     ? fmt::format("{} bit-identical from run to run\n", result)
                     : fmt::format("{} not bit-identical from run to run: the last bits may differ\n",
                                   result));
}

/// How to measure, and where progress is shown.
struct Bench {
  MoeBackend& backend;
  SamplingOptions sampling;
  Progress& progress;

  StudyProgress say() const {
    return [this](std::string_view what) { progress.detail(what); };
  }
};

/// OmniMoE under the schedule asked for.
LayerStudy study_omnimoe(const CommonOptions& options, const Bench& bench) {
  auto schedules = chosen_schedules(options);
  if (options.schedules.empty()) {
    schedules.resize(1);
    schedules.front().kind = ScheduleKind::kStaircase;
  }
  const auto workloads = chosen_workloads(options);
  if (schedules.size() != 1 || workloads.size() != 1) {
    throw InvalidArgument(schedules.size() != 1 ? "schedule" : "workload",
                          fmt::format("{} of them", std::max(schedules.size(), workloads.size())),
                          "run takes one; compare takes several");
  }
  const LayerShape shape = resolve_shape(options, workloads[0].spec);
  if (std::string why; !bench.backend.supports(schedules[0].kind, why)) {
    throw InvalidArgument("schedule", to_string(schedules[0].kind), why);
  }
  const LayerInputs inputs = make_inputs(workloads[0], shape, options.seed,
                                         {.backend = bench.backend.name(),
                                          .schedules = schedules,
                                          .judged_tokens = kJudgedTokens,
                                          .trains = asked_training(options).has_value()});
  if (std::string why; !bench.backend.supports_layer(inputs, schedules[0], why)) {
    throw InvalidArgument("schedule", to_string(schedules[0]), why);
  }
  bench.progress.begin(workloads[0].name);
  if (const auto training = asked_training(options)) {
    return study_omnimoe_step(bench.backend, inputs, schedules, bench.sampling, *training, bench.say());
  }
  return study_layer(bench.backend, inputs, schedules, bench.sampling, oracle_judge(inputs, kJudgedTokens),
                     bench.say());
}

LayerStudy study_baseline(const CommonOptions& options, System system, const Bench& bench) {
  const NamedWorkload workload = system_workload(options);
  const SystemShape shape = resolve_system(options, system, workload.spec);
  if (std::string why; !bench.backend.supports_system(system, why)) {
    throw InvalidArgument("system", to_string(system), why);
  }
  const SystemInputs inputs = make_system_inputs(workload, shape, options);
  bench.progress.begin(shape.label());
  SystemSubject subject;
  subject.baseline = &inputs;
  subject.judge = system_judge(inputs, kJudgedTokens);
  subject.assigned_judge = system_assigned_judge(inputs, kJudgedTokens);
  auto studies = study_systems(bench.backend, {&subject, 1}, bench.sampling, bench.say());
  return std::move(studies.front());
}

ExitCode run(const CommonOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const SamplingOptions sampling = sampling_options(options);
  const System system = chosen_system(options);
  require_meaningful(options);
  (void)rank_options(options);  // refused before a device is looked for
  StandardTables out(options.tables);
  const auto backend = make_backend(options.backend);
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  Progress progress(std::cerr, progress_style(options), 1);
  const Bench bench{*backend, sampling, progress};
  if (system != System::kOmniMoe) {
    require_forward(options, kForwardAlone);
  }
  const LayerStudy study =
      system == System::kOmniMoe ? study_omnimoe(options, bench) : study_baseline(options, system, bench);
  const ScheduleStudy& point = study.schedules[0];
  if (point.status != Status::kOk) {
    throw Error(point.code, point.reason);
  }
  progress.finish();
  print(out, study, point, backend->device(), options.explain);
  if (writer) {
    for (const ResultRow& row : study_rows(study)) {
      writer->write(row);
    }
    out.text() << "rows: " << writer->directory().string() << "/rows.jsonl, rows.csv\n";
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_run(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
  const Cli sub = app.add_subcommand(
      "run", "one configuration through the whole layer: time, bytes and flop per stage, error");
  sub.footer(examples({"moescope run", "moescope run --schedule expert_centric --group-size 32 -L 1024",
                       "moescope run --preset table-a-1024-512 --workload zipf:1 --output results/zipf1",
                       "moescope run --direction backward --save scores",
                       "moescope run --system peer --preset table-a -L 64",
                       "moescope run --ranks 4 --placement strips --exchange dispatch"}));
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  add_rank_options(sub, *options);
  add_machine_options(sub, *options);
  add_sampling_options(sub, *options);
  add_explain_option(sub, *options);
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return run(*options, invocation); }};
}

}  // namespace moescope
