// Every family of workloads for the baselines.
#include "core/systems/system_workload.hpp"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/files/safetensors.hpp"
#include "core/systems/system_making.hpp"
#include "core/workload/workload_files.hpp"
#include "core/workload/workload_parts.hpp"

namespace moescope {
namespace {

using Family = WorkloadSpec::Family;

bool has_feature(Family family) {
  return family == Family::kZipf || family == Family::kDrift || family == Family::kHot;
}

/// What a family adds to the logits of rows or columns where feature 0 is 1.
std::vector<float> added(const WorkloadSpec& spec, std::int64_t count, std::uint64_t seed,
                         RandomStream stream) {
  const auto& p = spec.parameters;
  if (spec.family == Family::kHot) {
    return detail::hot_boosts(count, static_cast<std::int64_t>(p[1]), p[2], seed, stream);
  }
  return detail::popularity_bias(count, p[0], spec.family == Family::kDrift ? p[1] : 0, seed, stream);
}

/// Feature 0 of every query's half is carried by its first two elements, as f and -f: a layer norm moves both
/// by the same, which the sub-keys' b/2 and -b/2 take out again.
void set_key_feature(ProductKeyWeights& keys, const SystemShape& shape, const std::vector<float>& row,
                     const std::vector<float>& col) {
  for (std::int64_t q = 0; q < keys.queries.rows(); ++q) {
    const std::int64_t element = q % shape.key_size;
    if (element < 2) {
      for (std::int64_t j = 0; j < shape.hidden_size; ++j) {
        detail::set_element(keys.queries, q, j, 0);
      }
    }
    detail::set_element(keys.queries, q, 0, element == 0 ? 1.0F : element == 1 ? -1.0F : 0.0F);
  }
  const std::int64_t n = shape.num_keys();
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    for (std::int64_t key = 0; key < n; ++key) {
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t at = (head * n + key) * 2 + half;
        const float b = (half == 0 ? row : col)[static_cast<std::size_t>(key)];
        detail::set_element(keys.keys, at, 0, b / 2);
        detail::set_element(keys.keys, at, 1, -b / 2);
      }
    }
  }
}

void add_feature(const WorkloadSpec& spec, SystemInputs& inputs, SystemWeights& weights) {
  const SystemShape& shape = inputs.shape;
  if (spec.family == Family::kHot) {
    detail::flag_hot_tokens(inputs.hidden_states, spec.parameters[0], inputs.seed);
  } else {
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      detail::set_element(inputs.hidden_states, token, 0, 1);
    }
  }
  if (shape.has_product_keys()) {
    set_key_feature(*weights.keys, shape, added(spec, shape.num_keys(), inputs.seed, RandomStream::kRowRanks),
                    added(spec, shape.num_keys(), inputs.seed, RandomStream::kColRanks));
  } else if (shape.has_routing()) {
    const auto bias = added(spec, shape.num_experts, inputs.seed, RandomStream::kColRanks);
    for (std::int64_t expert = 0; expert < shape.num_experts; ++expert) {
      detail::set_element(weights.router, expert, 0, bias[static_cast<std::size_t>(expert)]);
    }
  }
}

SystemInputs make_synthetic(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed,
                            bool experts) {
  shape.validate();
  require_room(spec, shape);
  detail::require_system_memory(shape);
  SystemInputs inputs;
  inputs.shape = shape;
  inputs.seed = seed;
  inputs.workload = spec.text;
  if (spec.family == Family::kUniform && shape.has_routing()) {
    inputs.fixed_routing = detail::uniform_routing(shape.query_shape(), seed);
  }
  inputs.hidden_states = spec.family == Family::kClustered
                             ? detail::clustered_tokens(shape.dtype, shape.num_tokens, shape.hidden_size,
                                                        spec.parameters[0], spec.parameters[1], seed)
                             : detail::normal_tokens(shape, seed);
  const double deviation = spec.family == Family::kGaussian ? spec.parameters.front() : 1;
  auto weights = detail::make_system_weights(shape, deviation, seed, experts);
  if (has_feature(spec.family)) {
    add_feature(spec, inputs, *weights);
  }
  inputs.weights = std::move(weights);
  return inputs;
}

}  // namespace

SystemShape complete_shape(const WorkloadSpec& spec, const SystemShape& requested) {
  switch (spec.family) {
    case Family::kSnapshot:
      return detail::complete_system_snapshot(read_safetensors(spec.path), spec, requested);
    case Family::kTrace:
      return detail::complete_system_trace(detail::read_trace(spec), spec, requested);
    default:
      return requested;
  }
}

void require_room(const WorkloadSpec& spec, const SystemShape& shape) {
  if (!shape.has_routing()) {
    return;
  }
  if (shape.has_product_keys()) {
    detail::require_hot_room(spec, shape.num_keys(), fmt::format("the {} sub-keys", shape.num_keys()));
    if (has_feature(spec.family) && shape.key_size < 2) {
      throw InvalidArgument("key_size", fmt::to_string(shape.key_size),
                            fmt::format("must be at least 2 for workload {}", spec.text));
    }
    return;
  }
  detail::require_hot_room(spec, shape.num_experts, fmt::format("num_experts = {}", shape.num_experts));
}

namespace {

SystemInputs make(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed, bool experts) {
  SystemInputs inputs = spec.family == Family::kSnapshot
                            ? detail::make_system_snapshot(read_safetensors(spec.path), spec, shape, seed)
                        : spec.family == Family::kTrace
                            ? detail::make_system_trace(detail::read_trace(spec), spec, shape, seed, experts)
                            : make_synthetic(spec, shape, seed, experts);
  inputs.workload = spec.text;
  inputs.seed = seed;
  inputs.validate();
  return inputs;
}

}  // namespace

SystemInputs make_workload(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed) {
  return make(spec, shape, seed, true);
}

SystemInputs make_routing_workload(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed) {
  return make(spec, shape, seed, false);
}

}  // namespace moescope
