#pragma once

#include <deque>
#include <vector>

#include "experiments/options/options.hpp"
#include "profiler/study/system_study.hpp"

namespace moescope {

/// The layers that options.systems asks for, on tokens of one distribution. Shapes are resolved, hence
/// refused, before any inputs are made.
class SystemLineup {
 public:
  /// Throws InvalidArgument, or FileError for a workload of omnimoe from a file.
  explicit SystemLineup(CommonOptions options);

  /// Makes the inputs, which the lineup keeps: one subject for every schedule asked for that a system has
  /// (default: a baseline's own; of omnimoe expert_centric, the paper's, and staircase). A layer whose inputs
  /// cannot be made, for want of memory or with this workload, is there as failed. Throws InvalidArgument for
  /// a schedule.
  std::vector<SystemSubject> subjects();

  const std::string& workload() const { return workload_.name; }
  /// Shapes of the baselines among them, in the order asked for.
  const std::vector<SystemShape>& baselines() const { return baselines_; }

 private:
  void add_baseline(const SystemShape& shape, std::vector<SystemSubject>& subjects);
  void add_omnimoe(std::vector<SystemSubject>& subjects);
  SystemSubject failed_subject(const LayerShape& shape, const ScheduleOptions& schedule, ExitCode code,
                               const std::string& reason) const;

  CommonOptions options_;
  NamedWorkload workload_;
  std::vector<System> systems_;
  std::vector<SystemShape> baselines_;
  std::deque<LayerInputs> omnimoe_inputs_;  // subjects refer to them
  std::deque<SystemInputs> baseline_inputs_;
};

}  // namespace moescope
