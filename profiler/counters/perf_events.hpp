#pragma once

#include <memory>

#include "profiler/counters/counter_source.hpp"
#include "profiler/counters/metric_catalogue.hpp"

/// Hardware counters of the CPU by Linux' perf_event, over all threads of this process in user mode.
namespace moescope {

/// Named "perf_event". Its counters are "instructions", "cycles" and "llc_read_misses"; what the kernel does
/// not allow or the (virtual) machine does not have is unavailable in the plan, with perf_event_paranoid's
/// value. One pass.
std::unique_ptr<CounterSource> make_perf_events();

/// What they mean under moescope's names: instructions, cpu_cycles, hbm_read_bytes (misses of the last-level
/// cache times its line).
MetricSelection perf_event_metrics();

}  // namespace moescope
