#include "core/workload/workload.hpp"

#include <utility>

#include "core/workload/workload_sources.hpp"

namespace moescope {
namespace {

bool comes_from_file(const WorkloadSpec& spec) {
  return spec.family == WorkloadSpec::Family::kSnapshot || spec.family == WorkloadSpec::Family::kTrace;
}

}  // namespace

LayerShape complete_shape(const WorkloadSpec& spec, const LayerShape& requested) {
  if (comes_from_file(spec)) {
    return detail::complete_file_shape(spec, requested);
  }
  detail::require_room(spec, requested);
  return requested;
}

LayerInputs make_workload(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                          std::shared_ptr<const ExpertWeights> experts) {
  // Files complete the shape themselves, so that large ones are read once.
  auto inputs = comes_from_file(spec) ? detail::make_from_file(spec, shape, seed, std::move(experts))
                                      : detail::make_synthetic(spec, shape, seed, std::move(experts));
  inputs.validate();
  return inputs;
}

}  // namespace moescope
