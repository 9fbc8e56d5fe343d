#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "core/schedule.hpp"
#include "experiments/backends.hpp"
#include "experiments/command.hpp"
#include "experiments/sim_options.hpp"
#include "profiler/format.hpp"
#include "profiler/table.hpp"

namespace moescope {
namespace {

struct SimulateOptions : CommonOptions, SimulatorOptions {};

Table stage_table() {
  return Table({{"device", Align::kLeft},
                {"schedule", Align::kLeft},
                {"stage", Align::kLeft},
                {"time"},
                {"bound"},
                {"bound by", Align::kLeft},
                {"HBM read"},
                {"HBM written"},
                {"sampling"},
                {"L2 read"},
                {"L2 hits"},
                {"L2 added to"}});
}

void add_to_table(Table& table, const LayerModel& model, std::string_view schedule) {
  table.add_rule();
  std::string device = model.device;
  std::string name(schedule);
  for (const StageModel& stage : model.stages) {
    const LaunchReplay& sums = stage.sums;
    table.add_row({std::exchange(device, ""), std::exchange(name, ""), std::string(to_string(stage.stage)),
                   format_seconds(stage.time_s) + (stage.calibrated ? "" : " *"),
                   format_seconds(stage.bound_s), stage.bound, format_bytes(sums.hbm_read_bytes),
                   format_bytes(sums.hbm_write_bytes),
                   model.classes == kMaxClasses ? "exact" : "+-" + format_percent(sums.sampling_error),
                   format_bytes(sums.l2_read_bytes),
                   sums.l2_read_bytes > 0 ? format_percent(sums.l2_hit_bytes / sums.l2_read_bytes) : "-",
                   format_bytes(sums.l2_reduce_bytes)});
  }
}

std::vector<ScheduleOptions> simulated_schedules(const SimulateOptions& options) {
  auto schedules = chosen_schedules(options);
  if (options.schedules.empty()) {  // all that have a stream
    std::erase_if(schedules, [](const ScheduleOptions& s) { return s.kind == ScheduleKind::kSparseLibrary; });
  }
  return schedules;
}

ExitCode simulate(const SimulateOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const auto schedules = simulated_schedules(options);
  const auto workloads = chosen_workloads(options);
  std::vector<DeviceSpec> devices;
  for (const std::string& name :
       options.devices.empty() ? std::vector<std::string>{"h100-sxm"} : options.devices) {
    devices.push_back(find_device(name));
  }
  const Calibration calibration = chosen_calibration(options);
  ReplayOptions replay = replay_options(options);
  const auto backend = make_backend("cpu");
  std::unique_ptr<ResultWriter> writer;
  if (!options.output.empty()) {
    RunHeader header = run_header(invocation, *backend);
    header.device = "modelled";
    for (const DeviceSpec& device : devices) {
      header.device += (&device == &devices.front() ? ": " : ", ") + device.name;
    }
    writer = std::make_unique<ResultWriter>(options.output, std::move(header));
  }
  Progress progress(std::cerr, progress_style(options),
                    static_cast<std::int64_t>(workloads.size() * schedules.size() * devices.size()));
  for (const NamedWorkload& workload : workloads) {
    const LayerShape asked = resolve_shape(options, workload.spec);
    const RoutedLayer layer = route_layer(*backend, workload, asked, options.seed);
    Table table = stage_table();
    for (const ScheduleOptions& schedule_options : schedules) {
      const Schedule schedule = build_schedule(layer.routing, schedule_options);
      for (const DeviceSpec& device : devices) {
        progress.begin(
            fmt::format("{} {} on {}", workload.name, to_string(schedule_options.kind), device.name));
        replay.progress = [&](double share) { progress.detail(fmt::format("{:.0f} %", 100 * share)); };
        const auto launches =
            layer_stream(layer.shape, layer.routing, schedule, device.stream_options(), layer.fixed_routing);
        const LayerModel model = simulate_layer(launches, schedule_options.kind, device, calibration, replay);
        add_to_table(table, model, to_string(schedule_options.kind));
        const RowContext context{layer.shape,
                                 std::string(to_string(schedule_options.kind)),
                                 modelled_backend(device),
                                 workload.name,
                                 options.seed,
                                 "cold"};
        for (const ResultRow& row : writer ? model_rows(context, model) : std::vector<ResultRow>()) {
          writer->write(row);
        }
        progress.advance();
      }
    }
    progress.finish();
    std::cout << fmt::format("{}  {}  {}  seed {}  L2 cold\n\n{}\n", workload.name, layer.shape.label(),
                             to_string(layer.shape.dtype), options.seed, table.text());
  }
  std::cout << fmt::format("everything here is modelled; * not calibrated: time is the bound\n{}",
                           calibration.source.empty() ? "" : "calibration: " + calibration.source + '\n');
  if (writer) {
    std::cout << fmt::format("rows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_simulate(CLI::App& app, const Invocation& invocation) {
  auto options = std::make_shared<SimulateOptions>();
  auto* sub = app.add_subcommand(
      "simulate",
      "bytes and time per stage on modelled GPUs: the schedule's own accesses through their caches");
  sub->footer(examples({"moescope simulate", "moescope simulate --preset table-a-4096-512 --workload zipf:1",
                        "moescope simulate --preset table-a-4096-512 --device a100-sxm-80gb,h100-sxm,b200"}));
  add_shape_options(*sub, *options);
  add_workload_options(*sub, *options);
  add_schedule_options(*sub, *options);
  add_simulator_options(*sub, *options);
  sub->add_option("--threads", options->threads, "CPU threads (default: all); results do not depend on it")
      ->type_name("N");
  sub->add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  add_output_option(*sub, *options, "default: none are written");
  return {sub, [options, invocation] { return simulate(*options, invocation); }};
}

}  // namespace moescope
