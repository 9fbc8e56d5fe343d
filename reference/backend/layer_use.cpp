#include "reference/backend/layer_use.hpp"

#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "reference/systems/host_needs.hpp"

namespace moescope {
namespace {

using Family = WorkloadSpec::Family;

/// A file is read whole, and its arrays are converted one after another.
double file_bytes(const WorkloadSpec& spec) {
  if (spec.path.empty()) {
    return 0;
  }
  std::error_code none;
  const auto size = std::filesystem::file_size(spec.path, none);
  return none ? 0 : static_cast<double>(size);
}

}  // namespace

double layer_host_bytes(const LayerShape& shape, const WorkloadSpec& spec, bool has_experts,
                        const LayerUse& use) {
  const int threads = omp_get_max_threads();
  const bool on_host = use.backend == "cpu";
  const bool fixed = spec.family == Family::kUniform || spec.family == Family::kTrace;
  const double inputs = inputs_host_bytes(shape, fixed, has_experts);
  const double routing = routing_host_bytes(shape);
  // Routing on the host is a stage of its own before any schedule is prepared.
  double passing = std::max(fixed || !on_host ? 0 : cpu_router_needs(shape).passing,
                            // Without schedules the loads are shown: in order, and once more in bins.
                            (use.schedules.empty() ? 2 : 1) * analysis_host_bytes(shape, threads));
  double kept = 0;
  for (const ScheduleOptions& options : use.schedules) {
    HostNeeds run = on_host ? cpu_execution_needs(shape, fixed, options) : HostNeeds{};
    if (on_host && use.trains) {
      run.passing = cpu_training_bytes(shape, fixed, options, shape.dtype);
    }
    const HostNeeds lists = schedule_host_needs(shape, fixed, options, threads);
    const double counted = lists.kept + std::max(lists.passing, analysis_host_bytes(shape, threads));
    const double judged = use.judged_tokens > 0 ? oracle_host_bytes(shape, use.judged_tokens) : 0;
    kept = use.side_by_side ? kept + run.kept : std::max(kept, run.kept);
    passing = std::max({passing, run.passing, counted, judged});
  }
  if (on_host && !use.schedules.empty()) {
    passing = with_cold_runs(passing);
  }
  return inputs + std::max(file_bytes(spec), routing + kept + passing);
}

double system_host_bytes(const SystemShape& shape, const WorkloadSpec& spec, std::string_view backend,
                         std::int64_t judged_tokens) {
  LayerShape routed = shape.row_shape();
  routed.num_tokens = shape.num_queries();
  const bool fixed = spec.family == Family::kUniform || spec.family == Family::kTrace;
  const double batch = static_cast<double>(shape.num_tokens) * static_cast<double>(shape.hidden_size) *
                       static_cast<double>(dtype_bytes(shape.dtype));
  const HostNeeds run = backend == "cpu" ? cpu_system_needs(shape, fixed) : HostNeeds{};
  const double apart = std::max({run.passing, analysis_host_bytes(routed, omp_get_max_threads()),
                                 oracle_host_bytes(routed, judged_tokens)});
  // A fixed routing is there twice: of the inputs and of the layer.
  const double routings = (fixed ? 2 : 1) * routing_host_bytes(routed);
  return static_cast<double>(shape.weight_bytes()) + batch +
         std::max(file_bytes(spec), routings + run.kept + with_cold_runs(apart));
}

}  // namespace moescope
