#include "experiments/points/model_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/error.hpp"
#include "core/schedule/skew.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_traits.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/study/system_study.hpp"

namespace moescope {
namespace {

/// What a layer holds on any device at least: weights, batch, routing and the schedule's lists; of a backward
/// as many bytes of gradients of weights and batch.
void require_device_memory(const RoutedLayer& layer, const Schedule& schedule, bool backward,
                           const DeviceSpec& device) {
  const std::int64_t held =
      layer_weight_bytes(layer.shape, layer.fixed_routing) + layer_batch_bytes(layer.shape, layer.routing);
  const std::int64_t need = (backward ? 2 : 1) * held + schedule.bytes();
  if (need > device.memory_bytes) {
    throw OutOfMemory(
        fmt::format("{} as {} on {}", layer.shape.label(), to_string(schedule.options), device.name),
        static_cast<std::uint64_t>(need), static_cast<std::uint64_t>(device.memory_bytes));
  }
}

}  // namespace

ModelStudy::ModelStudy(SimulatorOptions options)
    : options_(std::move(options)), replay_(replay_options(options_)), router_(make_backend("cpu")) {}

const Calibration& ModelStudy::calibration(const DeviceSpec& device) {
  const auto found = calibrations_.find(device.name);
  return found != calibrations_.end()
             ? found->second
             : calibrations_.emplace(device.name, chosen_calibration(options_, device)).first->second;
}

const RoutedLayer& ModelStudy::route(const NamedWorkload& workload, const LayerShape& shape,
                                     std::uint64_t seed, const std::optional<TrainingOptions>& training) {
  training_ = training;
  const std::string wanted = layer_key(layer_point(shape, "", workload.name, seed), kResultSchemaVersion);
  if (!layer_ || routed_ != wanted) {
    layer_.reset();
    system_.reset();
    layer_ = std::make_unique<RoutedLayer>(route_layer(*router_, workload, shape, seed));
    routed_ = wanted;
    workload_ = workload.name;
    seed_ = seed;
  }
  return *layer_;
}

const RoutedSystem& ModelStudy::route(const NamedWorkload& workload, const SystemShape& shape,
                                      std::uint64_t seed) {
  const std::string wanted =
      fmt::format("{} {} {} {} {} {} {} {} {} {}", shape.label(), to_string(shape.dtype), shape.expert_size,
                  shape.shared_size, shape.heads, shape.key_size, to_string(shape.activation),
                  to_string(shape.gate_mode), workload.name, seed);
  if (!system_ || routed_ != wanted) {
    layer_.reset();
    system_.reset();
    system_ = std::make_unique<RoutedSystem>(*router_, workload, shape, seed);
    routed_ = wanted;
    workload_ = workload.name;
    seed_ = seed;
  }
  return *system_;
}

Point ModelStudy::point(const DeviceSpec& device) const {
  if (system_) {
    return layer_point(system_->shape(), modelled_backend(device), workload_, seed_);
  }
  Point of_layer = layer_point(layer_->shape, modelled_backend(device), workload_, seed_);
  if (training_) {
    of_layer.direction = to_string(Direction::kBackward);
    of_layer.save = to_string(training_->save);
  }
  return of_layer;
}

Point ModelStudy::point(const DeviceSpec& device, const ScheduleOptions& schedule) const {
  Point of_schedule = point(device);
  of_schedule.set_schedule(schedule);
  of_schedule.l2_state = "cold";
  if (system_ && !system_->shape().has_routing()) {
    of_schedule.schedule = "none";
  }
  return of_schedule;
}

ModelledSchedule ModelStudy::simulate_baseline(const ScheduleOptions& schedule, const DeviceSpec& device,
                                               const ReplayOptions& replay) {
  const SystemShape& shape = system_->shape();
  const std::optional<TokenAssignment> assignment = system_->assign(schedule.tokens);
  const Routing& ran = assignment ? assignment->routing : system_->routing();
  const std::int64_t need = shape.weight_bytes() + layer_batch_bytes(shape.row_shape(), ran);
  if (need > device.memory_bytes) {
    throw OutOfMemory(fmt::format("{} on {}", shape.label(), device.name), static_cast<std::uint64_t>(need),
                      static_cast<std::uint64_t>(device.memory_bytes));
  }
  const Calibration& fitted = calibration(device);
  const auto launches =
      system_stream(shape, ran, schedule.kind, device.stream_options(fitted.stream_constants()),
                    system_->fixed_routing(), assignment ? assignment->capacity : 0);
  ModelledSchedule modelled{
      shape.row_shape(), point(device, schedule), simulate_layer(launches, device, fitted, replay), {}};
  if (shape.has_ffn_experts()) {
    modelled.ffn = ffn_study(shape, system_->routing(), schedule, assignment ? &*assignment : nullptr);
  }
  return modelled;
}

ModelledSchedule ModelStudy::simulate(const ScheduleOptions& schedule, const DeviceSpec& device,
                                      const std::function<void(double)>& progress) {
  ReplayOptions replay = replay_;
  replay.progress = progress;
  if (system_) {
    return simulate_baseline(schedule, device, replay);
  }
  const Schedule built = build_schedule(layer_->routing, schedule);
  require_device_memory(*layer_, built, training_.has_value(), device);
  const Calibration& fitted = calibration(device);
  const StreamOptions stream = device.stream_options(fitted.stream_constants());
  const auto launches =
      training_
          ? training_stream(layer_->shape, layer_->routing, built, *training_, stream, layer_->fixed_routing)
          : layer_stream(layer_->shape, layer_->routing, built, stream, layer_->fixed_routing);
  return {layer_->shape, point(device, schedule), simulate_layer(launches, device, fitted, replay), {}};
}

ResultRow ModelStudy::failure(const ScheduleOptions& schedule, const DeviceSpec& device,
                              std::string reason) const {
  return absent_row(point(device, schedule), Stage::kLayer, Source::kModelled, "time_s", "s", Status::kFailed,
                    std::move(reason));
}

std::vector<ResultRow> ModelStudy::skew(const DeviceSpec& device) const {
  return skew_rows(point(device), compute_skew(routing()));
}

std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options) {
  if (const RankOptions ranks = rank_options(options); ranks.several()) {
    throw InvalidArgument("ranks", fmt::to_string(ranks.group.ranks),
                          "is not modelled: the simulator has one device");
  }
  auto schedules = chosen_schedules(options);
  if (options.schedules.empty()) {
    std::erase_if(schedules, [](const ScheduleOptions& s) { return s.kind == ScheduleKind::kSparseLibrary; });
    // A backward takes a staircase straight from the router's scores; recorded routing has none.
    const bool recorded = std::ranges::any_of(options.workloads, [](const std::string& name) {
      return WorkloadSpec::parse(name).family == WorkloadSpec::Family::kTrace;
    });
    if (recorded && asked_direction(options) == Direction::kBackward) {
      std::erase_if(schedules, [](const ScheduleOptions& s) { return s.kind == ScheduleKind::kStaircase; });
    }
  }
  return schedules;
}

