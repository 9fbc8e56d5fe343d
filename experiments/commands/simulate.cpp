#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>
#include <variant>

#include "core/base/number_text.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system_traits.hpp"
#include "experiments/clusters/cluster_points.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/model_study.hpp"
#include "profiler/simulator/device_variation.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

struct SimulateOptions : CommonOptions, SimulatorOptions {
  std::vector<std::string> varied;
  ClusterOptions cluster;
};

/// What a study varies: every device on every layer, each layer on all devices.
struct StudyAxes {
  std::vector<DeviceSpec> devices;
  std::vector<std::optional<std::int64_t>> num_tokens = {std::nullopt};  ///< null: as asked for otherwise
  std::vector<std::optional<std::int64_t>> top_k = {std::nullopt};
};

std::vector<std::optional<std::int64_t>> counts(const VariedKey& varied) {
  std::vector<std::optional<std::int64_t>> values;
  for (const std::string& text : varied.values) {
    const auto value = parse_number<std::int64_t>(text);
    if (!value) {
      throw InvalidArgument(varied.key, text, number_rule<std::int64_t>());
    }
    values.emplace_back(value);
  }
  return values;
}

StudyAxes study_axes(const SimulateOptions& options) {
  StudyAxes axes;
  auto names = options.devices.empty() ? std::vector<std::string>{default_device()} : options.devices;
  std::set<std::string> counted;
  for (const std::string& text : options.varied) {
    const VariedKey varied = parse_varied_key(text);
    if (varied.key == "num_tokens" || varied.key == "top_k") {
      if (!counted.insert(varied.key).second) {
        throw InvalidArgument("vary", text, varied.key + " is varied twice");
      }
      (varied.key == "top_k" ? axes.top_k : axes.num_tokens) = counts(varied);
      continue;
    }
    std::vector<std::string> changed;
    for (const std::string& name : names) {
      for (const std::string& value : varied.values) {
        changed.push_back(fmt::format("{}@{}={}", name, varied.key, value));
      }
    }
    names = std::move(changed);
  }
  for (const std::string& name : names) {
    axes.devices.push_back(find_device(name));
  }
  return axes;
}

Table stage_table() {
  using enum Need;
  return Table({{"schedule", Align::kLeft, kAlways, true},
                {"stage", Align::kLeft, kAlways},
                {"time", Align::kRight, kAlways},
                {"bound", Align::kRight, kExtra},
                {"bound by", Align::kLeft},
                {"HBM read"},
                {"HBM written"},
                {"sampling", Align::kRight, kExtra},
                {"L2 read"},
                {"L2 hits"},
                {"L2 added to", Align::kRight, kExtra},
                {"device", Align::kLeft, kUsual, true},
                {"workload", Align::kLeft, kPrograms}});
}

std::string sampling_text(const LayerModel& model, const StageModel& stage) {
  if (model.classes == kMaxClasses) {
    return "exact";
  }
  const auto error = stage.sums.hbm_sampling_error();
  return error ? "+-" + format_percent(*error) : "?";
}

TableCell hits_cell(const LaunchReplay& sums) {
  return sums.l2_read_bytes > 0 ? percent_cell(sums.l2_hit_bytes / sums.l2_read_bytes) : TableCell("-");
}

void add_stages(Table& table, const ModelledSchedule& modelled) {
  table.add_rule();
  for (const StageModel& stage : modelled.model.stages) {
    const LaunchReplay& sums = stage.sums;
    table.add_row({modelled.point.schedule, to_string(stage.stage),
                   TableCell(format_seconds(stage.time_s) + (stage.calibrated ? "" : " *"), stage.time_s),
                   seconds_cell(stage.bound_s), stage.bound, bytes_cell(sums.hbm_read_bytes),
                   bytes_cell(sums.hbm_write_bytes), sampling_text(modelled.model, stage),
                   bytes_cell(sums.l2_read_bytes), hits_cell(sums), bytes_cell(sums.l2_reduce_bytes),
                   modelled.model.device, modelled.point.workload});
  }
}

Table study_table() {
  using enum Need;
  return Table({{"device", Align::kLeft, kAlways, true},
                {"workload", Align::kLeft, kAlways, true},
                {"L", Align::kRight, kAlways, true},
                {"K", Align::kRight, kAlways, true},
                {"schedule", Align::kLeft, kAlways},
                {"layer", Align::kRight, kAlways},
                {"vs fastest", Align::kRight, kAlways},
                {"HBM read"},
                {"HBM written"},
                {"sampling", Align::kRight, kExtra},
                {"L2 hits"}});
}

