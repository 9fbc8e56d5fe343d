#pragma once

#include <vector>

#include "core/systems/system.hpp"
#include "reference/oracle/oracle_training.hpp"
#include "reference/oracle/system_oracle.hpp"

/// A training step of a baseline in fp64, written for reading; the loss is sum of dy * y.
namespace moescope {

struct SystemTraining {
  Routing routing;               ///< a row per query; gates rounded to fp32
  std::vector<double> y;         ///< [L,d]
  double output_loss = 0;        ///< sum of dy * y
  OracleGradient hidden_states;  ///< [L,d]
  OracleGradient gates;          ///< [1,M]
  OracleGradient router;         ///< gshard, deepseekmoe: [N,d]
  OracleGradient queries;        ///< pkm, peer: [2 * heads * key_size, d]
  OracleGradient keys;           ///< [heads * num_keys * 2, key_size]
  OracleGradient norm_weight;    ///< pkm: [1, key_size]
  OracleGradient norm_bias;
  OracleGradient expert_gate;  ///< gshard, deepseekmoe: [N * f, d]
  OracleGradient expert_up;    ///< [N * f, d]
  OracleGradient expert_down;  ///< [N * f, d]: columns of the matrices
  OracleGradient w_in;         ///< peer: [N,d]
  OracleGradient w_out;        ///< peer, pkm: [N,d]
  OracleGradient shared_gate;  ///< dense_mlp, deepseekmoe: [h,d]
  OracleGradient shared_up;
  OracleGradient shared_down;  ///< columns of the matrix
};

/// Of the whole batch. `selection` as in system_oracle(): a routing of all queries, or null for the oracle's
/// own. Throws InvalidArgument when it or dy ([L,d] in storage dtype) does not fit.
SystemTraining system_training(const SystemInputs& inputs, const HostTensor& dy, const Routing* selection);

}  // namespace moescope
