#include "profiler/ceilings.hpp"

#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "experiments/backends.hpp"
#include "experiments/command.hpp"
#include "experiments/options.hpp"

namespace moescope {
namespace {

ExitCode ceilings(const CommonOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const SamplingOptions sampling = sampling_options(options);
  const auto backend = make_backend(options.backend);
  const DeviceCeilings measured =
      measure_ceilings(make_ceiling_probes(options.backend), backend->device(), sampling);
  std::cout << fmt::format("{}: {}\n\n{}", backend->name(), measured.device, ceilings_text(measured));
  if (!options.output.empty()) {
    ResultWriter writer(options.output, run_header(invocation, *backend));
    for (const ResultRow& row : ceiling_rows(measured, backend->name())) {
      writer.write(row);
    }
    std::cout << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer.directory().string());
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_ceilings(CLI::App& app, const Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
  options->max_time_s = 1;
  auto* sub = app.add_subcommand(
      "ceilings", "what this device sustains: memory, cache, shared memory, matrix products, multiply-adds");
  sub->footer(examples({"moescope ceilings", "moescope ceilings --backend cuda --output results/ceilings"}));
  add_machine_options(*sub, *options);
  add_sample_count_options(*sub, *options);
  add_output_option(*sub, *options, "default: none are written");
  return {sub, [options, invocation] { return ceilings(*options, invocation); }};
}

}  // namespace moescope
