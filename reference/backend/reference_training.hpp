#pragma once

#include <optional>
#include <vector>

#include "core/backend/training_execution.hpp"
#include "core/cost/memory_plan.hpp"
#include "reference/backward/backward.hpp"
#include "reference/backward/experts_optimizer.hpp"

namespace moescope::reference {

/// The backward of one layer on the CPU under every schedule, stage by stage, timed with steady_clock.
/// Bit-identical whatever the number of threads.
class ReferenceTraining final : public TrainingExecution {
 public:
  /// Runs the forward. Throws InvalidArgument when inputs, dy or options do not fit or the schedule is not
  /// supported, OutOfMemory when it would not fit. Keeps references to `inputs` and `dy`. Running
  /// averages of a batch norm begin at means of 0 and variances of 1.
  ReferenceTraining(const LayerInputs& inputs, const HostTensor& dy, const ScheduleOptions& options,
                    const TrainingOptions& training);

  std::vector<StageTime> run(L2State l2) override;
  HostTensor output() override { return output_.clone(); }
  Routing routing() override { return current_routing(); }
  std::vector<StageMemory> memory() const override;
  ScheduleOptions schedule_options() const override { return options_; }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return stages_; }
  void enqueue(Stage stage) override;
  void synchronize() override {}
  void empty_cache() override;
  std::string kernels(Stage stage) const override;

  const LayerGradients& gradients() const override { return gradients_; }
  void set_gradients(const LayerGradients& start) override;
  ExpertStep expert_step() const override { return {stepped_.w_in.clone(), stepped_.w_out.clone()}; }
  RunningNorm row_norm() const override { return row_norm_; }
  RunningNorm col_norm() const override { return col_norm_; }
  std::int64_t saved_bytes() const override;
  MemoryPlan plan() const override;

 private:
  /// One side of the router between forward and backward.
  struct Side {
    std::vector<float> lse;      ///< [L]; empty unless the z-loss or the batch norm reads it
    BatchStatistics statistics;  ///< empty without batch norm
  };

  void forward();
  void project();
  void select();
  void drop_recomputed();
  void project_backward();
  void start_gradients();
  void step_experts();
  /// `made` in the gradients' dtype; added to `into` where that is the form.
  void settle(HostTensor& into, HostTensor made) const;
  void settle(std::vector<float>& into, std::vector<float> made) const;
  bool adds() const { return training_.form == GradientForm::kAdded; }
  bool keeps_lse() const { return training_.losses.z > 0 || training_.batch_norm.has_value(); }
  const Routing& current_routing() const { return inputs_.fixed_routing ? *inputs_.fixed_routing : routing_; }

  const LayerInputs& inputs_;
  const HostTensor& dy_;
  ScheduleOptions options_;
  TrainingOptions training_;
  std::vector<Stage> stages_;
  HostTensor output_;
  RunningNorm row_norm_;
  RunningNorm col_norm_;
  // Saved by the forward.
  RouterLogits log_p_;  ///< log-probabilities, or the logits before they are
  Side row_;
  Side col_;
  Routing routing_;
  Schedule schedule_;
  std::vector<float> scores_;
  // Of a run.
  ExpertsDgrad dgrad_;
  HostTensor dx_;  ///< [L,d] fp32
  LayerGradients gradients_;
  // Of the optimizer, from run to run.
  std::optional<ExpertsOptimizer> w_in_optimizer_;
  std::optional<ExpertsOptimizer> w_out_optimizer_;
  ExpertStep stepped_;
};

}  // namespace moescope::reference
