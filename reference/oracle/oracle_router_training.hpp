#pragma once

#include <cstdint>
#include <vector>

#include "reference/oracle/oracle_math.hpp"
#include "reference/oracle/oracle_training.hpp"

/// The router's half of a training step in fp64; what oracle_training() is made of.
namespace moescope::oracle {

/// d/dx of sigma(): act'(z).
double sigma_slope(Activation activation, double x);

/// Logits of one side, through the batch norm where there is one, and their log-softmax.
OracleSide router_side(const HostTensor& hidden_states, const HostTensor& weight,
                       const std::vector<float>& bias, const std::optional<BatchNorm>& norm);

/// Adds `weight` times either auxiliary loss to `result` and its gradients to those of the logits.
void add_balance_loss(const LayerShape& shape, double weight, OracleTraining& result);
void add_z_loss(const LayerShape& shape, double weight, OracleTraining& result);

/// Gradients of a side's matrix and bias from those of its logits, and what the side adds to dX of the
/// sampled tokens. `term_squares` per logit, as `logits`, becomes that of what is made of them.
struct SideGradients {
  OracleGradient weight;
  OracleGradient bias;
};
SideGradients project_backward(const LayerInputs& inputs, const HostTensor& weight, const OracleSide& side,
                               const OracleGradient& logits, const std::vector<double>& term_squares,
                               const std::optional<BatchNorm>& norm, OracleTraining& result);

}  // namespace moescope::oracle
