#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/gpu_traits.hpp"

namespace moescope::cuda {

/// What a run header says of the GPU and the libraries in use.
struct DeviceInfo : GpuTraits {
  std::string pci_bus_id;   ///< e.g. "0000:04:00.0"
  std::string driver;       ///< of the kernel driver, e.g. "580.159.04"; "unavailable: <reason>" without NVML
  std::string cuda_driver;  ///< newest CUDA version the driver supports, e.g. "13.0"
  std::string cuda_runtime;  ///< e.g. "13.0"
  std::string cublas_lt;     ///< e.g. "13.0.2"
  std::string cusparse;
  double memory_bytes_per_s = 0;  ///< peak, by the memory's clock and bus; 0 where the driver does not say
};

/// One line that says why this build cannot use a GPU here: no driver, no device, or a GPU this build
/// carries no code for. Empty when it can. Does not throw.
std::optional<std::string> why_no_device();

/// What planning needs of the current device: asked for once per device, so cheap enough for every launch.
/// Throws CudaError.
const GpuTraits& current_gpu();

/// The current device. Throws NoDevice with the line above.
DeviceInfo device_info();

}  // namespace moescope::cuda
