#include "core/workload/workload.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"
#include "core/workload/workload_sources.hpp"

namespace moescope {
namespace {

bool comes_from_file(const WorkloadSpec& spec) {
  return spec.family == WorkloadSpec::Family::kSnapshot || spec.family == WorkloadSpec::Family::kTrace;
}

}  // namespace

LayerShape complete_shape(const WorkloadSpec& spec, const LayerShape& requested) {
  return comes_from_file(spec) ? detail::complete_file_shape(spec, requested) : requested;
}

void require_room(const WorkloadSpec& spec, const LayerShape& shape) {
  if (spec.family != WorkloadSpec::Family::kHot) {
    return;
  }
  const auto count = static_cast<std::int64_t>(spec.parameters[1]);
  if (count > std::min(shape.grid_rows, shape.grid_cols)) {
    throw InvalidArgument("workload", spec.text,
                          fmt::format("COUNT = {} must not exceed grid_rows = {} and grid_cols = {}", count,
                                      shape.grid_rows, shape.grid_cols));
  }
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
