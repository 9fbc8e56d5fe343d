#include "experiments/options/profile_sources.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "profiler/counters/cupti_counters.hpp"
#include "profiler/counters/cupti_kernels.hpp"
#include "profiler/counters/perf_events.hpp"
#include "profiler/counters/recorded_counters.hpp"

#ifdef MOESCOPE_HAVE_CUDA
#include <cuda_profiler_api.h>
#endif

namespace moescope {
namespace {

constexpr std::string_view kRecorded = "recorded:";

/// What a plan says before anything runs.
std::string plan_text(const CounterSource& source, const MetricSelection& selection,
                      const CounterPlan& plan) {
  std::string text = fmt::format(
      "counters: {} on {}, {} metrics from {} counters, {} passes over each schedule, "
      "by stage and as a whole\n",
      source.name(), plan.chip, selection.metrics.size(), plan.counters.size(), plan.passes);
  for (const MetricValue& missing : selection.unavailable) {
    text += fmt::format("  {} unavailable: {}\n", missing.name, missing.reason);
  }
  for (const UnavailableCounter& missing : plan.unavailable) {
    text += fmt::format("  {} unavailable: {}\n", missing.name, missing.reason);
  }
  return text;
}

void open_cupti(ProfileSource& source, const std::vector<std::string>& metrics) {
  source.counters = make_cupti_counters();
  const std::string chip = source.counters->plan({}).chip;
  source.selection = MetricCatalogue::builtin().resolve(chip, metrics);
}

}  // namespace

ProfileSource make_profile_source(const std::string& name, const std::string& backend,
                                  const std::vector<std::string>& metrics) {
  const std::string chosen = !name.empty() ? name : backend == "cuda" ? "cupti" : "perf_event";
  if ((chosen == "cupti" && backend != "cuda") || (chosen == "perf_event" && backend != "cpu")) {
    throw InvalidArgument("source", chosen, fmt::format("does not count on the {} backend", backend));
  }
  ProfileSource source;
  try {
    if (chosen == "cupti") {
      open_cupti(source, metrics);
    } else if (chosen == "perf_event") {
      source.counters = make_perf_events();
      source.selection = perf_event_metrics();
    } else if (chosen.starts_with(kRecorded)) {
      source.counters = make_recorded_counters(read_recording(chosen.substr(kRecorded.size())));
      const std::string chip = source.counters->plan({}).chip;
      source.selection = chip == perf_event_metrics().chip
                             ? perf_event_metrics()
                             : MetricCatalogue::builtin().resolve(chip, metrics);
    } else if (chosen != "none") {
      throw InvalidArgument("source", name, "must be cupti, perf_event, recorded:FILE or none");
    }
    if (source.counters == nullptr) {
      source.reason = "none asked for (--source none)";
      source.text = "counters: none asked for\n";
    } else {
      const CounterPlan plan = source.counters->plan(source.selection.counters());
      source.text = plan_text(*source.counters, source.selection, plan);
      source.asked_in_vain = !name.empty() && plan.counters.empty();
    }
  } catch (const CountersUnavailable& error) {
    source.counters.reset();
    source.reason = error.what();
    source.text = fmt::format("counters: {}\n", error.what());
    source.asked_in_vain = !name.empty();
  }
  if (backend == "cuda" && chosen == "cupti") {
    try {
      source.tracer = make_cupti_tracer();
    } catch (const CountersUnavailable& error) {
      source.text += fmt::format("kernels: {}\n", error.what());
    }
  }
  return source;
}

#ifdef MOESCOPE_HAVE_CUDA
ExternalProfilerRange::ExternalProfilerRange(const std::string& backend) : cuda_(backend == "cuda") {
  if (cuda_) {
    (void)cudaProfilerStart();
  }
}
ExternalProfilerRange::~ExternalProfilerRange() {
  if (cuda_) {
    (void)cudaProfilerStop();
  }
}
#else
ExternalProfilerRange::ExternalProfilerRange(const std::string& /*backend*/) : cuda_(false) {}
ExternalProfilerRange::~ExternalProfilerRange() = default;
#endif

}  // namespace moescope
