#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/layer/training.hpp"
#include "reference/oracle/oracle.hpp"
#include "reference/oracle/oracle_training.hpp"
#include "tests/support/layers.hpp"

/// Layers with an output gradient, and slopes by differences.
namespace moescope::test {

/// A tensor of parameters with the gradient that the oracle says it has.
struct Parameter {
  std::string name;
  std::int64_t count = 0;
  std::function<float&(std::int64_t)> at;
  std::function<double(std::int64_t)> gradient;
};

/// d loss / d value: five points, so that the error falls with the fourth power of the step. Values are kept
/// to bfloat16 here, so that a step of a power of two is exact in fp32.
inline double slope(float& value, const std::function<double()>& loss) {
  constexpr float kStep = 0x1p-9F;
  const float middle = value;
  const auto at = [&](float steps) {
    value = middle + steps * kStep;
    return loss();
  };
  const double near = at(1) - at(-1);
  const double far = at(2) - at(-2);
  value = middle;
  return (8 * near - far) / (12 * static_cast<double>(kStep));
}

inline HostTensor kept_to_bf16(const HostTensor& tensor) {
  return tensor.to(Dtype::kBF16).to(tensor.dtype());
}

/// A layer with random dy; fp32 values are kept to bfloat16.
struct TrainingProblem {
  LayerInputs inputs;
  HostTensor dy;
  TrainingOptions options;
  std::shared_ptr<ExpertWeights> experts;  ///< what inputs.experts points to

  TrainingProblem(const LayerShape& shape, std::uint64_t seed) : inputs(make_layer(shape, seed)) {
    dy = kept_to_bf16(random_tensor(shape.dtype, shape.num_tokens, shape.hidden_size, 1, seed + 77,
                                    RandomStream::kHiddenStates));
    experts = std::make_shared<ExpertWeights>();
    experts->w_in = kept_to_bf16(inputs.experts->w_in);
    experts->w_out = kept_to_bf16(inputs.experts->w_out);
    if (inputs.experts->shared) {
      const auto& shared = *inputs.experts->shared;
      experts->shared =
          SharedMlpWeights{kept_to_bf16(shared.gate), kept_to_bf16(shared.up), kept_to_bf16(shared.down)};
    }
    inputs.experts = experts;
    inputs.hidden_states = kept_to_bf16(inputs.hidden_states);
    inputs.router.row = kept_to_bf16(inputs.router.row);
    inputs.router.col = kept_to_bf16(inputs.router.col);
    for (auto* bias : {&inputs.router.row_bias, &inputs.router.col_bias}) {
      for (float& b : *bias) {
        b = round_to(Dtype::kBF16, b);
      }
    }
  }

  /// The oracle's selection as one that was recorded.
  void fix_routing() {
    const OracleRouting own = oracle_routing(inputs, {});
    Routing routing{inputs.shape.num_tokens, inputs.shape.grid_rows, inputs.shape.grid_cols,
                    own.token_offsets,       own.expert_ids,         {}};
    for (const double gate : own.gates) {
      routing.gates.push_back(round_to(Dtype::kBF16, static_cast<float>(gate)));
    }
    inputs.fixed_routing = std::move(routing);
  }

  /// All of fp32 inputs with the gradients of `step`.
  std::vector<Parameter> parameters(const OracleTraining& step) {
    std::vector<Parameter> all;
    const auto add = [&](const char* name, HostTensor& tensor, const OracleGradient& gradient,
                         bool transposed = false) {
      const auto cols = tensor.cols();
      all.push_back({name, tensor.size(),
                     [&tensor](std::int64_t i) -> float& { return tensor.f32().data[i]; },
                     [&gradient, cols, transposed](std::int64_t i) {
                       return transposed ? gradient.row(i % cols)[i / cols]
                                         : gradient.values[static_cast<std::size_t>(i)];
                     }});
    };
    const auto add_vector = [&](const char* name, std::vector<float>& values,
                                const OracleGradient& gradient) {
      all.push_back({name, std::ssize(values),
                     [&values](std::int64_t i) -> float& { return values[static_cast<std::size_t>(i)]; },
                     [&gradient](std::int64_t i) { return gradient.values[static_cast<std::size_t>(i)]; }});
    };
    add("hidden_states", inputs.hidden_states, step.hidden_states);
    add("w_in", experts->w_in, step.w_in);
    add("w_out", experts->w_out, step.w_out);
    if (experts->shared) {
      add("shared.gate", experts->shared->gate, step.shared_gate);
      add("shared.up", experts->shared->up, step.shared_up);
      add("shared.down", experts->shared->down, step.shared_down, true);
    }
    if (inputs.fixed_routing) {
      add_vector("gates", inputs.fixed_routing->gates, step.gates);
      return all;
    }
    add("router.row", inputs.router.row, step.router_row);
    add("router.col", inputs.router.col, step.router_col);
    if (!inputs.router.row_bias.empty()) {
      add_vector("row_bias", inputs.router.row_bias, step.row_bias);
      add_vector("col_bias", inputs.router.col_bias, step.col_bias);
    }
    return all;
  }
};

}  // namespace moescope::test
