#pragma once

#include "core/backend/moe_backend.hpp"
#include "core/cost/memory_plan.hpp"
#include "core/layer/training.hpp"

namespace moescope {

/// Experts' tables after a step of the optimizer.
struct ExpertStep {
  HostTensor w_in;
  HostTensor w_out;
};

/// A layer whose backward can be run again and again. Its forward ran once, when it was prepared, and left
/// what SaveMode says; stages() are the backward's in order, with those of the forward that are computed
/// again. run() times these; its kLayer is the backward's. output() and routing() are the forward's. Holds
/// references to the inputs and to dy. With GradientForm::kAdded stages add each time they are run; a run()
/// that times the stages and the layer apart runs them twice, and an optimizer then takes two steps.
class TrainingExecution : public LayerExecution {
 public:
  /// Of the last run.
  virtual const LayerGradients& gradients() const = 0;
  /// GradientForm::kAdded: what stages add to from now on, in the layout of gradients(): those of parameters,
  /// the rest is not read. Zeros before. Throws InvalidArgument where a tensor's extents or dtype differ.
  virtual void set_gradients(const LayerGradients& start) = 0;
  /// W and V after the optimizer's step of the last run, [N,d] in storage dtype; its state goes on from run
  /// to run. Empty without an optimizer.
  virtual ExpertStep expert_step() const = 0;
  /// Running averages of the router's batch norm after the forward; empty without one.
  virtual RunningNorm row_norm() const = 0;
  virtual RunningNorm col_norm() const = 0;
  /// Bytes that the forward left for the backward, as they are.
  virtual std::int64_t saved_bytes() const = 0;
  /// What the step holds, from the sizes alone.
  virtual MemoryPlan plan() const = 0;
};

}  // namespace moescope
