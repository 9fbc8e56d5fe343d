// Any text as a calibration: fits that can be written and read again, or an Error.
#include <cstdlib>

#include "fuzz_text.hpp"
#include "profiler/simulator/sim_calibration.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    const Calibration calibration = parse_calibration(fuzz::text_of(data, size), "fuzz.json");
    const std::string text = calibration_json(calibration);
    if (calibration_json(parse_calibration(text, "again.json")) != text) {
      std::abort();
    }
    (void)carried_over(calibration, "another device");
  });
  return 0;
}
