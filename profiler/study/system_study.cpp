#include "profiler/study/system_study.hpp"

#include "core/systems/system_cost.hpp"
#include "profiler/study/study_rounds.hpp"

namespace moescope {
namespace {

LayerStudy study_of(const MoeBackend& backend, const SystemSubject& subject,
                    const SamplingOptions& sampling) {
  LayerStudy study = subject.failed.value_or(LayerStudy{});
  study.backend = backend.name();
  study.sampling = sampling;
  if (subject.failed) {
    return study;
  }
  study.schedules.resize(1);
  ScheduleOptions& options = study.schedules.front().options;
  options = subject.baseline != nullptr ? system_schedule(subject.baseline->shape.system) : subject.schedule;
  if (subject.baseline != nullptr && subject.baseline->schedule != ScheduleKind::kAuto) {
    options.kind = subject.baseline->schedule;
  }
  if (subject.baseline != nullptr) {
    study.shape = subject.baseline->shape.row_shape();
    study.baseline = subject.baseline->shape;
    study.workload = subject.baseline->workload;
    study.seed = subject.baseline->seed;
  } else {
    study.shape = subject.omnimoe->shape;
    study.workload = subject.omnimoe->workload;
    study.seed = subject.omnimoe->seed;
  }
  return study;
}

bool supported(const MoeBackend& backend, const SystemSubject& subject, std::string& why) {
  return subject.baseline != nullptr ? backend.supports_system(subject.baseline->shape.system, why)
                                     : backend.supports(subject.schedule.kind, why);
}

/// Cost and skew from the routing that the layer found.
void account(MoeBackend& backend, const SystemSubject& subject, LayerExecution& execution,
             LayerStudy& study) {
  ScheduleStudy& point = study.schedules.front();
  const Routing routing = execution.routing();
  if (subject.baseline != nullptr) {
    const SystemShape& shape = subject.baseline->shape;
    point.options.kind = point.ran.kind;
    point.cost = analytic_cost(shape, routing, point.ran.kind, subject.baseline->fixed_routing.has_value());
    study.floor_bytes = expert_floor_bytes(shape, routing);
    account_memory(point, shape.weight_bytes(), study.shape, routing);
  } else {
    point.cost = analytic_cost(study.shape, routing, backend.schedule(routing, point.ran),
                               subject.omnimoe->fixed_routing.has_value());
    study.floor_bytes = expert_floor_bytes(study.shape, routing);
    account_memory(point, layer_weight_bytes(*subject.omnimoe), study.shape, routing);
  }
  if (routing.num_pairs() > 0) {
    study.skew = compute_skew(routing);
  }
}

}  // namespace

std::vector<LayerStudy> study_systems(MoeBackend& backend, std::span<const SystemSubject> subjects,
                                      const SamplingOptions& sampling, const StudyProgress& progress) {
  sampling.validate();
  const StudyProgress say = [&](std::string_view what) {
    if (progress) {
      progress(what);
    }
  };
  std::vector<LayerStudy> studies;
  for (const SystemSubject& subject : subjects) {
    studies.push_back(study_of(backend, subject, sampling));
  }
  detail::StudyRounds rounds(sampling);
  for (std::size_t s = 0; s < subjects.size(); ++s) {
    const SystemSubject& subject = subjects[s];
    if (subject.failed) {
      continue;
    }
    ScheduleStudy& point = studies[s].schedules.front();
    say(study_label(studies[s]));
    if (std::string why; !supported(backend, subject, why)) {
      point.status = Status::kSkipped;
      point.reason = why;
      continue;
    }
    rounds.add(
        point,
        [&] {
          return subject.baseline != nullptr ? backend.prepare_system(*subject.baseline)
                                             : backend.prepare(*subject.omnimoe, subject.schedule);
        },
        [&](LayerExecution& execution) { account(backend, subject, execution, studies[s]); }, subject.judge);
  }
  rounds.measure(say);
  return studies;
}

std::string study_label(const LayerStudy& study) {
  return study.baseline ? study.baseline->label() : study.shape.label();
}

}  // namespace moescope
