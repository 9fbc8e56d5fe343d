// trace:FILE - recorded routing alone: expert_ids [L,K], optional gates [L,K] (docs/guide/your-model.md).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/workload/deterministic_math.hpp"
#include "core/workload/workload.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope::detail {
namespace {

/// Grid extent: requested, or recorded by write_trace(). Nothing in the ids themselves says where rows end.
std::int64_t grid_extent(const ArrayFile& file, std::string_view path, const std::string& key,
                         std::int64_t requested) {
  if (const auto recorded = metadata_extent(file, path, key)) {
    return fit_extent(key, requested, *recorded, path);
  }
  if (requested == 0) {
    throw InvalidArgument(key, "0", fmt::format("{} does not record it: must be given", path));
  }
  return requested;
}

struct Pair {
  std::int64_t id;
  std::size_t position;
};

[[noreturn]] void refuse_id(std::string_view path, std::int64_t token, std::size_t position,
                            std::string_view what) {
  throw FileError(path, fmt::format("expert_ids[token {}, position {}]", token, position), what);
}

/// Pairs of one token in ascending order of ids.
void sort_pairs(std::span<const std::int64_t> ids, const LayerShape& shape, std::string_view path,
                std::int64_t token, std::vector<Pair>& pairs) {
  pairs.clear();
  for (std::size_t k = 0; k < ids.size(); ++k) {
    if (ids[k] < 0 || ids[k] >= shape.num_experts()) {
      refuse_id(path, token, k,
                fmt::format("{}: must be in [0, {}) for grid {} x {}", ids[k], shape.num_experts(),
                            shape.grid_rows, shape.grid_cols));
    }
    pairs.push_back({ids[k], k});
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return std::pair(a.id, a.position) < std::pair(b.id, b.position);
  });
  const auto twin = std::adjacent_find(pairs.begin(), pairs.end(),
                                       [](const Pair& a, const Pair& b) { return a.id == b.id; });
  if (twin != pairs.end()) {
    refuse_id(path, token, (twin + 1)->position,
              fmt::format("{}: repeats position {}", twin->id, twin->position));
  }
}

/// Gates of the recording, or 1/K each.
std::vector<float> take_gates(ArrayFile& file, std::string_view path, const LayerShape& shape) {
  const auto count = static_cast<std::size_t>(shape.num_pairs());
  std::vector<float> gates;
  if (!file.has("gates")) {
    gates.assign(count, static_cast<float>(1.0 / static_cast<double>(shape.top_k)));
    return gates;
  }
  gates = file.get(path, "gates").to_floats(path, "gates");
  file.arrays.erase("gates");
  gates.resize(count);  // the first tokens
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(gates[i])) {
      const auto k = static_cast<std::size_t>(shape.top_k);
      throw FileError(path, fmt::format("gates[token {}, position {}]", i / k, i % k),
                      fmt::format("{}: must be finite", gates[i]));
    }
  }
  return gates;
}

}  // namespace

TraceExtents trace_extents(const ArrayFile& file, std::string_view path) {
  const FileArray& ids = file.get(path, trace_ids_name(file));
  require_matrix(ids, path, "expert_ids", "[num_tokens, top_k]");
  if (file.has("gates")) {
    require_extents(file.get(path, "gates"), path, "gates", ids.shape, "that of expert_ids");
  }
  return {.rows = ids.shape[0], .top_k = ids.shape[1]};
}

Routing take_trace_routing(ArrayFile& file, std::string_view path, const LayerShape& shape) {
  const FileArray& recorded_ids = file.get(path, trace_ids_name(file));
  const auto k = static_cast<std::size_t>(shape.top_k);
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.gates = take_gates(file, path, shape);
  routing.token_offsets.resize(static_cast<std::size_t>(shape.num_tokens) + 1);
  routing.expert_ids.resize(static_cast<std::size_t>(shape.num_pairs()));
  std::vector<std::int64_t> ids(k);
  std::vector<float> gates(k);
  std::vector<Pair> pairs;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const std::int64_t first = token * shape.top_k;
    copy_integers(recorded_ids, first, ids, path, "expert_ids");
    sort_pairs(ids, shape, path, token, pairs);
    const auto token_gates = std::span(routing.gates).subspan(static_cast<std::size_t>(first), k);
    std::copy(token_gates.begin(), token_gates.end(), gates.begin());
    for (std::size_t i = 0; i < k; ++i) {
      routing.expert_ids[static_cast<std::size_t>(first) + i] = static_cast<std::int32_t>(pairs[i].id);
      token_gates[i] = gates[pairs[i].position];
    }
    routing.token_offsets[static_cast<std::size_t>(token) + 1] = first + shape.top_k;
  }
  return routing;
}

LayerShape complete_trace_shape(const ArrayFile& file, const WorkloadSpec& spec,
                                const LayerShape& requested) {
  const std::string_view path = spec.path;
  const TraceExtents recorded = trace_extents(file, path);
  const std::string system = require_recorded_system(file, spec, "omnimoe");
  LayerShape shape = requested;
  shape.num_tokens = fit_at_most("num_tokens", requested.num_tokens, recorded.rows, path);
  shape.top_k = fit_extent("top_k", requested.top_k, recorded.top_k, path);
  // The grid that another system recorded says how many experts there are, not where rows of them end.
  const bool own_grid = system.empty() || system == "omnimoe" || requested.grid_rows == 0;
  if (own_grid) {
    shape.grid_rows = grid_extent(file, path, "grid_rows", requested.grid_rows);
    shape.grid_cols = grid_extent(file, path, "grid_cols", requested.grid_cols);
  } else if (const auto experts = metadata_extent(file, path, "num_experts")) {
    fit_extent("num_experts", shape.num_experts(), *experts, path);
  }
  if (requested.hidden_size == 0) {
    throw InvalidArgument("hidden_size", "0", fmt::format("{} holds routing alone: must be given", path));
  }
  shape.validate();
  return shape;
}

LayerInputs make_trace(ArrayFile file, const WorkloadSpec& spec, const LayerShape& requested,
                       std::uint64_t seed, std::shared_ptr<const ExpertWeights> experts) {
  LayerInputs inputs;
  inputs.shape = complete_trace_shape(file, spec, requested);
  inputs.fixed_routing = take_trace_routing(file, spec.path, inputs.shape);
  file.arrays.clear();
  inputs.hidden_states = HostTensor(inputs.shape.dtype, inputs.shape.num_tokens, inputs.shape.hidden_size);
  fill_normal(inputs.hidden_states, 1, seed, RandomStream::kHiddenStates);
  inputs.experts = experts ? std::move(experts) : make_expert_weights(inputs.shape, seed);
  inputs.validate();
  return inputs;
}

}  // namespace moescope::detail
