#pragma once

#include <cstdint>
#include <string>

/// A GPU as planning sees it: how many multiprocessors take work at a time, and what they can hold. Whoever
/// cuts work to fill a device takes these and knows no device by name. Kernels' launchers have them from the
/// CUDA runtime (kernels/runtime/device_info.hpp), the simulator from a device's file.
namespace moescope {

struct GpuTraits {
  std::string name;                     ///< as the CUDA runtime or the device's file says
  std::int64_t compute_capability = 0;  ///< 10 * major + minor, e.g. 90
  std::int64_t num_sms = 0;             ///< multiprocessors
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t shared_bytes_per_block = 0;  ///< with the opt-in above 48 KiB
  double sm_clock_hz = 0;  ///< highest, or (in a device's file) what kernels sustain; 0: not known

  /// Thread block clusters, from compute capability 9.0 on.
  constexpr bool has_clusters() const { return compute_capability >= 90; }
  /// Warpgroup matrix products (wgmma), which compute capability 9.0 alone has.
  constexpr bool has_wgmma() const { return compute_capability == 90; }
};

}  // namespace moescope
