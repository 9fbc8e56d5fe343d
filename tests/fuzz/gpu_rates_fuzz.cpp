// Rates of GPUs: any text is parsed or refused with FileError, and what was parsed can be written and read
// again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/base/error.hpp"
#include "core/devices/gpu_rates.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  try {
    const GpuRates rates = parse_gpu_rates({reinterpret_cast<const char*>(data), size}, "fuzz.json");
    const std::string text = gpu_rates_json(rates);
    if (gpu_rates_json(parse_gpu_rates(text, "again.json")) != text) {
      std::abort();
    }
  } catch (const FileError&) {
  }
  return 0;
}
