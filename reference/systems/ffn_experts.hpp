#pragma once

#include <optional>

#include "core/schedule/schedule.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/systems/system_cost.hpp"
#include "reference/systems/system_execution.hpp"

/// What GShard and DeepSeekMoE share: a linear router over N experts and gated FFNs as experts.
namespace moescope::reference {

/// Rows of one product; fixed, so that bits do not depend on threads.
inline constexpr std::int64_t kFfnBlockTokens = 64;

/// y = sum over the top K of gate_e * FFN_e(x), in four stages:
/// router_project: x router^T [L,N]; router_select: the K largest of its softmax, ties to the lower id, gates
/// by the shape's gate mode (softmax over the selected: GShard, Mixtral; probabilities among all N:
/// DeepSeekMoE); schedule and experts, by inputs.schedule: expert_centric - tokens permuted by expert, one
/// work item per active expert, a grouped GEMM over the items, then every token adds its K results;
/// a rule for tokens (inputs.tokens) comes before: the permutation is of the pairs that it leaves, and under
/// a capacity every expert multiplies as many rows, those that are left over zero; token_centric - every
/// token runs its own experts; dense_masked - all experts for every token, of which it adds those it
/// selected. Hidden activations are rounded to storage; sums are in the order of expert ids, [L,d] fp32.
class FfnExecution : public SystemExecution {
 public:
  /// Throws InvalidArgument when inputs do not fit.
  explicit FfnExecution(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleOptions schedule_options() const override;
  std::vector<StageMemory> memory() const override;
  const TokenAssignment* assignment() const override { return assignment_ ? &*assignment_ : nullptr; }

 protected:
  void compute(Stage stage) override;

 private:
  void schedule_pairs();
  /// The pairs that run.
  const Routing& ran() const { return assignment_ ? assignment_->routing : routing_; }

  Schedule schedule_;
  std::optional<TokenAssignment> assignment_;
};

}  // namespace moescope::reference
