// Any text as recorded counters: a source that measures what it planned, or an Error.
#include <cstdlib>

#include "fuzz_text.hpp"
#include "profiler/counters/recorded_counters.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    const CounterRecording recording = parse_recording(fuzz::text_of(data, size), "fuzz.json");
    const auto source = make_recorded_counters(recording);
    const CounterPlan plan = source->plan(recording.plan.counters);
    RangedWork work;
    for (const RangeCounters& range : recording.ranges) {
      work.ranges.push_back(range.range);
    }
    if (source->measure(plan, work).size() != work.ranges.size()) {
      std::abort();
    }
  });
  return 0;
}
