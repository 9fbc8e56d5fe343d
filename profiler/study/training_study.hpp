#pragma once

#include <functional>
#include <span>
#include <string>

#include "core/backend/training_execution.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {

/// Holds the gradients of a step that ran against the truth: the one that is furthest off, with its name. May
/// throw Error, which is recorded as the reason for having no error.
struct GradientError {
  ErrorReport report;
  std::string of;
};
using GradientJudge = std::function<GradientError(TrainingExecution&)>;

/// study_layer() of the backward: every schedule's step on the same inputs and the same `dy` ([L,d] in
/// storage dtype), alternating. Its stages are the backward's with those of the forward that run again;
/// `peak_bytes` is what the step holds at once (TrainingExecution::plan()). Throws what routing throws.
LayerStudy study_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                          std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                          const TrainingOptions& training, const GradientJudge& judge,
                          const StudyProgress& progress = {});

}  // namespace moescope
