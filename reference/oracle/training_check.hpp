#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/backend/training_execution.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/oracle_training.hpp"

namespace moescope {

/// Largest relative Frobenius error that a gradient may show against the fp64 oracle: 5e-3 in bf16, 1e-5 in
/// fp32.
double gradient_tolerance(Dtype dtype);

/// One gradient against the oracle's. The error is relative to the oracle's norm. Where the terms of the sums
/// cancel, what rounding leaves of them does not: then the tolerance grows with the root of term_squares over
/// that norm, and of a gradient that is zero but for cancellation the error is relative to its terms.
/// Infinite for other extents or what is not finite.
struct GradientReport {
  double error = 0;
  double tolerance = 0;
  double cancellation = 1;  ///< how much of the tolerance that was, as a factor

  bool passed() const { return error <= tolerance; }
};
GradientReport compare_gradient(const HostTensor& ours, const OracleGradient& truth, Dtype dtype);

/// What the oracle works out of a layer: `sampled_tokens` rows of dX; dW, dV and the shared MLP in whole, or
/// of large layers some of their rows, experts without tokens among them.
/// Of GradientForm::kTouched no others.
OracleSample training_sample(const LayerInputs& inputs, const Routing& routing, std::int64_t sampled_tokens,
                             GradientForm form = GradientForm::kStored);

/// The gradient of a step that comes nearest to its tolerance, or is furthest beyond it.
struct WorstGradient {
  ErrorReport report;  ///< with the tolerance that compare_gradient() has for it
  std::string of;      ///< "dW"
};
/// Of a step that ran, against the oracle on its own selection, for `sampled_tokens` spread over the batch
/// (training_sample()). Where gradients are added it runs once more, from zeros. Throws InvalidArgument where that gradient is zero in the oracle.
WorstGradient worst_gradient(const LayerInputs& inputs, const HostTensor& dy, const TrainingOptions& training,
                             TrainingExecution& step, std::int64_t sampled_tokens);

/// Checks the step that `backend` prepares: output and every gradient against the oracle on the layer's own
/// selection, the auxiliary losses, rows of experts without tokens (zero) and the list of touched ones; the
/// selection itself where no batch norm stands before it; and that a second run gives the same bits, where
/// the execution says that it is deterministic. Where gradients are added, it is to what set_gradients() put
/// there, which rows of experts without tokens keep to the bit. What a step throws is its failure. `what` begins every
/// comparison's name. Throws only std::bad_alloc and OutOfMemory.
LayerCheck check_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                          const ScheduleOptions& options, const TrainingOptions& training,
                          std::int64_t sampled_tokens, std::string_view what);

/// check_training() of every mode that the layer has: with each of `saves`; of touched rows alone, and added;
/// where there is a router, with both auxiliary losses; and where it has no biases, with batch norm in
/// training.
LayerCheck check_training_modes(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                                const ScheduleOptions& options, std::span<const SaveMode> saves,
                                std::int64_t sampled_tokens);

}  // namespace moescope
