#pragma once

#include <string>

#include "core/results/experiment.hpp"
#include "experiments/points/study_point.hpp"

namespace moescope {

/// A point of a sweep with everything that can be known before it is measured.
struct PlannedPoint {
  ExperimentPoint point;
  CommonOptions options;
  StudyPlan plan;  ///< of a baseline: with its own schedules
  NamedWorkload workload;
  std::string repro;
};

/// What a point asked for that has no shape, for its rows; 0 where nobody said.
LayerShape asked_shape(const CommonOptions& options);

/// What came of a point: its rows, and whether it counts.
struct PointResult {
  std::vector<ResultRow> rows;
  Status status = Status::kOk;  ///< ok when anything came of it, else failed or skipped
  std::string reason;
  ExitCode code = ExitCode::kOk;  ///< of the first error
};

/// `machine` brings backend and threads. Throws InvalidArgument for values that cannot work on any machine.
PlannedPoint plan_point(const Experiment& experiment, const ExperimentPoint& point,
                        const CommonOptions& machine);

/// Studies the points of a sweep one after another: omnimoe under its schedules, or a baseline.
class PlannedStudy {
 public:
  explicit PlannedStudy(MoeBackend& backend) : backend_(backend), study_(backend) {}

  /// Its rows, and the first reason for having none. Throws what study() throws.
  PointResult measure(const PlannedPoint& planned, const StudyProgress& progress);

  /// A point that cannot be studied at all (its shape, its file, its memory) has every schedule failed, one
  /// that the backend lacks skipped, with the reason. Throws InternalError alone.
  LayerStudy study(const PlannedPoint& planned, const StudyProgress& progress);

 private:
  MoeBackend& backend_;
  PointStudy study_;
};

}  // namespace moescope
