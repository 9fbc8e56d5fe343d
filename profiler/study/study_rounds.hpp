#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "profiler/study/layer_study.hpp"

/// What studies of one layer and of several share; not for use outside profiler/study/*_study.cpp.
namespace moescope::detail {

/// The same, or one that says nothing.
StudyProgress or_silent(const StudyProgress& progress);

/// A study of a routed layer before anything is measured: what it is of, its skew, a point a schedule.
LayerStudy begin_study(const MoeBackend& backend, const LayerInputs& inputs, const Routing& routing,
                       std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling);

/// Layers that are measured side by side. Points are held by reference: they stay where they are until
/// measure() is done.
class StudyRounds {
 public:
  explicit StudyRounds(const SamplingOptions& sampling) : sampling_(sampling) {}

  /// Prepares a layer, runs it once, accounts for it and judges its output. An error that belongs to this one
  /// point makes it failed, with the reason; a bug is thrown.
  void add(ScheduleStudy& point, const std::function<std::unique_ptr<LayerExecution>()>& prepare,
           const std::function<void(LayerExecution&)>& account, const Judge& judge);
  /// Samples everything that was added, alternating.
  void measure(const StudyProgress& say);

 private:
  SamplingOptions sampling_;
  std::vector<std::unique_ptr<LayerExecution>> executions_;
  std::vector<ScheduleStudy*> points_;  ///< of the executions
};

}  // namespace moescope::detail
