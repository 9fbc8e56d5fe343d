// Any text as an experiment: points that are distinct and named, or an Error.
#include <cstdint>
#include <cstdlib>

#include "core/base/error.hpp"
#include "core/results/experiment.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  try {
    // libFuzzer hands out bytes; they are the text.
    const Experiment experiment =
        parse_experiment({reinterpret_cast<const char*>(data), size}, "fuzz");  // NOLINT
    for (const ExperimentPoint& point : experiment.points) {
      if (point.id.size() != 16 || point.label.empty()) {
        std::abort();
      }
    }
    if (experiment.points.empty() ||
        parse_experiment(experiment.canonical, "fuzz").canonical != experiment.canonical) {
      std::abort();
    }
  } catch (const InternalError&) {
    throw;  // a bug of ours
  } catch (const Error&) {
  }
  return 0;
}
