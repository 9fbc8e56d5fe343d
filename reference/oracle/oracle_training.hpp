#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/layer/training.hpp"
#include "reference/oracle/oracle.hpp"

/// A training step of the layer in fp64 from the storage-rounded inputs, written for reading: no blocking, no
/// schedule, nothing shared with the fp32 path. core/layer/training.hpp has the symbols.
namespace moescope {

/// One gradient, row-major, and what it is a sum of.
struct OracleGradient {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;
  /// Sum over all elements of the squares of their terms. Where terms cancel it is far above the sum of
  /// squares of `values`, and so is what rounding the terms leaves in them.
  double term_squares = 0;

  OracleGradient() = default;
  OracleGradient(std::int64_t row_count, std::int64_t col_count)
      : rows(row_count), cols(col_count), values(static_cast<std::size_t>(row_count * col_count)) {}

  bool empty() const { return values.empty(); }
  double* row(std::int64_t r) { return values.data() + r * cols; }
  const double* row(std::int64_t r) const { return values.data() + r * cols; }
  MatrixView<const double> view() const { return {values.data(), rows, cols}; }
};

/// What to compute of the large gradients; empty: all.
struct OracleSample {
  std::vector<std::int64_t> tokens;   ///< rows of y and dX; distinct, ascending
  std::vector<std::int64_t> experts;  ///< rows of dW and dV; distinct, ascending
  std::vector<std::int64_t> units;    ///< hidden units of the shared MLP; distinct, ascending
};

/// What one side of the router went through.
struct OracleSide {
  std::vector<double> logits;    ///< [L,n] as the softmax reads them, normalised where there is a batch norm
  std::vector<double> log_p;     ///< [L,n]
  std::vector<double> lse;       ///< [L] log-sum-exp of logits
  std::vector<double> mean;      ///< [n] of the batch; empty without batch norm
  std::vector<double> variance;  ///< [n] biased
};

struct OracleTraining {
  OracleSample sample;           ///< as computed: nothing empty
  Routing routing;               ///< selection, with gates rounded to fp32
  OracleSide row;                ///< empty for a fixed routing
  OracleSide col;                ///< empty for a fixed routing
  std::vector<double> y;         ///< [tokens, d], shared MLP added
  double output_loss = 0;        ///< sum of dy * y over sample.tokens
  double balance_loss = 0;       ///< weighted
  double z_loss = 0;             ///< weighted
  OracleGradient hidden_states;  ///< [tokens, d]
  OracleGradient w_in;           ///< [experts, d]
  OracleGradient w_out;          ///< [experts, d]
  OracleGradient gates;          ///< [1, M] in CSR order
  OracleGradient row_logits;     ///< [L, Nr] of OracleSide::logits; empty for a fixed routing
  OracleGradient col_logits;     ///< [L, Nc]
  OracleGradient router_row;     ///< [Nr, d]
  OracleGradient router_col;     ///< [Nc, d]
  OracleGradient row_bias;       ///< [1, Nr]; empty without biases
  OracleGradient col_bias;       ///< [1, Nc]
  OracleGradient shared_gate;    ///< [units, d]; empty without a shared MLP
  OracleGradient shared_up;      ///< [units, d]
  OracleGradient shared_down;    ///< [units, d]: columns of the matrix

  double loss() const { return output_loss + balance_loss + z_loss; }
};

/// Forward and backward of one step whose loss is sum of dy * y and the auxiliary losses. `selection`: the
/// experts to use (gates still from fp64 scores); null: the oracle's own. For a fixed routing it is ignored.
/// Throws what validate_training() throws, and InvalidArgument for a selection or sample that does not fit.
OracleTraining oracle_training(const LayerInputs& inputs, const HostTensor& dy, const Routing* selection,
                               const TrainingOptions& options, const OracleSample& sample);

/// Running averages after one more batch of `num_tokens` tokens: running = (1 - momentum) running + momentum
/// batch, with the unbiased variance.
RunningNorm updated_norm(const RunningNorm& before, const OracleSide& side, std::int64_t num_tokens,
                         double momentum);

}  // namespace moescope
