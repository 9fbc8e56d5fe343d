#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "reference/oracle/oracle.hpp"

/// Sums, products and selections in fp64 that the oracles are made of, written for reading.
namespace moescope::oracle {

using Vector = std::vector<double>;

/// Row `row` of a tensor of either storage.
Vector row_of(const HostTensor& tensor, std::int64_t row);
double dot(const Vector& a, const Vector& b);
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

/// y += (act(x gate^T) * (x up^T)) down^T.
void add_gated_mlp(const Vector& x, const SharedMlpWeights& weights, Activation activation, Vector& y);

}  // namespace moescope::oracle
