#include "experiments/system_lineup.hpp"

#include <utility>

#include "experiments/system_options.hpp"
#include "reference/layer_check.hpp"
#include "reference/system_oracle.hpp"

namespace moescope {

SystemLineup::SystemLineup(CommonOptions options)
    : options_(std::move(options)), workload_(system_workload(options_)) {
  if (options_.preset.empty()) {
    options_.preset = "small";
  }
  for (const std::string& name : options_.systems) {
    const System system = parse_system(name);
    if (system == System::kOmniMoe) {
      resolve_shape(options_, workload_.spec);
    } else {
      baselines_.push_back(resolve_system(options_, system));
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
      const SystemInputs& inputs =
          baseline_inputs_.emplace_back(make_system_inputs(workload_, *baseline++, options_.seed));
      SystemSubject& subject = subjects.emplace_back();
      subject.baseline = &inputs;
      subject.judge = system_judge(inputs, kJudgedTokens);
    }
  }
  return subjects;
}

void SystemLineup::add_omnimoe(std::vector<SystemSubject>& subjects) {
  const LayerInputs& inputs = omnimoe_inputs_.emplace_back(
      make_inputs(workload_, resolve_shape(options_, workload_.spec), options_.seed));
  CommonOptions options = options_;
  if (options.schedules.empty()) {
    options.schedules = {"expert_centric", "staircase"};
  }
  for (const ScheduleOptions& schedule : chosen_schedules(options)) {
    SystemSubject& subject = subjects.emplace_back();
    subject.omnimoe = &inputs;
    subject.schedule = schedule;
    subject.judge = oracle_judge(inputs, kJudgedTokens);
  }
}

}  // namespace moescope
