#include "profiler/limits/ceilings.hpp"

#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <optional>

#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/sim_options.hpp"
#include "profiler/simulator/measured_device.hpp"

namespace moescope {
namespace {

struct CeilingOptions : CommonOptions {
  std::string rows;  ///< ceilings recorded before, instead of measuring
  std::string device_json;
  std::string like;
};

/// Ceilings with the header of the run they are from.
struct KnownCeilings {
  DeviceCeilings ceilings;
  RunHeader header;
};

KnownCeilings measure(const CeilingOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const SamplingOptions sampling = sampling_options(options);
  const auto backend = make_backend(options.backend);
  KnownCeilings known{measure_ceilings(make_ceiling_probes(options.backend), backend->device(), sampling),
                      run_header(invocation, *backend)};
  std::cout << fmt::format("{}: {}\n\n{}", backend->name(), known.ceilings.device,
                           ceilings_text(known.ceilings));
  if (!options.output.empty()) {
    ResultWriter writer(options.output, known.header);
    for (const ResultRow& row : ceiling_rows(known.ceilings, backend->name())) {
      writer.write(row);
    }
    std::cout << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer.directory().string());
  }
  return known;
}

/// The last run of the file that has any.
KnownCeilings recorded(const std::string& file) {
  std::optional<KnownCeilings> known;
  for (const RecordedRun& run : read_rows(file)) {
    if (auto ceilings = recorded_ceilings({run})) {
      known = KnownCeilings{std::move(*ceilings), run.header};
    }
  }
  if (!known) {
    throw FileError(file, "", "has no ceilings");
  }
  std::cout << fmt::format("recorded: {}, run {}\n\n{}", known->ceilings.device, known->header.run_id,
                           ceilings_text(known->ceilings));
  return *std::move(known);
}

void write_device(const CeilingOptions& options, const KnownCeilings& known, const DeviceSpec& like) {
  const DeviceSpec device = measured_device(known.ceilings, known.header, like);
  std::ofstream stream(options.device_json, std::ios::binary);
  stream << device_json(device) << std::flush;
  if (!stream) {
    throw FileError(options.device_json, "", "cannot be written");
  }
  std::cout << fmt::format("\ndevice: {} (moescope simulate --device {})\n", options.device_json,
                           options.device_json);
}

ExitCode ceilings(const CeilingOptions& options, const Invocation& invocation) {
  std::optional<DeviceSpec> like;
  if (!options.device_json.empty()) {
    if (options.like.empty()) {
      throw InvalidArgument("like", "",
                            "must name the device that has what nobody measures: latencies, ways");
    }
    like = find_device(options.like);
  }
  if (!options.rows.empty() && !options.output.empty()) {
    throw InvalidArgument("output", options.output, "cannot be given beside --rows: these are rows already");
  }
  const KnownCeilings known = options.rows.empty() ? measure(options, invocation) : recorded(options.rows);
  if (like) {
    write_device(options, known, *like);
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
                       "moescope ceilings --rows results/h100/ceilings.jsonl --like h100-sxm --device-json "
                       "my-h100.json"}));
  add_machine_options(sub, *options);
  add_sample_count_options(sub, *options);
  add_output_option(sub, *options, "default: none are written");
  sub.add_option("--rows", options->rows, "ceilings that were recorded, instead of measuring; needs no GPU")
      .type_name("ROWS");
  sub.add_option("--device-json", options->device_json,
                 "writes the device as moescope simulate --device takes it, every value with its source")
      .type_name("FILE");
  sub.add_option("--like", options->like,
                 "with --device-json: the device that gives what nobody measures (latencies, ways, L1)")
      .type_name("NAME|FILE");
  return {sub, [options, invocation] { return ceilings(*options, invocation); }};
}

}  // namespace moescope
