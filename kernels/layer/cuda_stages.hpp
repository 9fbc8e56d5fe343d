#pragma once

#include <cuda_runtime_api.h>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/runtime/cublas_lt.hpp"

/// What is wanted of a layer before it is prepared (its cost, auto's choice): the kernels that the paths run,
/// on buffers of their own.
namespace moescope::cuda {

/// Throws InvalidArgument for inputs that do not fit or whose routing is recorded.
RouterLogits project_router(CublasLt& blas, const LayerInputs& inputs, cudaStream_t stream);
/// As every path over pairs selects. Throws InvalidArgument on extents that do not fit, and naming a logit
/// that is not finite.
Routing select_pairs(const LayerShape& shape, const RouterLogits& logits, cudaStream_t stream);
/// As the path over tiles builds it; a schedule that is not built on the device, as core does. Throws
/// InvalidArgument where tokens differ in their number of pairs.
Schedule group_pairs(const Routing& routing, const ScheduleOptions& options, cudaStream_t stream);

}  // namespace moescope::cuda