/// One line a schedule, for studies of many points.
void add_layers(Table& table, std::span<const ModelledSchedule> schedules) {
  table.add_rule();
  double fastest_s = schedules.front().model.stages.back().time_s;
  for (const ModelledSchedule& modelled : schedules) {
    fastest_s = std::min(fastest_s, modelled.model.stages.back().time_s);
  }
  for (const ModelledSchedule& modelled : schedules) {
    const StageModel& layer = modelled.model.stages.back();
    const LayerShape& shape = modelled.shape;
    TableCell ratio = ratio_cell(layer.time_s / fastest_s);
    if (layer.time_s == fastest_s) {
      ratio = TableCell("fastest", 1, Mark::kFastest);
    }
    table.add_row({modelled.model.device, modelled.point.workload, count_cell(shape.num_tokens),
                   count_cell(shape.top_k), modelled.point.schedule,
                   TableCell(format_seconds(layer.time_s) + (layer.calibrated ? "" : " *"), layer.time_s),
                   ratio, bytes_cell(layer.sums.hbm_read_bytes), bytes_cell(layer.sums.hbm_write_bytes),
                   sampling_text(modelled.model, layer), hits_cell(layer.sums)});
  }
}

struct PlannedLayer {
  NamedWorkload workload;
  std::variant<LayerShape, SystemShape> shape;
};

std::string label_of(const LayerShape& shape) { return shape.label(); }
std::string label_of(const SystemShape& shape) { return shape.label(); }

/// Every layer of the study; what cannot work is refused before the first is simulated.
std::vector<PlannedLayer> plan(const SimulateOptions& options, const std::vector<NamedWorkload>& workloads,
                               const StudyAxes& axes) {
  std::vector<PlannedLayer> layers;
  const System system = chosen_system(options);
  for (const NamedWorkload& workload : workloads) {
    for (const auto& num_tokens : axes.num_tokens) {
      for (const auto& top_k : axes.top_k) {
        SimulateOptions asked = options;
        asked.num_tokens = num_tokens ? num_tokens : options.num_tokens;
        asked.top_k = top_k ? top_k : options.top_k;
        if (system != System::kOmniMoe) {
          layers.push_back({workload, resolve_system(asked, system, workload.spec)});
          continue;
        }
        const LayerShape shape = resolve_shape(asked, workload.spec);
        require_room(workload.spec, shape);
        layers.push_back({workload, shape});
      }
    }
  }
  return layers;
}

std::unique_ptr<ResultWriter> make_writer(const SimulateOptions& options, const StudyAxes& axes,
                                          const Invocation& invocation) {
  RunHeader header = run_header(invocation, *make_backend("cpu"));
  header.device = modelled_header(axes.devices);
  return open_rows(options.output, std::move(header));
}

void write(ResultWriter* writer, const std::vector<ResultRow>& rows) {
  if (writer == nullptr) {
    return;
  }
  for (const ResultRow& row : rows) {
    writer->write(row);
  }
}

/// A baseline without a workload has gaussian:1, and the recorded layer is OmniMoE's.
std::vector<NamedWorkload> workloads_of(const SimulateOptions& options, System system) {
  return system == System::kOmniMoe || !options.workloads.empty() ? chosen_workloads(options)
                                                                  : std::vector{named_workload("gaussian:1")};
}

