#include "core/workload/workload.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/workload/workload_parts.hpp"
#include "core/workload/workload_sources.hpp"

namespace moescope {
LayerShape complete_shape(const WorkloadSpec& spec, const LayerShape& requested) {
  return from_file(spec) ? detail::complete_file_shape(spec, requested) : requested;
}

void require_room(const WorkloadSpec& spec, const LayerShape& shape) {
  detail::require_hot_room(
      spec, std::min(shape.grid_rows, shape.grid_cols),
      fmt::format("grid_rows = {} and grid_cols = {}", shape.grid_rows, shape.grid_cols));
}

LayerInputs make_workload(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                          std::shared_ptr<const ExpertWeights> experts) {
  // Files complete the shape themselves, so that large ones are read once.
  auto inputs = from_file(spec) ? detail::make_from_file(spec, shape, seed, std::move(experts))
                                : detail::make_synthetic(spec, shape, seed, std::move(experts));
  inputs.validate();
  return inputs;
}

}  // namespace moescope
