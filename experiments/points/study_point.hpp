#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "experiments/options/options.hpp"
#include "profiler/study/layer_study.hpp"
#include "profiler/study/training_study.hpp"

namespace moescope {

/// One workload on one shape: what all schedules are measured on, side by side.
struct StudyPoint {
  NamedWorkload workload;
  LayerShape shape;
  std::uint64_t seed = 0;
  /// Of a snapshot: it has no expert weights, so that those made for it serve the next point, too.
  bool weights_are_made = false;
};

/// How points are measured.
struct StudyPlan {
  std::vector<ScheduleOptions> schedules;
  SamplingOptions sampling;
  /// What auto chooses here is measured as well: a schedule that was tuned for another routing.
  std::optional<NamedWorkload> tuned_on = std::nullopt;
  std::optional<TrainingOptions> training = std::nullopt;  ///< set: the backward is measured
};
/// What --schedule, --tuned-on, --group-size, --min-samples, --max-time, --l2, --direction and --save ask
/// for. Throws InvalidArgument.
StudyPlan study_plan(const CommonOptions& options);

/// Studies points one after another, against the oracle; synthetic ones of one shape and seed share their
/// weights, which are most of the memory.
class PointStudy {
 public:
  explicit PointStudy(MoeBackend& backend) : backend_(backend) {}

  /// A point that cannot be studied at all (its file, its memory) has every schedule failed, with the reason.
  /// Throws InternalError alone.
  LayerStudy study(const StudyPoint& point, const StudyPlan& plan, const StudyProgress& progress = {});
  /// Lets go of the weights kept for the next point.
  void release() { experts_.reset(); }

 private:
  /// What auto chose on a workload, and why.
  struct TunedSchedule {
    ScheduleOptions options;
    std::string explanation;
  };

  LayerInputs make_inputs(const StudyPoint& point, const LayerUse& use);
  TunedSchedule tune(const NamedWorkload& workload, const StudyPoint& point, const StudyPlan& plan);

  MoeBackend& backend_;
  LayerShape shape_;
  std::uint64_t seed_ = 0;
  std::shared_ptr<const ExpertWeights> experts_;
  std::string tuned_for_;  ///< layer and workload of tuned_
  TunedSchedule tuned_;
};

/// The backward of a layer under every schedule (study_training()), with the gradient of the output that goes
/// with the inputs' seed, its gradients held against the oracle's.
LayerStudy study_omnimoe_step(MoeBackend& backend, const LayerInputs& inputs,
                              std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                              const TrainingOptions& training, const StudyProgress& progress = {});

/// Holds a step's gradients against the oracle's, for as many tokens as `run` judges; `inputs` and `dy` must
/// outlive it.
GradientJudge gradient_judge(const LayerInputs& inputs, const HostTensor& dy,
                             const TrainingOptions& training);

/// The study of a point that failed as a whole.
LayerStudy failed_study(const StudyPoint& point, const StudyPlan& plan, std::string_view backend,
                        ExitCode code, const std::string& reason);

}  // namespace moescope
