#pragma once

#include <cstdint>
#include <vector>

#include "reference/oracle/oracle_math.hpp"
#include "reference/oracle/oracle_training.hpp"

namespace moescope::oracle {

/// Gradients of a gated MLP's matrices, of those hidden units j whose index[j] is not negative: rows
/// first + index[j] of each.
struct MlpGradients {
  OracleGradient& gate;
  OracleGradient& up;
  OracleGradient& down;  ///< its columns as rows
  std::vector<std::int64_t> index;
  std::int64_t first = 0;
};

/// What one token adds to, each unless null.
struct TokenGradients {
  double* y = nullptr;         ///< [d]
  double* dx = nullptr;        ///< [d]
  double* dx_terms = nullptr;  ///< sum of squares of the terms of dx
  double* d_scale = nullptr;
};

/// Of y += scale * (act(x gate^T) * (x up^T)) down^T: y itself, and from dy what belongs to x, to `scale` and
/// to the matrices.
void gated_mlp_backward(const Vector& x, const Vector& dy, const GatedMlp& mlp, Activation activation,
                        double scale, const TokenGradients& token, MlpGradients& gradients);

}  // namespace moescope::oracle
