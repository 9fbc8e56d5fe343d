#include "kernels/gpu_rates.hpp"

#include <fmt/format.h>

namespace moescope::cuda {

MachineRates gpu_rates(const DeviceInfo& device) {
  const bool same = device.name.find("H100") != std::string::npos;
  MachineRates rates;
  rates.source = same ? "fitted to rows recorded on an H100"
                      : fmt::format("of an H100 (here: {}), fitted to rows recorded there", device.name);
  rates.cache_bytes = static_cast<double>(device.l2_bytes);
  rates.candidates = {
#include "kernels/h100_rates.inc"
  };
  return rates;
}

}  // namespace moescope::cuda
