#pragma once

#include <cstdint>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "tests/support/routings.hpp"

/// The router written out as plainly as can be, in double precision: for tests of workloads, which cannot
/// wait for a backend to tell what routing they lead to.
namespace moescope::test {

/// X W^T + b as vectors [L][out].
inline std::vector<std::vector<double>> plain_logits(const HostTensor& hidden_states,
                                                     const HostTensor& weights,
                                                     const std::vector<float>& bias) {
  const HostTensor x = hidden_states.to(Dtype::kF32);
  const HostTensor w = weights.to(Dtype::kF32);
  std::vector<std::vector<double>> logits(static_cast<std::size_t>(x.rows()));
  for (std::int64_t token = 0; token < x.rows(); ++token) {
    for (std::int64_t i = 0; i < w.rows(); ++i) {
      double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(i)];
      for (std::int64_t j = 0; j < x.cols(); ++j) {
        sum += static_cast<double>(x.f32().row(token)[j]) * static_cast<double>(w.f32().row(i)[j]);
      }
      logits[static_cast<std::size_t>(token)].push_back(sum);
    }
  }
  return logits;
}

/// The routing a layer's inputs lead to; gates are all equal (routings of workloads are judged by their ids).
inline Routing plain_routing(const LayerInputs& inputs) {
  if (inputs.fixed_routing) {
    return *inputs.fixed_routing;
  }
  const auto rows = plain_logits(inputs.hidden_states, inputs.router.row, inputs.router.row_bias);
  const auto cols = plain_logits(inputs.hidden_states, inputs.router.col, inputs.router.col_bias);
  std::vector<std::vector<std::int32_t>> ids;
  for (std::size_t token = 0; token < rows.size(); ++token) {
    ids.push_back(brute_force_top_k(rows[token], cols[token], inputs.shape.top_k));
  }
  return routing_of(inputs.shape.grid_rows, inputs.shape.grid_cols, ids);
}

}  // namespace moescope::test
