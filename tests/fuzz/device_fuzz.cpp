// Device files: any text is parsed or refused with FileError, and what was parsed can be written and read
// again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/base/error.hpp"
#include "profiler/simulator/sim_device.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  try {
    const DeviceSpec device = parse_device({reinterpret_cast<const char*>(data), size}, "fuzz.json");
    const std::string text = device_json(device);
    if (device_json(parse_device(text, "again.json")) != text) {
      std::abort();
    }
  } catch (const FileError&) {
  }
  return 0;
}
