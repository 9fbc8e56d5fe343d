#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "experiments/options/sim_options.hpp"
#include "profiler/study/layer_rows.hpp"

namespace moescope {

/// One schedule of one layer on one modelled device.
struct ModelledSchedule {
  LayerShape shape;  ///< of a baseline its row_shape()
  Point point;
  LayerModel model;
  std::optional<FfnStudy> ffn;  ///< of FFN experts; without outputs there is no error to it
};
/// Everything that is known of it, as rows.
std::vector<ResultRow> modelled_rows(const ModelledSchedule& modelled);

/// Simulates layers; consecutive points of one workload, shape and seed share their routing, which is made
/// on the CPU.
class ModelStudy {
 public:
  /// Throws what replay_options() does.
  explicit ModelStudy(SimulatorOptions options);

  /// What is simulated of it: its backward, where `training` is given. Throws what routing, building the
  /// schedule and simulating throw.
  const RoutedLayer& route(const NamedWorkload& workload, const LayerShape& shape, std::uint64_t seed,
                           const std::optional<TrainingOptions>& training = std::nullopt);
  /// Of the layer that was routed last. Throws OutOfMemory when the device cannot hold it.
  ModelledSchedule simulate(const ScheduleOptions& schedule, const DeviceSpec& device,
                            const std::function<void(double)>& progress = {});
  /// The same of a baseline.
  const RoutedSystem& route(const NamedWorkload& workload, const SystemShape& shape, std::uint64_t seed);
  /// What that device is calibrated by. Throws FileError.
  const Calibration& calibration(const DeviceSpec& device);
  /// The row that says why there is none of that.
  ResultRow failure(const ScheduleOptions& schedule, const DeviceSpec& device, std::string reason) const;
  /// Skew of the routing of that layer; the rows are the same for every schedule and device.
  std::vector<ResultRow> skew(const DeviceSpec& device) const;

 private:
  Point point(const DeviceSpec& device) const;
  Point point(const DeviceSpec& device, const ScheduleOptions& schedule) const;
  const Routing& routing() const { return layer_ ? layer_->routing : system_->routing(); }
  ModelledSchedule simulate_baseline(const ScheduleOptions& schedule, const DeviceSpec& device,
                                     const ReplayOptions& replay);

  SimulatorOptions options_;
  std::map<std::string, Calibration> calibrations_;  ///< by the device's name
  ReplayOptions replay_;
  std::unique_ptr<MoeBackend> router_;
  std::unique_ptr<RoutedLayer> layer_;    ///< one of the two
  std::unique_ptr<RoutedSystem> system_;  ///< a baseline
  std::string routed_;                    ///< which layer that is
  std::string workload_;
  std::uint64_t seed_ = 0;
  std::optional<TrainingOptions> training_;  ///< of layer_
};

/// Of the schedules asked for, without any: all that the model has in the direction asked for.
std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options);
/// Of a baseline: its own as the GPU backend runs it, product keys in both forms. Auto, which is chosen by a
/// device's rates there, is those of product keys and an FFN's own.
std::vector<ScheduleOptions> modelled_schedules(const CommonOptions& options, System system);

/// What a header says instead of a device's name: "modelled", and the devices where they are known.
std::string modelled_header(std::span<const DeviceSpec> devices);

}  // namespace moescope
