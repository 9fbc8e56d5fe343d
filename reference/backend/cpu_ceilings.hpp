#pragma once

#include "core/backend/ceiling_probe.hpp"

namespace moescope {

/// Ceilings of the CPU with the threads OpenMP has now: main memory read, write and copy, reads of a range
/// that the last-level cache holds, products of the reference's own matmul on bf16 storage, fp32
/// multiply-adds. There is no shared memory. Throws OutOfMemory when buffers larger than caches do not fit.
CeilingProbes make_cpu_ceiling_probes();

}  // namespace moescope
