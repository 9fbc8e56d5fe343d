#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>

#include "core/base/line_text.hpp"
#include "core/schedule/skew.hpp"
#include "core/workload/trace_writer.hpp"
#include "experiments/inspection/inspect_trace.hpp"
#include "experiments/inspection/training_memory.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/layer_study.hpp"
#include "profiler/text/histogram.hpp"

namespace moescope {
namespace {

Table skew_table(const std::vector<ResultRow>& rows) {
  Table table({{"metric", Align::kLeft},
               {"value"},
               {"unit", Align::kLeft},
               {"workload", Align::kLeft, Need::kPrograms}});
  for (const ResultRow& row : rows) {
    table.add_row({row.metric, TableCell(fmt::format("{:.6g}", row.value.value_or(0)), row.value.value_or(0)),
                   row.unit, row.workload});
  }
  return table;
}

std::string quantiles_text(const Routing& routing) {
  constexpr std::array kFractions = {0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0};
  const auto loads = load_quantiles(routing, kFractions);
  std::string text = "load quantiles:";
  for (std::size_t i = 0; i < kFractions.size(); ++i) {
    text += fmt::format(" p{:g}={}", 100 * kFractions[i], loads[i]);
  }
  return text;
}

struct InspectOptions : CommonOptions {
  std::string file;
  std::string save_trace;
};

/// Empty for the forward, which saves nothing.
std::vector<SaveMode> saves_of(const InspectOptions& options) {
  if (const auto save = asked_save(options)) {
    return {*save};
  }
  if (asked_direction(options) == Direction::kForward) {
    return {};
  }
  return {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores};
}

/// One workload on one layer: OmniMoE, or a baseline.
struct Inspected {
  NamedWorkload workload;
  LayerShape shape;
  std::optional<SystemShape> baseline;

  std::string label() const { return baseline ? baseline->label() : shape.label(); }
};

Inspected resolve(NamedWorkload workload, System system, const CommonOptions& options) {
  if (system == System::kOmniMoe) {
    const LayerShape shape = resolve_shape(options, workload.spec);
    require_room(workload.spec, shape);
    return {std::move(workload), shape, std::nullopt};
  }
  const SystemShape shape = resolve_system(options, system, workload.spec);
  if (!shape.has_routing()) {
    throw InvalidArgument("system", to_string(system), "routes nothing");
  }
  return {std::move(workload), shape.row_shape(), shape};
}

ExitCode inspect(const InspectOptions& options, const Invocation& invocation) {
  apply_threads(options);
  StandardTables out(options.tables);
  if (const auto trace = whole_trace(options.file, options.save_trace, options)) {
    return inspect_trace(*trace, options, invocation, out);
  }
  const System system = chosen_system(options);
  require_meaningful(options);
  const std::vector<SaveMode> saves = saves_of(options);
  if (system != System::kOmniMoe) {
    require_forward(options, "is for omnimoe here; of baselines only forward");
  }
  std::vector<Inspected> points;
  std::vector<NamedWorkload> workloads = system == System::kOmniMoe || !options.workloads.empty()
                                             ? chosen_workloads(options)
                                             : std::vector{named_workload("gaussian:1")};
  const std::vector<std::filesystem::path> inputs_read = workload_files(workloads);
  for (NamedWorkload& workload : workloads) {
    points.push_back(resolve(std::move(workload), system, options));
  }
  if (!options.save_trace.empty() && points.size() != 1) {
    throw InvalidArgument("save_trace", options.save_trace, "one file holds the routing of one workload");
  }
  const auto backend = make_backend(options.backend);
  if (!options.save_trace.empty()) {
    require_trace_name(options.save_trace);
    const OutputFile claimed("save_trace", options.save_trace, inputs_read);
  }
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  for (const Inspected& inspected : points) {
    const std::string& name = inspected.workload.name;
    std::optional<LayerInputs> inputs;  // of omnimoe
    if (!inspected.baseline) {
      inputs = make_inputs(inspected.workload, inspected.shape, options.seed,
                           {.backend = backend->name(), .schedules = {}});
    }
    const Routing routing =
        inputs ? route(*backend, *inputs)
               : route_system(*backend, make_system_inputs(inspected.workload, *inspected.baseline, options));
    const Point point = inspected.baseline
                            ? layer_point(*inspected.baseline, backend->name(), name, options.seed)
                            : layer_point(inspected.shape, backend->name(), name, options.seed);
    auto rows = skew_rows(point, compute_skew(routing));
    out.text() << fmt::format("{}  {}  seed {}\n\n", one_line(name), inspected.label(), options.seed);
    out.show("skew", skew_table(rows));
    out.text() << fmt::format("\n{}\n\n", quantiles_text(routing));
    out.show("load histogram", load_histogram(expert_loads(routing)));
    out.text() << '\n';
    if (!saves.empty()) {
      TrainingMemory memory = training_memory(*inputs, routing, point, saves);
      out.text() << "memory of a training step\n\n";
      out.show("memory of a training step", memory.table);
      out.text() << '\n';
      std::ranges::move(memory.rows, std::back_inserter(rows));
    }
    if (!options.save_trace.empty()) {
      write_trace(routing, options.save_trace, to_string(system),
                  inspected.baseline ? inspected.baseline->heads : 1);
      out.text() << fmt::format("trace: {}; replay it with --workload trace:{}\n", options.save_trace,
                                options.save_trace);
    }
    for (const ResultRow& row : rows) {
      if (writer) {
        writer->write(row);
      }
    }
  }
  if (writer) {
    out.text() << "rows: " << writer->directory().string() << "/rows.jsonl, rows.csv\n";
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_inspect(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<InspectOptions>();
  const Cli sub = app.add_subcommand(
      "inspect", "how unevenly a workload loads its experts: skew metrics and a histogram");
  sub.add_option("file", options->file,
                 "a trace: skew of each of its layers, as --workload trace:FILE#layer=all")
      .type_name("FILE");
  sub.footer(examples({"moescope inspect", "moescope inspect mine.npz",
                       "moescope inspect --preset table-a-1024-512 --workload zipf:1.2",
                       "moescope inspect --workload trace:routing.npy --grid 64x64 -d 256",
                       "moescope inspect --system gshard --workload zipf:1",
                       "moescope inspect --preset table-a-1024-512 --direction backward",
                       "moescope inspect --system peer --workload hot:0.5,4 --save-trace peer.safetensors"}));
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_machine_options(sub, *options);
  sub.add_option("--direction", options->direction,
                 "forward (default), or backward: also what a training step keeps in memory")
      .type_name("NAME");
  sub.add_option("--save", options->save,
                 "backward: what the forward keeps: minimal, log_probs or scores (default: each in turn)")
      .type_name("MODE");
  sub.add_option("--save-trace", options->save_trace, "record the routing as a trace (.safetensors)")
      .type_name("FILE");
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return inspect(*options, invocation); }};
}

}  // namespace moescope
