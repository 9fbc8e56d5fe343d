#include "profiler/study/training_study.hpp"

#include <memory>
#include <utility>

#include "core/cost/memory_plan.hpp"
#include "profiler/study/study_rounds.hpp"

namespace moescope {
namespace {

/// Everything that the step holds at its fullest.
std::int64_t step_bytes(const MemoryPlan& plan) {
  return plan.bytes(MemoryPart::kInput) + plan.bytes(MemoryPart::kGradient) + plan.peak_bytes();
}

}  // namespace

LayerStudy study_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                          std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                          const TrainingOptions& training, const GradientJudge& judge,
                          const StudyProgress& progress) {
  sampling.validate();
  const StudyProgress say = detail::or_silent(progress);
  say("routing");
  const Routing routing = route(backend, inputs);
  LayerStudy study = detail::begin_study(backend, inputs, routing, schedules, sampling);
  study.save = training.save;
  study.gradients = training.form;
  study.optimizer = training.optimizer;
  const bool fixed = inputs.fixed_routing.has_value();
  detail::StudyRounds rounds(sampling);
  for (std::size_t s = 0; s < schedules.size(); ++s) {
    ScheduleStudy& point = study.schedules[s];
    say(to_string(schedules[s]));
    if (std::string why; !backend.supports_training(inputs, schedules[s], training, why)) {
      point.status = Status::kSkipped;
      point.reason = why;
      continue;
    }
    TrainingExecution* step = nullptr;  // of this point alone, as long as add() runs
    rounds.add(
        point,
        [&] {
          auto prepared = backend.prepare_training(inputs, dy, schedules[s], training);
          step = prepared.get();
          return prepared;
        },
        [&](LayerExecution& /*execution*/) {
          const Schedule schedule = backend.schedule(routing, point.ran);
          point.cost = backward_cost(inputs.shape, routing, schedule, fixed, training);
          point.weight_bytes = layer_weight_bytes(inputs);
          point.peak_bytes = step_bytes(step->plan());
        },
        [&](const HostTensor& /*output*/, const Routing& /*routing*/) {
          GradientError error = judge(*step);
          point.error_of = std::move(error.of);
          return error.report;
        });
  }
  rounds.measure(say);
  add_speed_ups(study);
  return study;
}

}  // namespace moescope
