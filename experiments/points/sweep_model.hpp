#pragma once

#include "experiments/points/model_study.hpp"
#include "experiments/points/sweep_study.hpp"

namespace moescope {

/// As `--backend` names the simulator.
inline constexpr const char* kModelBackend = "model";

/// Simulates the points of a sweep one after another.
class PlannedModel {
 public:
  /// `options` brings the device of points that name none, the calibration and how much to replay. Throws
  /// InvalidArgument when it names several devices, FileError.
  explicit PlannedModel(SimulatorOptions options);

  /// Throws InvalidArgument and FileError for a device that there is not.
  void plan(PlannedPoint& planned);
  /// A schedule that cannot be simulated has failed, auto is skipped, with the reason. Throws
  /// InternalError alone.
  PointResult simulate(const PlannedPoint& planned, const StudyProgress& progress);

 private:
  const std::string& device_name(const PlannedPoint& planned) const;

  SimulatorOptions options_;
  ModelStudy study_;
};

/// Names of the metrics that rows of a model have.
std::span<const std::string_view> model_metrics();

}  // namespace moescope
