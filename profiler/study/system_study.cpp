#include "profiler/study/system_study.hpp"

#include <algorithm>
#include <utility>

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
  options = subject.baseline != nullptr ? subject.baseline->schedule_options() : subject.schedule;
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
  if (subject.baseline == nullptr) {
    return backend.supports(subject.schedule.kind, why);
  }
  return backend.supports_system(subject.baseline->shape.system, why) &&
         (subject.baseline->tokens.every() || backend.supports_token_rules(why));
}

/// Cost and skew from the routing that the layer found.
void account(MoeBackend& backend, const SystemSubject& subject, LayerExecution& execution,
             LayerStudy& study) {
  ScheduleStudy& point = study.schedules.front();
  const Routing routing = execution.routing();
  if (subject.baseline != nullptr) {
    const SystemShape& shape = subject.baseline->shape;
    point.options.kind = point.ran.kind;
    const TokenAssignment* const assignment = execution.assignment();
    point.cost =
        analytic_cost(shape, routing, point.ran, assignment, subject.baseline->fixed_routing.has_value());
    if (shape.has_ffn_experts()) {
      point.ffn = ffn_study(shape, routing, point.ran, assignment);
    }
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

FfnStudy ffn_study(const SystemShape& shape, const Routing& routing, const ScheduleOptions& ran,
                   const TokenAssignment* assignment) {
  FfnStudy ffn;
  ffn.rows = ffn_rows(shape, routing, ran, assignment);
  ffn.dropless = ffn_rows(shape, routing, system_schedule(shape.system), nullptr);
  ffn.chosen_pairs = routing.num_pairs();
  if (assignment != nullptr) {
    ffn.dropped_pairs = assignment->dropped_pairs;
    ffn.added_pairs = assignment->added_pairs;
    ffn.tokens_without = assignment->tokens_without;
    ffn.capacity = assignment->capacity;
    ffn.has_rule = true;
  }
  return ffn;
}

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
    const TokenAssignment* assignment = nullptr;
    say(study_label(studies[s]));
    if (std::string why; !supported(backend, subject, why)) {
      point.status = Status::kSkipped;
      point.reason = why;
      continue;
    }
    rounds.add(
        point,
        [&] {
          return subject.baseline != nullptr ? backend.prepare_ruled_system(*subject.baseline)
                                             : backend.prepare(*subject.omnimoe, subject.schedule);
        },
        [&](LayerExecution& execution) {
          account(backend, subject, execution, studies[s]);
          assignment = execution.assignment();
        },
        [&](const HostTensor& output, const Routing& routing) {
          if (assignment == nullptr) {
            return subject.judge(output, routing);
          }
          point.ffn->dropless_error = subject.judge(output, routing);
          return subject.assigned_judge(output, routing, *assignment);
        });
  }
  rounds.measure(say);
  return studies;
}

LayerStudy merge_studies(std::vector<LayerStudy> studies) {
  std::vector<ScheduleStudy> schedules;
  for (LayerStudy& study : studies) {
    schedules.push_back(std::move(study.schedules.front()));
  }
  const auto ok = std::ranges::find(schedules, Status::kOk, &ScheduleStudy::status);
  LayerStudy whole =
      std::move(studies[ok == schedules.end() ? 0 : static_cast<std::size_t>(ok - schedules.begin())]);
  whole.schedules = std::move(schedules);
  return whole;
}

std::string study_label(const LayerStudy& study) {
  return study.baseline ? study.baseline->label() : study.shape.label();
}

}  // namespace moescope
