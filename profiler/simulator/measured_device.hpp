#pragma once

#include "profiler/limits/ceilings.hpp"
#include "profiler/simulator/sim_device.hpp"

namespace moescope {

/// Throws InvalidArgument when measured_device() would, whatever is measured: no GPU made the header.
void require_gpu(const RunHeader& header);

/// The device of measured `ceilings` as the simulator takes it. Rates come from the ceilings (HBM, L2, tensor
/// and CUDA cores), the clock from their samples where they have one; multiprocessors, memory, L2 and compute
/// capability from the run's header; what nobody measures (ways, latencies, L1, launches) from `like`. Every
/// source says which; where `like` is the device itself by its name or runtime name, it keeps name and
/// sources. Throws InvalidArgument for a header without multiprocessors (a CPU), and for values that no
/// device file may have.
DeviceSpec measured_device(const DeviceCeilings& ceilings, const RunHeader& header, const DeviceSpec& like);

}  // namespace moescope
