#include "experiments/points/study_point.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/workload/output_gradient.hpp"
#include "profiler/study/or_failure.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/training_check.hpp"

namespace moescope {
namespace {

bool same_weights(const LayerShape& a, const LayerShape& b) {
  return a.grid_rows * a.grid_cols == b.grid_rows * b.grid_cols && a.hidden_size == b.hidden_size &&
         a.shared_size == b.shared_size && a.dtype == b.dtype;
}

}  // namespace

StudyPlan study_plan(const CommonOptions& options) {
  StudyPlan plan{chosen_schedules(options), sampling_options(options)};
  plan.training = asked_training(options);
  if (!options.tuned_on.empty()) {
    if (plan.training) {
      throw InvalidArgument("tuned_on", options.tuned_on, "is for the forward");
    }
    plan.tuned_on = named_workload(options.tuned_on);
  }
  return plan;
}

LayerStudy study_omnimoe_step(MoeBackend& backend, const LayerInputs& inputs,
                              std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                              const TrainingOptions& training, const StudyProgress& progress) {
  const HostTensor dy = make_output_gradient(inputs.shape, inputs.seed);
  return study_training(backend, inputs, dy, schedules, sampling, training,
                        gradient_judge(inputs, dy, training), progress);
}

GradientJudge gradient_judge(const LayerInputs& inputs, const HostTensor& dy,
                             const TrainingOptions& training) {
  return [&inputs, &dy, training](TrainingExecution& step) {
    WorstGradient worst = worst_gradient(inputs, dy, training, step, kJudgedTokens);
    return GradientError{worst.report, std::move(worst.of)};
  };
}

LayerInputs PointStudy::make_inputs(const StudyPoint& point, const LayerUse& use) {
  const bool share = !from_file(point.workload.spec) || point.weights_are_made;
  if (!share || !experts_ || !same_weights(shape_, point.shape) || seed_ != point.seed) {
    experts_.reset();
  }
  LayerInputs inputs = moescope::make_inputs(point.workload, point.shape, point.seed, use, experts_);
  if (share) {
    shape_ = point.shape;
    seed_ = point.seed;
    experts_ = inputs.experts;
  }
  return inputs;
}

PointStudy::TunedSchedule PointStudy::tune(const NamedWorkload& workload, const StudyPoint& point,
                                           const StudyPlan& plan) {
  ScheduleOptions options{.kind = ScheduleKind::kAuto,
                          .group_size = plan.schedules.front().group_size,
                          .tile_tokens = plan.schedules.front().tile_tokens,
                          .ranks = plan.schedules.front().ranks};
  Point tuned = layer_point(point.shape, backend_.name(), workload.name, point.seed);
  tuned.set_schedule(options);
  std::string wanted = point_key(tuned, {PointPart::kLayer, PointPart::kSchedule}, kResultSchemaVersion);
  if (wanted != tuned_for_) {
    const LayerInputs inputs = make_inputs(
        {workload, point.shape, point.seed},
        {.backend = backend_.name(), .schedules = {options}, .side_by_side = true, .judged_tokens = 0});
    const auto execution = backend_.prepare(inputs, options);
    options = execution->schedule_options();
    tuned_ = {options, execution->explanation()};
    tuned_for_ = std::move(wanted);
  }
  return tuned_;
}

LayerStudy PointStudy::study(const StudyPoint& point, const StudyPlan& plan, const StudyProgress& progress) {
  const auto measure = [&] {
    std::vector<ScheduleOptions> schedules = plan.schedules;
    if (plan.tuned_on) {
      schedules.push_back(tune(*plan.tuned_on, point, plan).options);
    }
    const LayerInputs inputs = make_inputs(point, {.backend = backend_.name(),
                                                   .schedules = schedules,
                                                   .judged_tokens = kJudgedTokens,
                                                   .trains = plan.training.has_value()});
    if (plan.training) {
      return study_omnimoe_step(backend_, inputs, schedules, plan.sampling, *plan.training, progress);
    }
    LayerStudy study = study_layer(backend_, inputs, schedules, plan.sampling,
                                   oracle_judge(inputs, kJudgedTokens), progress);
    if (plan.tuned_on) {
      study.schedules.back().tuned_on = plan.tuned_on->name;
      study.schedules.back().explanation = tuned_.explanation;
    }
    return study;
  };
  return or_failure(measure, [&](ExitCode code, const std::string& reason) {
    return failed_study(point, plan, backend_.name(), code, reason);
  });
}

LayerStudy failed_study(const StudyPoint& point, const StudyPlan& plan, std::string_view backend,
                        ExitCode code, const std::string& reason) {
  LayerStudy study;
  study.shape = point.shape;
  study.workload = point.workload.name;
  study.seed = point.seed;
  study.backend = backend;
  study.sampling = plan.sampling;
  if (plan.training) {
    study.save = plan.training->save;
  study.gradients = plan.training->form;
  study.optimizer = plan.training->optimizer;
  }
  for (const ScheduleOptions& schedule : plan.schedules) {
    ScheduleStudy& failed = study.schedules.emplace_back();
    failed.options = schedule;
    failed.status = Status::kFailed;
    failed.code = code;
    failed.reason = reason;
  }
  return study;
}

}  // namespace moescope
