#pragma once

#include "core/backend/moe_backend.hpp"
#include "core/cost/memory_plan.hpp"
#include "core/layer/training.hpp"

namespace moescope {

/// A layer whose backward can be run again and again. Its forward ran once, when it was prepared, and left
/// what SaveMode says; stages() are the backward's in order, with those of the forward that are computed
/// again. run() times these; its kLayer is the backward's. output() and routing() are the forward's. Holds
/// references to the inputs and to dy.
class TrainingExecution : public LayerExecution {
 public:
  /// Of the last run.
  virtual const LayerGradients& gradients() const = 0;
  /// Running averages of the router's batch norm after the forward; empty without one.
  virtual RunningNorm row_norm() const = 0;
  virtual RunningNorm col_norm() const = 0;
  /// Bytes that the forward left for the backward, as they are.
  virtual std::int64_t saved_bytes() const = 0;
  /// What the step holds, from the sizes alone.
  virtual MemoryPlan plan() const = 0;
};

}  // namespace moescope
