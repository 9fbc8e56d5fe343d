#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace moescope::cuda {

/// What a run header says of the GPU and the libraries in use.
struct DeviceInfo {
  std::string pci_bus_id;   ///< e.g. "0000:04:00.0"
  std::string name;         ///< e.g. "NVIDIA H100 80GB HBM3"
  std::string driver;       ///< of the kernel driver, e.g. "580.159.04"; "unavailable: <reason>" without NVML
  std::string cuda_driver;  ///< newest CUDA version the driver supports, e.g. "13.0"
  std::string cuda_runtime;  ///< e.g. "13.0"
  std::string cublas_lt;     ///< e.g. "13.0.2"
  std::string cusparse;
  std::int64_t compute_capability = 0;  ///< 10 * major + minor, e.g. 90
  std::int64_t num_sms = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t shared_memory_per_block_bytes = 0;  ///< with the opt-in above 48 KiB
};

/// One line that says why this build cannot use a GPU here: no driver, no device, or a GPU this build
/// carries no code for. Empty when it can. Does not throw.
std::optional<std::string> why_no_device();

/// The current device. Throws NoDevice with the line above.
DeviceInfo device_info();

}  // namespace moescope::cuda