std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options, System system) {
  std::vector<ScheduleOptions> schedules;
  const auto add = [&](ScheduleOptions schedule, ScheduleKind kind) {
    schedule.kind = kind;
    if (std::ranges::find(schedules, schedule) == schedules.end()) {
      schedules.push_back(schedule);
    }
  };
  for (const ScheduleOptions& asked : baseline_schedules(options, system)) {
    if (asked.kind != ScheduleKind::kAuto) {
      add(asked, asked.kind);
      continue;
    }
    add(asked, system_schedule(system).kind);
    if (traits_of(system).router == RouterKind::kProductKeys) {
      add(asked, ScheduleKind::kDenseMasked);
    }
  }
  return schedules;
}

std::vector<ResultRow> modelled_rows(const ModelledSchedule& modelled) {
  std::vector<ResultRow> rows = model_rows(modelled.point, modelled.model);
  if (modelled.ffn) {
    std::ranges::move(ffn_study_rows(modelled.point, *modelled.ffn), std::back_inserter(rows));
  }
  return rows;
}

std::string modelled_header(std::span<const DeviceSpec> devices) {
  std::string text = "modelled";
  for (const DeviceSpec& device : devices) {
    text += (&device == &devices.front() ? ": " : "; ") + device.name;
  }
  return text;
}

}  // namespace moescope
