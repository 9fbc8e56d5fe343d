#include "profiler/limits/ceilings.hpp"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>
#include <utility>

#include "core/base/line_text.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"

namespace moescope {
namespace {

struct CeilingOptions : CommonOptions {
  std::string rows;  ///< ceilings recorded before, instead of measuring
};

void measure(const CeilingOptions& options, const Invocation& invocation, TableOutput& out) {
  apply_threads(options);
  const SamplingOptions sampling = sampling_options(options);
  const auto backend = make_backend(options.backend);
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  const DeviceCeilings ceilings =
      measure_ceilings(make_ceiling_probes(options.backend), backend->device(), sampling);
  out.text() << fmt::format("{}: {}\n\n", backend->name(), ceilings.device);
  out.show("ceilings", ceilings_table(ceilings));
  if (writer) {
    for (const ResultRow& row : ceiling_rows(ceilings, backend->name())) {
      writer->write(row);
    }
    out.text() << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
}

/// The last run of the file that has any.
void print_recorded(const std::string& file, TableOutput& out) {
  std::optional<DeviceCeilings> ceilings;
  std::string run_id;
  for (const RecordedRun& run : read_rows(file)) {
    if (auto found = recorded_ceilings({run})) {
      ceilings = std::move(found);
      run_id = run.header.run_id;
    }
  }
  if (!ceilings) {
    throw FileError(file, "", "has no ceilings");
  }
  out.text() << fmt::format("recorded: {}, run {}\n\n", one_line(ceilings->device), one_line(run_id));
  out.show("ceilings", ceilings_table(*ceilings));
}

ExitCode ceilings(const CeilingOptions& options, const Invocation& invocation) {
  StandardTables out(options.tables);
  if (!options.rows.empty() && !options.output.empty()) {
    throw InvalidArgument("output", options.output, "cannot be given beside --rows: these are rows already");
  }
  if (options.rows.empty()) {
    measure(options, invocation, out);
  } else {
    print_recorded(options.rows, out);
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_ceilings(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CeilingOptions>();
  options->max_time_s = 1;
  const Cli sub = app.add_subcommand(
      "ceilings", "what this device sustains: memory, cache, shared memory, matrix products, multiply-adds");
  sub.footer(examples({"moescope ceilings", "moescope ceilings --backend cuda --output results/ceilings",
                       "moescope ceilings --rows results/h200/ceilings.jsonl"}) +
             "\n\nmoescope calibrate makes a device of the simulator of them.");
  add_machine_options(sub, *options);
  add_sample_count_options(sub, *options);
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  sub.add_option("--rows", options->rows, "ceilings that were recorded, instead of measuring; needs no GPU")
      .type_name("ROWS");
  return {sub, [options, invocation] { return ceilings(*options, invocation); }};
}

}  // namespace moescope
