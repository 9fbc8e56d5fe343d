// Any text as a catalogue of metrics: every metric of every chip can be evaluated, or an Error.
#include <cstdlib>

#include "fuzz_text.hpp"
#include "profiler/counters/metric_catalogue.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    const auto catalogue = MetricCatalogue::parse(fuzz::text_of(data, size), "fuzz.json");
    std::vector<std::string> names;
    for (const Metric& metric : catalogue.metrics("GH100")) {
      names.push_back(metric.name);
    }
    for (const char* chip : {"GH100", "another"}) {
      const MetricSelection selection = catalogue.resolve(chip, names);
      RangeCounters range{"range", {}};
      for (const std::string& counter : selection.counters()) {
        range.values[counter] = static_cast<double>(range.values.size());
      }
      if (evaluate(selection, {}, range).size() != selection.metrics.size() + selection.unavailable.size()) {
        std::abort();
      }
    }
  });
  return 0;
}
