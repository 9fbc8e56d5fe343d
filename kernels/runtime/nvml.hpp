#pragma once

#include <memory>
#include <string>

#include "core/backend/moe_backend.hpp"

namespace moescope::cuda {

/// Clocks, temperature and driver version through the driver's libnvidia-ml.so.1, opened at run time: a
/// machine without it loses these readings, not the program. Reads only; no setting is ever changed.
class Nvml {
 public:
  /// `pci_bus_id` as cudaDeviceGetPCIBusId gives it: NVML and CUDA may number devices differently.
  explicit Nvml(const std::string& pci_bus_id);
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml();

  /// Why there are no readings; empty when there are.
  const std::string& unavailable_reason() const { return reason_; }
  /// Readings of now; those that cannot be had are negative.
  ClockSample sample() const;
  /// "580.159.04", or "unavailable: <reason>".
  std::string driver_version() const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;
  std::string reason_;
};

}  // namespace moescope::cuda
