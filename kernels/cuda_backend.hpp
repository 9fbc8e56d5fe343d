#pragma once

#include <memory>

#include "core/backend/moe_backend.hpp"

namespace moescope {

/// The CUDA backend on the current device. Throws NoDevice when there is no GPU, no driver, or the GPU's
/// architecture is not among those this build carries code for. Buffers belong to the backend and to the
/// executions it prepares; they use one stream each and plain device memory (never managed).
std::unique_ptr<MoeBackend> make_cuda_backend();

}  // namespace moescope
