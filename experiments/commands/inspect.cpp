#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <memory>

#include "core/schedule/skew.hpp"
#include "core/workload/trace_writer.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
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
  std::string save_trace;
};

ExitCode inspect(const InspectOptions& options, const Invocation& invocation) {
  apply_threads(options);
  StandardTables out(options.tables);
  struct Inspected {
    NamedWorkload workload;
    LayerShape shape;
  };
  std::vector<Inspected> points;
  std::vector<NamedWorkload> workloads = chosen_workloads(options);
  const std::vector<std::filesystem::path> inputs_read = workload_files(workloads);
  for (NamedWorkload& workload : workloads) {
    const LayerShape shape = resolve_shape(options, workload.spec);
    require_room(workload.spec, shape);
    points.push_back({std::move(workload), shape});
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
  for (const auto& [workload, shape] : points) {
    const LayerInputs inputs =
        make_inputs(workload, shape, options.seed, {.backend = backend->name(), .schedules = {}});
    const Routing routing = route(*backend, inputs);
    const Point point = layer_point(shape, backend->name(), workload.name, options.seed);
    const auto rows = skew_rows(point, compute_skew(routing));
    out.text() << fmt::format("{}  {}  seed {}\n\n", workload.name, shape.label(), options.seed);
    out.show("skew", skew_table(rows));
    out.text() << fmt::format("\n{}\n\n", quantiles_text(routing));
    out.show("load histogram", load_histogram(expert_loads(routing)));
    out.text() << '\n';
    if (!options.save_trace.empty()) {
      write_trace(routing, options.save_trace);
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
  sub.footer(examples({"moescope inspect", "moescope inspect --preset table-a-1024-512 --workload zipf:1.2",
                       "moescope inspect --workload trace:routing.npy --grid 64x64 -d 256"}));
  add_shape_options(sub, *options);
  add_workload_options(sub, *options);
  add_machine_options(sub, *options);
  sub.add_option("--save-trace", options->save_trace, "record the routing as a trace (.safetensors)")
      .type_name("FILE");
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return inspect(*options, invocation); }};
}

}  // namespace moescope
