#pragma once

#include <cmath>
#include <memory>

#include "core/layer/layer_inputs.hpp"
#include "core/workload/deterministic_math.hpp"
#include "tests/support/routings.hpp"

/// Whole layers for tests: random inputs and weights of the scales that make every stage's output of order
/// one.
namespace moescope::test {

inline HostTensor random_tensor(Dtype dtype, std::int64_t rows, std::int64_t cols, double deviation,
                                std::uint64_t seed, RandomStream stream) {
  HostTensor tensor(dtype, rows, cols);
  fill_normal(tensor, deviation, seed, stream);
  return tensor;
}

/// A layer with router (biased in odd seeds), experts and, if shape.shared_size > 0, a shared MLP.
inline LayerInputs make_layer(const LayerShape& shape, std::uint64_t seed) {
  const auto d = shape.hidden_size;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  const auto tensor = [&](std::int64_t rows, std::int64_t cols, double deviation, RandomStream stream) {
    return random_tensor(shape.dtype, rows, cols, deviation, seed, stream);
  };
  LayerInputs inputs;
  inputs.shape = shape;
  inputs.hidden_states = tensor(shape.num_tokens, d, 1, RandomStream::kHiddenStates);
  inputs.router.row = tensor(shape.grid_rows, d, scale, RandomStream::kRouterRow);
  inputs.router.col = tensor(shape.grid_cols, d, scale, RandomStream::kRouterCol);
  if (seed % 2 == 1) {
    for (std::int64_t i = 0; i < shape.grid_rows; ++i) {
      inputs.router.row_bias.push_back(0.1F * static_cast<float>(i % 7) - 0.3F);
    }
    for (std::int64_t i = 0; i < shape.grid_cols; ++i) {
      inputs.router.col_bias.push_back(0.2F - 0.1F * static_cast<float>(i % 5));
    }
  }
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = tensor(shape.num_experts(), d, scale, RandomStream::kExpertIn);
  experts->w_out = tensor(shape.num_experts(), d, scale, RandomStream::kExpertOut);
  if (shape.shared_size > 0) {
    const double down_scale = 1 / std::sqrt(static_cast<double>(shape.shared_size));
    experts->shared = SharedMlpWeights{tensor(shape.shared_size, d, scale, RandomStream::kSharedGate),
                                       tensor(shape.shared_size, d, scale, RandomStream::kSharedUp),
                                       tensor(d, shape.shared_size, down_scale, RandomStream::kSharedDown)};
  }
  inputs.experts = std::move(experts);
  inputs.workload = "test";
  inputs.seed = seed;
  inputs.validate();
  return inputs;
}

}  // namespace moescope::test
