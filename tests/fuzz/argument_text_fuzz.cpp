// Any text as what stands on a command line: workloads, grids, schedules, device variations, --vary. The same
// texts stand in rows and experiments.
#include <cstdlib>

#include "core/base/build_info.hpp"
#include "core/base/grid_text.hpp"
#include "core/schedule/schedule.hpp"
#include "core/workload/workload.hpp"
#include "fuzz_text.hpp"
#include "profiler/simulator/device_variation.hpp"

namespace moescope {
namespace {

const DeviceSpec& device() {
  static const DeviceSpec spec =
      read_device(std::string(build_info().source_dir) + "/data/devices/l4/device.json");
  return spec;
}

}  // namespace
}  // namespace moescope

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::may_refuse([&] {
    const auto spec = WorkloadSpec::parse(text);
    if (WorkloadSpec::parse(spec.text).text != spec.text) {
      std::abort();
    }
  });
  fuzz::may_refuse([&] {
    const ScheduleOptions options = parse_schedule(text);
    if (to_string(parse_schedule(to_string(options))) != to_string(options)) {
      std::abort();
    }
  });
  fuzz::may_refuse([&] { (void)parse_grid(text); });
  fuzz::may_refuse([&] { (void)vary_device(device(), text); });
  fuzz::may_refuse([&] {
    const VariedKey varied = parse_varied_key(text);
    for (const std::string& value : varied.values) {
      if (value.empty()) {
        std::abort();
      }
    }
  });
  return 0;
}
