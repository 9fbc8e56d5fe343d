#include "profiler/limits/ceilings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>

#include "core/base/line_text.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
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

/// Before anything is measured: that --device-json can be written, and is none of the command's other files.
void claim_device(const CeilingOptions& options, const RunHeader& header, const ResultWriter* writer) {
  if (options.device_json.empty()) {
    return;
  }
  require_gpu(header);
  std::vector<std::filesystem::path> kept = {options.rows};
  if (auto like = device_file(options.like)) {
    kept.push_back(*std::move(like));
  }
  if (writer != nullptr) {
    std::ranges::copy(writer->files(), std::back_inserter(kept));
  }
  const OutputFile claimed("device_json", options.device_json, kept);
}

KnownCeilings measure(const CeilingOptions& options, const Invocation& invocation, TableOutput& out) {
  apply_threads(options);
  const SamplingOptions sampling = sampling_options(options);
  const auto backend = make_backend(options.backend);
  const RunHeader header = run_header(invocation, *backend);
  const auto writer = open_rows(options.output, header);
  claim_device(options, header, writer.get());
  KnownCeilings known{measure_ceilings(make_ceiling_probes(options.backend), backend->device(), sampling),
                      header};
  out.text() << fmt::format("{}: {}\n\n", backend->name(), known.ceilings.device);
  out.show("ceilings", ceilings_table(known.ceilings));
  if (writer) {
    for (const ResultRow& row : ceiling_rows(known.ceilings, backend->name())) {
      writer->write(row);
    }
    out.text() << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
  return known;
}

/// The last run of the file that has any.
KnownCeilings recorded(const CeilingOptions& options, TableOutput& out) {
  const std::string& file = options.rows;
  std::optional<KnownCeilings> known;
  for (const RecordedRun& run : read_rows(file)) {
    if (auto ceilings = recorded_ceilings({run})) {
      known = KnownCeilings{std::move(*ceilings), run.header};
    }
  }
  if (!known) {
    throw FileError(file, "", "has no ceilings");
  }
  claim_device(options, known->header, nullptr);
  out.text() << fmt::format("recorded: {}, run {}\n\n", one_line(known->ceilings.device),
                            one_line(known->header.run_id));
  out.show("ceilings", ceilings_table(known->ceilings));
  return *std::move(known);
}

void write_device(const CeilingOptions& options, const KnownCeilings& known, const DeviceSpec& like,
                  TableOutput& out) {
  const DeviceSpec device = measured_device(known.ceilings, known.header, like);
  OutputFile("device_json", options.device_json).write(device_json(device));
  out.text() << fmt::format("\ndevice: {} (moescope simulate --device {})\n", options.device_json,
                            options.device_json);
}

ExitCode ceilings(const CeilingOptions& options, const Invocation& invocation) {
  StandardTables out(options.tables);
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
  const KnownCeilings known =
      options.rows.empty() ? measure(options, invocation, out) : recorded(options, out);
  if (like) {
    write_device(options, known, *like, out);
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
  add_table_options(sub, options->tables);
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
