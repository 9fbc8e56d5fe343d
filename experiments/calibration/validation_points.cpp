#include "experiments/calibration/validation_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <tuple>

#include "core/base/error.hpp"
#include "core/devices/device_folders.hpp"
#include "core/files/regular_file.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_traits.hpp"
#include "experiments/options/backends.hpp"
#include "profiler/study/or_failure.hpp"
#include "profiler/text/progress.hpp"

namespace moescope {

namespace fs = std::filesystem;

namespace {

/// Read and written: what a stage costs HBM. A sum of two counters, so rows do not have it.
constexpr const char* kHbmBytes = "hbm_bytes";
constexpr std::array kHbmParts = {"hbm_read_bytes", "hbm_write_bytes"};

bool is_asked_for(const std::string& metric, const ValidationOptions& options) {
  const auto asked = [&](std::string_view name) {
    return std::ranges::find(options.metrics, name) != options.metrics.end();
  };
  return asked(metric) || (asked(kHbmBytes) && std::ranges::find(kHbmParts, metric) != kHbmParts.end());
}

bool is_system_asked_for(const std::string& name, const ValidationOptions& options) {
  const auto known = [&](const SystemTraits& traits) { return traits.name == name; };
  return options.systems.empty() ? std::ranges::any_of(system_traits(), known)
                                 : std::ranges::find(options.systems, name) != options.systems.end();
}

/// Extents that rows before schema version 4 have as metrics, by everything that tells their layers apart.
using OldExtents =
    std::map<std::tuple<std::string, std::string, std::int64_t, std::int64_t, std::int64_t, std::string>,
             std::int64_t>;

auto old_extent_key(const ResultRow& row, const std::string& extent) {
  return std::tuple(extent, row.system, row.num_tokens, row.top_k, row.grid_cols, row.workload);
}

OldExtents old_extents(const RecordedRun& run) {
  OldExtents extents;
  for (const ResultRow& row : run.rows) {
    for (const char* extent : {"expert_size", "heads", "key_size"}) {
      if (row.metric == extent && row.value) {
        extents[old_extent_key(row, extent)] = static_cast<std::int64_t>(*row.value);
      }
    }
  }
  return extents;
}

/// Throws InvalidArgument for extents that a row does not have, or that do not fit.
SystemShape baseline_of(const ResultRow& row, const OldExtents& extents) {
  SystemShape shape;
  shape.system = parse_system(row.system);
  shape.num_tokens = row.num_tokens;
  shape.hidden_size = row.hidden_size;
  shape.shared_size = row.shared_size.value_or(0);
  shape.dtype = parse_dtype(row.dtype);
  const auto extent = [&](const char* name, const std::optional<std::int64_t>& own) {
    const auto found = extents.find(old_extent_key(row, name));
    return own ? *own : found != extents.end() ? found->second : 0;
  };
  if (shape.has_routing()) {
    shape.num_experts = row.grid_rows * row.grid_cols;
    shape.top_k = row.top_k;
    shape.gate_mode = parse_gate_mode(row.gates);
  }
  if (shape.has_ffn_experts()) {
    shape.expert_size = extent("expert_size", row.expert_size);
  }
  if (shape.has_product_keys()) {
    shape.heads = extent("heads", row.heads);
    shape.key_size = extent("key_size", row.key_size);
  }
  if (row.activation != "none") {
    shape.activation = parse_activation(row.activation);
  }
  shape.validate();
  return shape;
}

/// Throws what the shape does.
LayerShape layer_of(const ResultRow& row, const ValidationOptions& options) {
  LayerShape shape;
  shape.num_tokens = row.num_tokens;
  shape.hidden_size = row.hidden_size;
  shape.grid_rows = row.grid_rows;
  shape.grid_cols = row.grid_cols;
  shape.top_k = row.top_k;
  shape.dtype = parse_dtype(row.dtype);
  shape.shared_size = row.shared_size.value_or(options.shared_size);
  shape.validate();
  return shape;
}

bool takes_part(const ResultRow& row, const ValidationOptions& options) {
  return row.source == Source::kMeasured && row.status == Status::kOk && row.backend == "cuda" &&
         row.gradients == "none" && row.optimizer == "none" && row.on_one_device() &&
         is_system_asked_for(row.system, options) && row.l2_state == "cold" && row.value &&
         is_asked_for(row.metric, options);
}

/// The sum of both parts, for every stage that has them.
void add_hbm_bytes(MeasuredPoint& point) {
  std::map<std::pair<std::string, std::string>, double> sums;
  for (const auto& [name, value] : point.values) {
    const auto other = point.values.find({name.first, kHbmParts[1]});
    if (name.second == kHbmParts[0] && other != point.values.end()) {
      sums[{name.first, kHbmBytes}] = value + other->second;
    }
  }
  point.values.merge(sums);
}

/// The kernels that a recorded staircase ran: its stages tell.
StaircaseKernels staircase_kernels(const MeasuredPoint& point) {
  const bool lists = std::ranges::any_of(
      point.values, [](const auto& value) { return value.first.first == to_string(Stage::kExpertScores); });
  return lists ? StaircaseKernels::kLists : StaircaseKernels::kThresholds;
}

/// The order of work as tables and draws name it: a backward's says what was saved.
std::string schedule_name(const MeasuredPoint& point) {
  const std::string name = to_string(point.schedule);
  return point.layer.save ? fmt::format("{} backward {}", name, to_string(*point.layer.save)) : name;
}

double modelled(const StageModel& stage, std::string_view metric) {
  const LaunchReplay& sums = stage.sums;
  return metric == "time_s"                ? stage.time_s
         : metric == kHbmBytes             ? sums.hbm_read_bytes + sums.hbm_write_bytes
         : metric == "hbm_read_bytes"      ? sums.hbm_read_bytes
         : metric == "hbm_write_bytes"     ? sums.hbm_write_bytes
         : metric == "l2_read_bytes"       ? sums.l2_read_bytes + sums.multicast_bytes
         : metric == "l2_slice_read_bytes" ? sums.l2_read_bytes
         : metric == "l2_write_bytes"      ? sums.l2_write_bytes
         : metric == "l2_reduction_bytes"  ? sums.l2_reduce_bytes
         : metric == "l2_fabric_bytes"     ? sums.link_bytes
                                           : -1;
}

}  // namespace

std::vector<MeasuredPoint> measured_points(const ValidationOptions& options) {
  std::vector<MeasuredPoint> points;
  std::map<std::string, std::size_t> places;
  for (const std::string& file : options.files) {
    for (const RecordedRun& run : read_rows(file)) {
      const OldExtents extents = old_extents(run);
      for (const ResultRow& row : run.rows) {
        if (!takes_part(row, options)) {
          continue;
        }
        if (row.schedule == "tuned") {
          continue;  // says which in words alone, and the same schedule is there by its name
        }
        MeasuredPoint point;
        const bool dense = row.schedule == "none";  // a layer without experts
        point.schedule = dense ? system_schedule(System::kDenseMlp) : parse_schedule(row.schedule);
        if (point.schedule.kind == ScheduleKind::kSparseLibrary ||
            point.schedule.kind == ScheduleKind::kAuto) {
          continue;  // not ours, or not said which
        }
        if (row.system != to_string(System::kOmniMoe)) {
          point.layer.baseline = baseline_of(row, extents);
        }
        LayerShape& shape = point.layer.shape;
        shape = point.layer.baseline ? point.layer.baseline->row_shape() : layer_of(row, options);
        point.layer.workload = row.workload;
        point.layer.seed = row.seed;
        if (parse_direction(row.direction) == Direction::kBackward) {
          point.layer.save = parse_save_mode(row.save);
        }
        point.schedule.group_size = row.group_size.value_or(point.schedule.group_size);
        point.schedule.tile_tokens = row.tile_tokens.value_or(point.schedule.tile_tokens);
        const std::string name =
            fmt::format("{} {} {} {} {} {} {} {} {} {} {}", run.header.run_id, point.layer.label(), row.dtype,
                        shape.shared_size, row.workload, row.seed, row.schedule, point.schedule.group_size,
                        point.schedule.tile_tokens, row.direction, row.save);
        const auto [place, is_new] = places.emplace(name, points.size());
        if (is_new) {
          points.push_back(std::move(point));
        }
        points[place->second].values[{row.stage, row.metric}] = *row.value;
      }
    }
  }
  for (MeasuredPoint& point : points) {
    add_hbm_bytes(point);
  }
  return points;
}

NamedWorkload recorded_workload(const std::string& name, const std::string& data_folder) {
  const auto colon = name.find(':');
  const std::string family = name.substr(0, colon);
  if (family == "snapshot" || family == "trace") {
    const fs::path file = name.substr(colon + 1);
    const fs::path here = fs::path(data_folder) / file.filename();
    if (!file_exists(file) && file_exists(here)) {
      return {WorkloadSpec::parse(family + ":" + here.string()), name};
    }
  }
  return {WorkloadSpec::parse(name), name};
}

std::vector<Prediction> predictions_of(std::span<const PointModel> models, const ValidationOptions& options) {
  std::vector<Prediction> predictions;
  for (const auto& [point, model] : models) {
    for (const auto& [name, measured] : point->values) {
      const auto& [stage_name, metric] = name;
      const auto stage = std::ranges::find(model.stages, stage_name,
                                           [](const StageModel& one) { return to_string(one.stage); });
      const double value = stage == model.stages.end() ? -1 : modelled(*stage, metric);
      if (value < 0 || measured <= 0 || std::ranges::count(options.metrics, metric) == 0) {
        continue;
      }
      Prediction one{.system = std::string(
                         to_string(point->layer.baseline ? point->layer.baseline->system : System::kOmniMoe)),
                     .shape = point->layer.label(),
                     .workload = point->layer.workload,
                     .seed = point->layer.seed,
                     .schedule = schedule_name(*point),
                     .stage = stage_name,
                     .kernel = stage->kernel,
                     .metric = metric,
                     .predicted = value,
                     .measured = measured};
      one.bound_s = metric == "time_s" && stage->stage != Stage::kLayer ? stage->bound_s : 0;
      predictions.push_back(std::move(one));
    }
  }
  draw_held_out(predictions, parse_hold_out(options.hold_out), options.seed);
  return predictions;
}

std::vector<PointModel> model_points(std::vector<MeasuredPoint>& points, const ValidationOptions& options,
                                     const DeviceSpec& device, const Calibration& calibration,
                                     std::vector<std::string>& skipped) {
  std::ranges::stable_sort(points, {}, [](const MeasuredPoint& point) { return point.layer.key(); });
  const auto backend = make_backend("cpu");
  ReplayOptions replay = replay_options(options);
  Progress progress(std::cerr,
                    options.quiet          ? Progress::Style::kSilent
                    : stderr_is_terminal() ? Progress::Style::kTerminal
                                           : Progress::Style::kLines,
                    static_cast<std::int64_t>(points.size()));
  std::vector<PointModel> models;
  std::unique_ptr<RoutedLayer> layer;
  std::unique_ptr<RoutedSystem> system;
  const MeasuredPoint* routed = nullptr;
  for (const MeasuredPoint& point : points) {
    progress.begin(
        fmt::format("{} {} {}", point.layer.label(), point.layer.workload, to_string(point.schedule)));
    const auto model = [&] {
      if (routed == nullptr || routed->layer.key() != point.layer.key()) {
        routed = nullptr;
        layer.reset();
        system.reset();
      }
      if (routed == nullptr && point.layer.baseline) {
        system = std::make_unique<RoutedSystem>(*backend,
                                                recorded_workload(point.layer.workload, options.data_folder),
                                                *point.layer.baseline, point.layer.seed);
        routed = &point;
      }
      if (point.layer.baseline) {
        const auto launches =
            system_stream(system->shape(), system->routing(), point.schedule.kind,
                          device.stream_options(calibration.stream_constants()), system->fixed_routing());
        models.push_back({&point, simulate_layer(launches, device, calibration, replay)});
        return;
      }
      if (routed == nullptr) {
        layer = std::make_unique<RoutedLayer>(
            route_layer(*backend, recorded_workload(point.layer.workload, options.data_folder),
                        point.layer.shape, point.layer.seed));
        routed = &point;
      }
      StreamOptions stream = device.stream_options(calibration.stream_constants());
      stream.staircase = staircase_kernels(point);
      const Schedule schedule = build_schedule(layer->routing, point.schedule);
      const auto launches =
          point.layer.save
              ? training_stream(layer->shape, layer->routing, schedule, {.save = *point.layer.save}, stream,
                                layer->fixed_routing)
              : layer_stream(layer->shape, layer->routing, schedule, stream, layer->fixed_routing);
      models.push_back({&point, simulate_layer(launches, device, calibration, replay)});
    };
    or_failure(model, [&](ExitCode, const std::string& reason) {
      skipped.push_back(fmt::format("{} {} {}: {}", point.layer.label(), point.layer.workload,
                                    to_string(point.schedule), reason));
    });
    progress.advance();
  }
  return models;
}

std::string source_of_fit(const ValidationOptions& options) {
  std::vector<std::string> rows;
  std::vector<std::string> names;
  for (const std::string& file : options.files) {
    std::set<std::string> revisions;
    for (const RecordedRun& run : read_rows(file)) {
      revisions.insert(run.header.git_revision.substr(0, 7));
    }
    names.push_back(fs::path(file).filename().string());
    rows.push_back(fmt::format("{} (revision {})", names.back(), fmt::join(revisions, ", ")));
  }
  return fmt::format(
      "stage times of {}; the {} that draw {} holds out were not used; fitted are fixed_s and stretch of "
      "each "
      "stage's kernels; by moescope validate {} --hold-out {} --seed {} --max-accesses {} --fit FILE",
      fmt::join(rows, ", "), options.hold_out, options.seed, fmt::join(names, " "), options.hold_out,
      options.seed, options.max_accesses);
}

std::string recorded_device(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    for (const RecordedRun& run : read_rows(file)) {
      const std::vector<DeviceFolder> folders = project_devices();
      if (const DeviceFolder* const folder = folder_of(folders, run.header.device)) {
        return folder->path.filename();
      }
    }
  }
  return default_device();
}

}  // namespace moescope
