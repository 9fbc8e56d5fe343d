#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/oracle/oracle.hpp"

/// Sums, products and selections in fp64 that the oracles are made of, written for reading.
namespace moescope::oracle {

using Vector = std::vector<double>;

/// Row `row` of a tensor of either storage.
Vector row_of(const HostTensor& tensor, std::int64_t row);
double dot(const Vector& a, const Vector& b);
/// sum[k] += scale * v[k], for every element of v.
void add_scaled(double scale, const Vector& v, double* sum);
/// The same with the products' sizes.
struct Product {
  double value = 0;
  double magnitude = 0;  ///< sqrt(sum of (a_i b_i)^2): what partial sums are like in random order
  double sizes = 0;      ///< sum of |a_i b_i|
};
Product product(const Vector& a, const Vector& b);
/// (x - mean) / sqrt(variance + 1e-5) in place, as torch.nn.LayerNorm before its affine part; returns the
/// factor of x.
double standardize(Vector& x);
/// sigma of eq. 7.
double sigma(Activation activation, double x);

/// One side of the router: logits, and what bounds their rounding errors in fp32.
struct Marginal {
  Vector log_p;
  double partial_sum_scale = 0;
  double score_scale = 0;
};
/// log-softmax of x weight^T + bias (empty: none).
Marginal log_softmax_of_logits(const Vector& x, const HostTensor& weight, const std::vector<float>& bias);

/// The K largest of all N scores of query t, ties to the lower id; ids ascending. `threshold` becomes the
/// K-th largest.
std::vector<std::int32_t> top_k_of_all(const OracleRouting& routing, std::int64_t t, std::int64_t top_k,
                                       double& threshold);
/// Gates over the given experts of query t.
Vector gates_of_scores(const OracleRouting& routing, std::int64_t t, std::span<const std::int32_t> ids,
                       GateMode mode);
/// Adds one query's selection.
void append_query(OracleRouting& routing, std::span<const std::int32_t> ids, const Vector& gates);

/// `tokens`, all of them when empty. Throws InvalidArgument naming a token outside the batch or out of order.
std::vector<std::int64_t> checked_tokens(const std::vector<std::int64_t>& tokens, std::int64_t num_tokens);

/// Throws InvalidArgument unless it is a routing of the layer's batch.
void require_selection(const Routing& selection, const LayerShape& shape);

/// y += scale * (act(x gate^T) * (x up^T)) down^T, the matrices rows [first, first + size) of `gate` and `up`
/// and [first_down, first_down + d) of `down`; and what is rounded on the way.
struct GatedMlp {
  const HostTensor& gate;
  const HostTensor& up;
  const HostTensor& down;
  std::int64_t size = 0;
  std::int64_t first_gate = 0;
  std::int64_t first_up = 0;
  std::int64_t first_down = 0;
};
void add_gated_mlp(const Vector& x, const GatedMlp& mlp, Activation activation, double scale, Vector& y,
                   TokenRounding& rounding);
inline GatedMlp whole_mlp(const SharedMlpWeights& weights) {
  return {weights.gate, weights.up, weights.down, weights.gate.rows(), 0, 0, 0};
}

/// y += p v for an atomic expert's score p, gate * sigma(x . w_in), which is rounded on the way.
void add_scored_row(double p, double magnitude, const Vector& v, Vector& y, TokenRounding& rounding);

}  // namespace moescope::oracle
