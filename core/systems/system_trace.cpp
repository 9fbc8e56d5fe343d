// trace:FILE for the baselines: recorded routing, random tokens and weights.
#include <fmt/format.h>

#include <optional>

#include "core/base/error.hpp"
#include "core/systems/system_making.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope::detail {
namespace {

/// As recorded: by number, or by the grid that write_trace() adds.
std::optional<std::int64_t> recorded_experts(const ArrayFile& file, std::string_view path) {
  if (const auto experts = metadata_extent(file, path, "num_experts")) {
    return experts;
  }
  const auto rows = metadata_extent(file, path, "grid_rows");
  const auto cols = metadata_extent(file, path, "grid_cols");
  return rows && cols ? std::optional(*rows * *cols) : std::nullopt;
}

}  // namespace

SystemShape complete_system_trace(const ArrayFile& file, const WorkloadSpec& spec,
                                  const SystemShape& requested) {
  const std::string_view path = spec.path;
  const TraceExtents recorded = trace_extents(file, path);
  SystemShape shape = requested;
  if (!shape.has_routing()) {  // the tokens of a batch that long
    shape.num_tokens = fit_at_most("num_tokens", requested.num_tokens, recorded.rows, path);
    shape.validate();
    return shape;
  }
  require_recorded_system(file, spec, to_string(shape.system));
  if (shape.has_product_keys()) {
    if (const auto heads = metadata_extent(file, path, "heads")) {
      shape.heads = fit_extent("heads", requested.heads, *heads, path);
    }
  }
  if (shape.heads == 0) {
    throw InvalidArgument("heads", "0", fmt::format("{} does not record it: must be given", path));
  }
  if (shape.heads < 0 || recorded.rows % shape.heads != 0) {
    throw InvalidArgument("heads", fmt::to_string(shape.heads),
                          fmt::format("must divide the {} rows of {}", recorded.rows, path));
  }
  shape.num_tokens = fit_at_most("num_tokens", requested.num_tokens, recorded.rows / shape.heads, path);
  shape.top_k = fit_extent("top_k", requested.top_k, recorded.top_k * shape.heads, path);
  const auto experts = recorded_experts(file, path);
  if (!experts && requested.num_experts == 0) {
    throw InvalidArgument("num_experts", "0", fmt::format("{} does not record it: must be given", path));
  }
  shape.num_experts =
      experts ? fit_extent("num_experts", requested.num_experts, *experts, path) : requested.num_experts;
  if (shape.hidden_size == 0) {
    throw InvalidArgument("hidden_size", "0", fmt::format("{} holds routing alone: must be given", path));
  }
  shape.validate();
  return shape;
}

SystemInputs make_system_trace(ArrayFile file, const WorkloadSpec& spec, const SystemShape& requested,
                               std::uint64_t seed, bool experts) {
  SystemInputs inputs;
  inputs.shape = complete_system_trace(file, spec, requested);
  require_system_memory(inputs.shape);
  if (inputs.shape.has_routing()) {
    inputs.fixed_routing = take_trace_routing(file, spec.path, inputs.shape.query_shape());
  }
  file.arrays.clear();
  inputs.hidden_states = normal_tokens(inputs.shape, seed);
  inputs.weights = make_system_weights(inputs.shape, 1, seed, experts);
  return inputs;
}

}  // namespace moescope::detail
