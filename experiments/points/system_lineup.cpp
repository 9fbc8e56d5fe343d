#include "experiments/points/system_lineup.hpp"

#include <utility>

#include "core/systems/system_cost.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/study_point.hpp"
#include "profiler/study/or_failure.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/system_oracle.hpp"

namespace moescope {

SystemLineup::SystemLineup(CommonOptions options)
    : options_(std::move(options)), workload_(system_workload(options_)) {
  if (options_.preset.empty() && !from_file(workload_.spec)) {
    options_.preset = "small";
  }
  for (const std::string& name : options_.systems) {
    const System system = parse_system(name);
    if (system == System::kOmniMoe) {
      resolve_shape(options_, workload_.spec);
    } else {
      baselines_.push_back(resolve_system(options_, system, workload_.spec));
    }
    systems_.push_back(system);
  }
}

std::vector<SystemSubject> SystemLineup::subjects() {
  std::vector<SystemSubject> subjects;
  auto baseline = baselines_.begin();
  for (const System system : systems_) {
    if (system == System::kOmniMoe) {
      add_omnimoe(subjects);
    } else {
      add_baseline(*baseline++, subjects);
    }
  }
  return subjects;
}

void SystemLineup::add_baseline(const SystemShape& shape, std::vector<SystemSubject>& subjects) {
  const std::vector<ScheduleOptions> schedules = baseline_schedules(options_, shape.system);
  const auto make = [&] {
    const SystemInputs& first = baseline_inputs_.emplace_back(make_system_inputs(workload_, shape, options_));
    for (const ScheduleOptions& schedule : schedules) {
      const SystemInputs* inputs = &first;
      if (!(schedule == schedules.front())) {  // the same tokens and weights
        SystemInputs& other = baseline_inputs_.emplace_back();
        other.shape = first.shape;
        other.hidden_states = first.hidden_states.clone();
        other.weights = first.weights;
        other.fixed_routing = first.fixed_routing;
        other.workload = first.workload;
        other.seed = first.seed;
        other.set_schedule(schedule);
        inputs = &other;
      }
      SystemSubject& subject = subjects.emplace_back();
      subject.baseline = inputs;
      subject.judge = system_judge(*inputs, kJudgedTokens);
      subject.assigned_judge = system_assigned_judge(*inputs, kJudgedTokens);
    }
  };
  or_failure(make, [&](ExitCode code, const std::string& reason) {
    for (ScheduleOptions options : schedules) {
      options.kind = options.kind == ScheduleKind::kAuto ? system_schedule(shape.system).kind : options.kind;
      subjects.push_back(failed_subject(shape.row_shape(), options, code, reason));
      subjects.back().failed->baseline = shape;
    }
  });
}

void SystemLineup::add_omnimoe(std::vector<SystemSubject>& subjects) {
  CommonOptions options = options_;
  std::erase_if(options.schedules,
                [](const std::string& text) { return !parse_schedule(text).tokens.every(); });
  if (options.schedules.empty()) {
    options.schedules = {"expert_centric", "staircase"};
  }
  const std::vector<ScheduleOptions> schedules = chosen_schedules(options);
  const LayerShape shape = resolve_shape(options, workload_.spec);
  const auto make = [&] {
    const LayerInputs& inputs = omnimoe_inputs_.emplace_back(
        make_inputs(workload_, shape, options.seed,
                    {.backend = options.backend, .schedules = schedules, .judged_tokens = kJudgedTokens}));
    for (const ScheduleOptions& schedule : schedules) {
      SystemSubject& subject = subjects.emplace_back();
      subject.omnimoe = &inputs;
      subject.schedule = schedule;
      subject.judge = oracle_judge(inputs, kJudgedTokens);
    }
  };
  or_failure(make, [&](ExitCode code, const std::string& reason) {
    for (const ScheduleOptions& schedule : schedules) {
      subjects.push_back(failed_subject(shape, schedule, code, reason));
    }
  });
}

SystemSubject SystemLineup::failed_subject(const LayerShape& shape, const ScheduleOptions& schedule,
                                           ExitCode code, const std::string& reason) const {
  SystemSubject subject;
  subject.failed = failed_study({workload_, shape, options_.seed},
                                StudyPlan{.schedules = {schedule}, .sampling = {}}, "", code, reason);
  return subject;
}

}  // namespace moescope
