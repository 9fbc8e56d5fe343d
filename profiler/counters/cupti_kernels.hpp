#pragma once

#include <memory>

#include "profiler/counters/kernel_trace.hpp"

namespace moescope {

/// Kernels, copies and memsets as CUPTI's activity records have them; needs no permission for counters, but
/// no other profiler may be attached. Throws CountersUnavailable when CUPTI cannot be opened. While a trace
/// runs, launches are slower; the recorded times are the device's own.
std::unique_ptr<KernelTracer> make_cupti_tracer();

}  // namespace moescope
