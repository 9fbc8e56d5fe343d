#pragma once

#include <memory>

#include "core/backend/moe_backend.hpp"
#include "core/ranks/rank_launch.hpp"

namespace moescope {

/// The CUDA backend on the current device. Throws NoDevice when there is no GPU, no driver, or the GPU's
/// architecture is not among those this build carries code for. Buffers belong to the backend and to the
/// executions it prepares; they use one stream each and plain device memory (never managed).
std::unique_ptr<MoeBackend> make_cuda_backend();

/// What a process other than rank 0 of a layer on several GPUs does: what rank 0 says, until that ends.
ExitCode serve_cuda_rank(const RankEnvironment& environment);

}  // namespace moescope
