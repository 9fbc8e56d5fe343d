#pragma once

#include <cuda_runtime_api.h>

namespace moescope::cuda {

/// What the runtime says of a kernel on the current device, asked for once: asking takes as long as a tenth
/// of a launch. Throws CudaError.
const cudaFuncAttributes& kernel_attributes(const void* kernel);

}  // namespace moescope::cuda
