#pragma once

#include <optional>
#include <vector>

#include "reference/stages/cpu_execution.hpp"

namespace moescope::reference {

/// All stages of one layer in order on the CPU, timed with steady_clock; scores and combine are one stage
/// where is_fused(kind). Router stages are absent when the routing is fixed, shared_mlp when the layer has
/// none. kAuto is resolved at construction, by running the router once.
class ReferenceExecution final : public CpuExecution {
 public:
  /// Throws InvalidArgument when inputs do not fit or the schedule is not supported, OutOfMemory when a run
  /// would not fit. Keeps a reference to `inputs`.
  /// `known`: the routing where it is known already; auto alone looks at it.
  ReferenceExecution(const LayerInputs& inputs, const ScheduleOptions& options,
                     const Routing* known = nullptr);

  Routing routing() override { return current_routing(); }
  std::vector<StageMemory> memory() const override;
  ScheduleOptions schedule_options() const override { return options_; }
  std::string explanation() const override { return explanation_; }
  /// "cpu router_select", "cpu experts (staircase)".
  std::string kernels(Stage stage) const override;
  /// The stage's function, of stages that a schedule fuses too.
  StageData run_alone(Stage stage, const StageData& given) override;

 private:
  void compute(Stage stage) override;
  const Routing& current_routing() const { return inputs_.fixed_routing ? *inputs_.fixed_routing : routing_; }

  const LayerInputs& inputs_;
  ScheduleOptions options_;
  std::string explanation_;
  RouterLogits logits_;  ///< from router_project to router_select
  Routing routing_;
  Schedule schedule_;
  std::vector<float> scores_;  ///< from expert_scores to expert_combine
};

}  // namespace moescope::reference
