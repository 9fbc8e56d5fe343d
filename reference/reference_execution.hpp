#pragma once

#include <optional>
#include <span>
#include <vector>

#include "core/moe_backend.hpp"

namespace moescope::reference {

/// All stages of one layer in order on the CPU, timed with steady_clock; scores and combine are one stage
/// where is_fused(kind). Router stages are absent when the routing is fixed, shared_mlp when the layer has
/// none. kAuto is resolved at construction, by running the router once.
class ReferenceExecution final : public LayerExecution {
 public:
  /// Throws InvalidArgument when inputs do not fit or the schedule is not supported, OutOfMemory when a run
  /// would not fit. Keeps a reference to `inputs`.
  ReferenceExecution(const LayerInputs& inputs, const ScheduleOptions& options);

  std::vector<StageTime> run(L2State l2) override;
  HostTensor output() override { return output_.clone(); }
  Routing routing() override { return current_routing(); }
  std::vector<StageMemory> memory() const override;
  ScheduleKind schedule_kind() const override { return options_.kind; }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return stages_; }
  void enqueue(Stage stage) override;
  void synchronize() override {}
  void empty_cache() override;

 private:
  void finish(Stage stage);
  const Routing& current_routing() const { return inputs_.fixed_routing ? *inputs_.fixed_routing : routing_; }

  const LayerInputs& inputs_;
  ScheduleOptions options_;
  std::vector<Stage> stages_;
  RouterLogits logits_;  ///< from router_project to router_select
  Routing routing_;
  Schedule schedule_;
  std::vector<float> scores_;  ///< from expert_scores to expert_combine
  HostTensor y_;               ///< fp32, until the last stage rounds it
  HostTensor output_;
};

}  // namespace moescope::reference
