#pragma once

#include "core/cost/auto_schedule.hpp"
#include "kernels/runtime/device_info.hpp"

namespace moescope::cuda {

/// What the cost model of choose_schedule() knows of this backend: rates fitted to rows recorded on an H100
/// (scripts/fit_rates.py), the L2 capacity of this device. Other devices get the H100's rates too, and the
/// source says so.
MachineRates gpu_rates(const DeviceInfo& device);

}  // namespace moescope::cuda
