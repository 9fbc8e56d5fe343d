#pragma once

#include <memory>
#include <string>
#include <vector>

#include "profiler/counters/kernel_trace.hpp"
#include "profiler/limits/layer_profile.hpp"

namespace moescope {

/// Counters and kernels for `profile`, as far as they can be had.
struct ProfileSource {
  std::unique_ptr<CounterSource> counters;  ///< null: `reason` says why
  MetricSelection selection;
  std::string reason;
  std::unique_ptr<KernelTracer> tracer;  ///< null: none
  std::string text;            ///< what is said before the run: source, chip, passes, what is missing
  bool asked_in_vain = false;  ///< a source was named and has no counters

  CounterSetup setup() const { return {counters.get(), selection, reason}; }
};

/// `name`: "" (the backend's own), "cupti", "perf_event", "recorded:FILE" or "none". `metrics`: sets, our
/// names and the vendor's counters; perf_event has its own few. Throws InvalidArgument for names, FileError
/// for a recording; counters that are not permitted are a reason, not an error.
ProfileSource make_profile_source(const std::string& name, const std::string& backend,
                                  const std::vector<std::string>& metrics);

/// From here to the end of its life, cudaProfilerStart to cudaProfilerStop (backend "cuda"; nothing on
/// others).
class ExternalProfilerRange {
 public:
  explicit ExternalProfilerRange(const std::string& backend);
  ExternalProfilerRange(const ExternalProfilerRange&) = delete;
  ExternalProfilerRange& operator=(const ExternalProfilerRange&) = delete;
  ~ExternalProfilerRange();

 private:
  [[maybe_unused]] bool cuda_;  // read where there is CUDA
};

}  // namespace moescope
