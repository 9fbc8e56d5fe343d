#pragma once

#include "core/backend/training_execution.hpp"
#include "reference/oracle/oracle_training.hpp"

/// What a step with GradientForm::kAdded adds to, and the truth of the sum.
namespace moescope {

/// Values about as large as the gradients in `like`, in their extents and dtypes; all different in a row.
LayerGradients made_start(const LayerGradients& like);
LayerGradients zero_start(const LayerGradients& like);
/// The oracle's gradients of parameters, added to `start`.
void add_start(OracleTraining& truth, const LayerGradients& start);
/// set_gradients(), then every stage once: run() of a backend that times stages apart adds twice.
void add_once(TrainingExecution& step, const LayerGradients& start);

/// The oracle has the down matrix' columns as rows.
HostTensor transposed(const HostTensor& matrix);

}  // namespace moescope
