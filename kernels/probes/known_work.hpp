#pragma once

#include "core/backend/known_work.hpp"

namespace moescope {

/// Cases for the current GPU: HBM, L2, shared memory, TMA, tensor cores, CUDA cores, several kernels in one
/// range and a CUDA graph. Throws NoDevice, or OutOfMemory when a quarter of the free memory does not hold
/// buffers far larger than L2.
KnownWork make_cuda_known_work();

}  // namespace moescope
