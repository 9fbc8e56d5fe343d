#pragma once

#include "profiler/simulator/sim_calibration.hpp"
#include "profiler/simulator/sim_device.hpp"
#include "profiler/simulator/streams/access_stream.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"

/// What the simulator knows of a recorded device.
namespace moescope::test {

inline DeviceSpec h100() { return read_device(source_path("data/devices/h100-sxm/device.json")); }

/// Streams as on large_gpu(), with the constants of that device.
inline StreamOptions on_large_gpu() {
  StreamOptions options;
  options.gpu = large_gpu();
  options.constants =
      read_calibration(source_path("data/devices/h100-sxm/calibration.json")).stream_constants();
  return options;
}

}  // namespace moescope::test