ExitCode simulate(const SimulateOptions& options, const Invocation& invocation) {
  apply_threads(options);
  const System system = chosen_system(options);
  require_meaningful(options);
  if (system != System::kOmniMoe) {
    require_forward(options, "of the baselines is forward: their backward is an oracle alone");
  }
  const auto training = asked_training(options);
  if (!options.cluster.cluster.empty()) {
    require_forward(options, "is of one GPU: a cluster's model has the forward alone");
    if (!options.varied.empty()) {
      throw InvalidArgument("vary", options.varied.front(), "is for one GPU: not with --cluster");
    }
    return simulate_cluster(options, options, options.cluster, invocation);
  }
  require_no_cluster_options(options.cluster);
  StandardTables out(options.tables);
  const auto schedules =
      system == System::kOmniMoe ? modelled_schedules(options) : modelled_schedules(options, system);
  const auto workloads = workloads_of(options, system);
  const StudyAxes axes = study_axes(options);
  ModelStudy study(options);
  std::vector<std::string> notes;  ///< calibrations in use, then what is carried over
  for (const DeviceSpec& device : axes.devices) {
    const std::string& source = study.calibration(device).source;
    const std::string note = source.empty() ? "" : "calibration: " + source + '\n';
    if (std::ranges::find(notes, note) == notes.end()) {
      notes.push_back(note);
    }
  }
  for (const DeviceSpec& device : axes.devices) {
    const std::string note = carried_over(study.calibration(device), device.name);
    notes.push_back(note + (note.empty() ? "" : "\n"));
  }
  const std::vector<PlannedLayer> layers = plan(options, workloads, axes);
  const auto writer = make_writer(options, axes, invocation);
  Progress progress(std::cerr, progress_style(options),
                    static_cast<std::int64_t>(layers.size() * schedules.size() * axes.devices.size()));
  Table summary = study_table();
  std::vector<std::string> too_large;  ///< what the devices cannot hold
  for (const auto& [workload, shape] : layers) {
    const std::string label = std::visit(
        [&, &workload = workload](const auto& of) {
          if constexpr (std::is_same_v<std::decay_t<decltype(of)>, LayerShape>) {
            study.route(workload, of, options.seed, training);
          } else {
            study.route(workload, of, options.seed);
          }
          return label_of(of);
        },
        shape);
    Table stages = stage_table();
    for (const DeviceSpec& device : axes.devices) {
      std::vector<ModelledSchedule> modelled;
      for (const ScheduleOptions& schedule : schedules) {
        progress.begin(fmt::format("{} {} {} on {}", workload.name, label, to_string(schedule), device.name));
        try {
          modelled.push_back(study.simulate(schedule, device, [&](double share) {
            progress.detail(fmt::format("{:.0f} %", 100 * share));
          }));
        } catch (const OutOfMemory& error) {
          too_large.emplace_back(error.what());
          write(writer.get(), {study.failure(schedule, device, error.what())});
          progress.advance();
          continue;
        }
        add_stages(stages, modelled.back());
        write(writer.get(), modelled_rows(modelled.back()));
        progress.advance();
      }
      if (traits_of(system).router != RouterKind::kNone) {
        write(writer.get(), study.skew(device));
      }
      if (!modelled.empty()) {
        add_layers(summary, modelled);
      }
    }
    if (options.varied.empty()) {
      progress.finish();
      out.text() << fmt::format(
          "{}  {}  {}  seed {}  L2 cold{}\n\n", workload.name, label,
          to_string(std::visit([](const auto& of) { return of.dtype; }, shape)), options.seed,
          training ? fmt::format("  backward, {} saved", to_string(training->save)) : "");
      out.show(fmt::format("stages {} {}", workload.name, label), stages);
      out.text() << '\n';
    }
  }
  progress.finish();
  if (!options.varied.empty()) {
    out.show("layers", summary);
    out.text() << '\n';
  }
  out.text() << "everything here is modelled; * not calibrated: time is the bound\n";
  for (const std::string& note : notes) {
    out.text() << note;
  }
  if (writer) {
    out.text() << fmt::format("rows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
  for (const std::string& why : too_large) {
    std::cerr << "does not fit: " << why << '\n';
  }
  return too_large.empty() ? ExitCode::kOk : ExitCode::kOutOfMemory;
}

}  // namespace

Command add_simulate(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<SimulateOptions>();
  const Cli sub = app.add_subcommand(
      "simulate",
      "bytes and time per stage on modelled GPUs: the schedule's own accesses through their caches");
  sub.footer(
      examples({"moescope simulate", "moescope simulate --preset table-a-4096-512 --workload zipf:1",
                "moescope simulate --preset table-a-4096-512 --device a100-sxm-80gb,h200-sxm,b200",
                "moescope simulate --preset table-a-4096-512 --vary l2_bytes=16MiB,50MiB,126MiB",
                "moescope simulate --preset table-a --vary num_tokens=64,1024 --vary top_k=64,512",
                "moescope simulate --preset table-a-4096-512 --direction backward --save scores",
                "moescope simulate --system gshard --preset table-a --workload zipf:1",
                "moescope simulate --cluster h200-node --preset table-a-4096-512 --workload zipf:1 "
                "--placement strips --chunks 1,2,4",
                "moescope simulate --cluster h200-8x8 --ranks 16 --preset table-a --goal layer.goal"}));
  add_shape_options(sub, *options);
  add_system_options(sub, *options);
  add_workload_options(sub, *options);
  add_schedule_options(sub, *options);
  sub.add_option("--direction", options->direction,
                 "forward (default), or backward: its kernels, and those of the forward that run again")
      .type_name("DIRECTION");
  sub.add_option("--save", options->save,
                 "what the forward keeps for the backward: minimal, log_probs (default) or scores")
      .type_name("MODE");
  add_simulator_options(sub, *options);
  add_cluster_options(sub, options->cluster);
  sub.add_option("--vary", options->varied,
                 "an axis of a what-if study; may be repeated, every combination is simulated. KEY is "
                 "num_tokens, top_k, a value of device files (l2_bytes, num_sms, ...) or hbm_bytes_per_s for "
                 "both directions; values of devices may end in KiB, MiB, GiB, K, M, G or T, or be x and a "
                 "factor. Peaks of the cores follow num_sms and sm_clock_hz; nothing else follows anything")
      .type_name("KEY=V,V,...")
      .repeatable();
  sub.add_option("--threads", options->threads, "CPU threads (default: all); results do not depend on it")
      .type_name("N");
  sub.add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return simulate(*options, invocation); }};
}

}  // namespace moescope
