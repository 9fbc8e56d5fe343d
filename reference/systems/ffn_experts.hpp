#pragma once

#include "core/schedule/schedule.hpp"
#include "core/systems/system_cost.hpp"
#include "reference/systems/system_execution.hpp"

/// What GShard and DeepSeekMoE share: a linear router over N experts and gated FFNs as experts.
namespace moescope::reference {

/// Rows of one product; fixed, so that bits do not depend on threads.
inline constexpr std::int64_t kFfnBlockTokens = 64;

/// y = sum over the top K of gate_e * FFN_e(x), in four stages:
/// router_project: x router^T [L,N]; router_select: the K largest of its softmax, ties to the lower id, gates
/// by the shape's gate mode (softmax over the selected: GShard, Mixtral; probabilities among all N:
/// DeepSeekMoE); schedule: tokens permuted by expert, one work item per active expert; experts: a grouped
/// GEMM over the items, whose hidden activation is rounded to storage, then every token adds its K results in
/// the order of expert ids, [L,d] fp32.
class FfnExecution : public SystemExecution {
 public:
  /// Throws InvalidArgument when inputs do not fit.
  explicit FfnExecution(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleOptions schedule_options() const override { return system_schedule(shape().system); }
  std::vector<StageMemory> memory() const override;

 protected:
  void compute(Stage stage) override;

 private:
  Schedule schedule_;
};

}  // namespace moescope::reference
