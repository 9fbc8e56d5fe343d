#include "experiments/points/model_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/schedule/skew.hpp"
#include "experiments/options/backends.hpp"

namespace moescope {

ModelStudy::ModelStudy(Calibration calibration, ReplayOptions replay)
    : calibration_(std::move(calibration)), replay_(std::move(replay)), router_(make_backend("cpu")) {}

const RoutedLayer& ModelStudy::route(const NamedWorkload& workload, const LayerShape& shape,
                                     std::uint64_t seed) {
  const std::string wanted =
      fmt::format("{} {} {} {} {} {} {}", shape.label(), to_string(shape.dtype), shape.shared_size,
                  to_string(shape.activation), to_string(shape.gate_mode), workload.name, seed);
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

ModelledSchedule ModelStudy::simulate(const ScheduleOptions& schedule, const DeviceSpec& device,
                                      const std::function<void(double)>& progress) {
  ReplayOptions replay = replay_;
  replay.progress = progress;
  const Schedule built = build_schedule(layer_->routing, schedule);
  const auto launches =
      layer_stream(layer_->shape, layer_->routing, built, device.stream_options(), layer_->fixed_routing);
  Point of_schedule = point(device);
  of_schedule.set_schedule(schedule);
  of_schedule.l2_state = "cold";
  return {layer_->shape, std::move(of_schedule), simulate_layer(launches, device, calibration_, replay)};
}

std::vector<ResultRow> ModelStudy::skew(const DeviceSpec& device) const {
  return skew_rows(point(device), compute_skew(layer_->routing));
}

std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options) {
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
