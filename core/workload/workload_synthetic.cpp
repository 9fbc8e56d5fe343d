// Synthetic workloads. All but `uniform` are made as hidden states X [L, d] and router weights and biases, so
// that the logits X Wr^T + b_r have the wanted distribution and every backend runs its whole router on them.
#include <fmt/format.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/workload/deterministic_math.hpp"
#include "core/workload/workload_parts.hpp"
#include "core/workload/workload_sources.hpp"

namespace moescope::detail {
namespace {

using Family = WorkloadSpec::Family;

HostTensor normal_tensor(const LayerShape& shape, std::int64_t rows, double standard_deviation,
                         std::uint64_t seed, RandomStream stream) {
  HostTensor tensor(shape.dtype, rows, shape.hidden_size);
  fill_normal(tensor, standard_deviation, seed, stream);
  return tensor;
}

/// Router weights ~ N(0, STD^2 / d): given a token's X with |X|^2 = d its logits are independent N(0, STD^2).
void make_router(LayerInputs& inputs, double standard_deviation) {
  const auto& shape = inputs.shape;
  const double scale = standard_deviation / std::sqrt(static_cast<double>(shape.hidden_size));
  inputs.router.row = normal_tensor(shape, shape.grid_rows, scale, inputs.seed, RandomStream::kRouterRow);
  inputs.router.col = normal_tensor(shape, shape.grid_cols, scale, inputs.seed, RandomStream::kRouterCol);
}

HostTensor normal_hidden_states(const LayerInputs& inputs) {
  return normal_tensor(inputs.shape, inputs.shape.num_tokens, 1, inputs.seed, RandomStream::kHiddenStates);
}

void make_gaussian(LayerInputs& inputs, double standard_deviation) {
  inputs.hidden_states = normal_hidden_states(inputs);
  make_router(inputs, standard_deviation);
}

/// zipf:S is drift:S,0.
void make_drift(LayerInputs& inputs, double exponent, double step) {
  make_gaussian(inputs, 1);
  const auto& shape = inputs.shape;
  inputs.router.row_bias =
      popularity_bias(shape.grid_rows, exponent, step, inputs.seed, RandomStream::kRowRanks);
  inputs.router.col_bias =
      popularity_bias(shape.grid_cols, exponent, step, inputs.seed, RandomStream::kColRanks);
}

/// Feature 0 is a flag; its router weight is what a hot token's logit gains.
void set_flag_weights(HostTensor& router, const std::vector<float>& boosts) {
  for (std::int64_t i = 0; i < router.rows(); ++i) {
    set_element(router, i, 0, boosts[static_cast<std::size_t>(i)]);
  }
}

/// hot:FRACTION,COUNT[,BOOST]. All other features are as in gaussian:1.
void make_hot(LayerInputs& inputs, const WorkloadSpec& spec) {
  const auto& shape = inputs.shape;
  const auto count = static_cast<std::int64_t>(spec.parameters[1]);
  const double boost = spec.parameters[2];
  make_gaussian(inputs, 1);
  flag_hot_tokens(inputs.hidden_states, spec.parameters[0], inputs.seed);
  set_flag_weights(inputs.router.row,
                   hot_boosts(shape.grid_rows, count, boost, inputs.seed, RandomStream::kRowRanks));
  set_flag_weights(inputs.router.col,
                   hot_boosts(shape.grid_cols, count, boost, inputs.seed, RandomStream::kColRanks));
}

/// clustered:C,RHO.
void make_clustered(LayerInputs& inputs, double clusters, double correlation) {
  const auto& shape = inputs.shape;
  make_router(inputs, 1);
  inputs.hidden_states =
      clustered_tokens(shape.dtype, shape.num_tokens, shape.hidden_size, clusters, correlation, inputs.seed);
}

/// uniform: no router; X ~ N(0, 1).
void make_uniform(LayerInputs& inputs) {
  inputs.fixed_routing = uniform_routing(inputs.shape, inputs.seed);
  inputs.hidden_states = normal_hidden_states(inputs);
}

}  // namespace

LayerInputs make_synthetic(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                           std::shared_ptr<const ExpertWeights> experts) {
  shape.validate();
  require_room(spec, shape);
  LayerInputs inputs;
  inputs.shape = shape;
  inputs.seed = seed;
  inputs.workload = spec.text;
  const auto& parameters = spec.parameters;
  switch (spec.family) {
    case Family::kGaussian:
      make_gaussian(inputs, parameters[0]);
      break;
    case Family::kZipf:
      make_drift(inputs, parameters[0], 0);
      break;
    case Family::kHot:
      make_hot(inputs, spec);
      break;
    case Family::kClustered:
      make_clustered(inputs, parameters[0], parameters[1]);
      break;
    case Family::kDrift:
      make_drift(inputs, parameters[0], parameters[1]);
      break;
    case Family::kUniform:
      make_uniform(inputs);
      break;
    case Family::kSnapshot:
    case Family::kTrace:
      throw InternalError(fmt::format("{} is not a synthetic workload", spec.text));
  }
  inputs.experts = experts ? std::move(experts) : make_expert_weights(shape, seed);
  return inputs;
}

}  // namespace moescope::detail
