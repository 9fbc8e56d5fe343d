// Stands for cupti_counters.cpp and cupti_kernels.cpp in a build without CUDA or without CUPTI's headers.
#include "core/base/error.hpp"
#include "profiler/counters/cupti_counters.hpp"
#include "profiler/counters/cupti_kernels.hpp"

namespace moescope {
namespace {
constexpr const char* kWhy =
    "this build has no CUPTI; build the cuda preset with a CUDA toolkit that has CUPTI's headers";
}

std::unique_ptr<CounterSource> make_cupti_counters() { throw CountersUnavailable(kWhy); }

std::unique_ptr<KernelTracer> make_cupti_tracer() { throw CountersUnavailable(kWhy); }

CounterPlan plan_counters(std::string_view /*chip*/, std::span<const std::string> /*counters*/) {
  throw CountersUnavailable(kWhy);
}

CuptiStatus cupti_status() {
  CuptiStatus status;
  status.reason = kWhy;
  return status;
}

}  // namespace moescope
