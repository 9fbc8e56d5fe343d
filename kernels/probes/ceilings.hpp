#pragma once

#include "core/backend/ceiling_probe.hpp"

namespace moescope {

/// Ceilings of the current GPU: HBM read, write and copy, L2 reads and reductions, shared memory, bf16
/// products on tensor cores (cuBLASLt), fp32 multiply-adds. Each run is one kernel between two CUDA events
/// after one that is not timed. Throws NoDevice, or OutOfMemory when a quarter of the free memory does not
/// hold buffers far larger than L2.
CeilingProbes make_cuda_ceiling_probes();

}  // namespace moescope
