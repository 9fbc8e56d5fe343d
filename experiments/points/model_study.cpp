#include "experiments/points/model_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"
#include "core/schedule/skew.hpp"
#include "experiments/options/backends.hpp"

namespace moescope {
namespace {

/// What a layer holds on any device at least: weights, batch, routing and the schedule's lists.
void require_device_memory(const RoutedLayer& layer, const Schedule& schedule, const DeviceSpec& device) {
  const std::int64_t need = layer_weight_bytes(layer.shape, layer.fixed_routing) +
                            layer_batch_bytes(layer.shape, layer.routing) + schedule.bytes();
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
                                     std::uint64_t seed) {
  const std::string wanted = layer_key(layer_point(shape, "", workload.name, seed), kResultSchemaVersion);
  if (!layer_ || routed_ != wanted) {
    layer_.reset();
    layer_ = std::make_unique<RoutedLayer>(route_layer(*router_, workload, shape, seed));
    routed_ = wanted;
    workload_ = workload.name;
    seed_ = seed;
  }
  return *layer_;
}

Point ModelStudy::point(const DeviceSpec& device) const {
  return layer_point(layer_->shape, modelled_backend(device), workload_, seed_);
}

Point ModelStudy::point(const DeviceSpec& device, const ScheduleOptions& schedule) const {
  Point of_schedule = point(device);
  of_schedule.set_schedule(schedule);
  of_schedule.l2_state = "cold";
  return of_schedule;
}

ModelledSchedule ModelStudy::simulate(const ScheduleOptions& schedule, const DeviceSpec& device,
                                      const std::function<void(double)>& progress) {
  ReplayOptions replay = replay_;
  replay.progress = progress;
  const Schedule built = build_schedule(layer_->routing, schedule);
  require_device_memory(*layer_, built, device);
  const Calibration& fitted = calibration(device);
  const auto launches = layer_stream(layer_->shape, layer_->routing, built,
                                     device.stream_options(fitted.stream_constants()), layer_->fixed_routing);
  return {layer_->shape, point(device, schedule), simulate_layer(launches, device, fitted, replay)};
}

ResultRow ModelStudy::failure(const ScheduleOptions& schedule, const DeviceSpec& device,
                              std::string reason) const {
  return absent_row(point(device, schedule), Stage::kLayer, Source::kModelled, "time_s", "s", Status::kFailed,
                    std::move(reason));
}

std::vector<ResultRow> ModelStudy::skew(const DeviceSpec& device) const {
  return skew_rows(point(device), compute_skew(layer_->routing));
}

std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options) {
  if (const RankOptions ranks = rank_options(options); ranks.several()) {
    throw InvalidArgument("ranks", fmt::to_string(ranks.group.ranks),
                          "is not modelled: the simulator has one device");
  }
  auto schedules = chosen_schedules(options);
  if (options.schedules.empty()) {
    std::erase_if(schedules, [](const ScheduleOptions& s) { return s.kind == ScheduleKind::kSparseLibrary; });
  }
  return schedules;
}

std::string modelled_header(std::span<const DeviceSpec> devices) {
  std::string text = "modelled";
  for (const DeviceSpec& device : devices) {
    text += (&device == &devices.front() ? ": " : "; ") + device.name;
  }
  return text;
}

}  // namespace moescope
