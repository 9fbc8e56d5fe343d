#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/tensor.hpp"

/// The layer in fp64 from the storage-rounded inputs, written for reading: no blocking, no schedule, nothing
/// shared with the fp32 path. It works on a sample of tokens, because a large batch takes long in fp64.
namespace moescope {

/// Scores and the oracle's own selection of the sampled tokens in fp64. T = tokens.size(), every array row
/// belongs to tokens[t].
struct OracleRouting {
  std::vector<std::int64_t> tokens;  ///< [T] token of the batch, ascending
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  std::vector<double> row_log_p;  ///< [T, Nr] log-softmax of row logits; empty when the routing is fixed
  std::vector<double> col_log_p;  ///< [T, Nc]
  std::vector<double> threshold;  ///< [T] K-th largest score
  std::vector<double> tolerance;  ///< [T] selection_tolerance() for this token
  std::vector<std::int64_t> token_offsets;  ///< [T+1]
  std::vector<std::int32_t> expert_ids;     ///< ascending within a token
  std::vector<double> gates;

  std::span<const std::int32_t> ids_of(std::size_t t) const;
  std::span<const double> gates_of(std::size_t t) const;
  /// S of paper eq. 10 for sample t.
  double score(std::int64_t t, std::int32_t expert_id) const;
};

struct OracleOptions {
  std::vector<std::int64_t> tokens;  ///< distinct, ascending; empty = all
  const Routing* selection =
      nullptr;  ///< experts to use instead of the oracle's own; gates still from fp64 scores
};

struct OracleLayer {
  OracleRouting routing;  ///< the oracle's own, also when y was made with another selection
  std::vector<double> y;  ///< [T, d], shared MLP added
  std::int64_t hidden_size = 0;

  MatrixView<const double> view() const {
    return {y.data(), static_cast<std::int64_t>(routing.tokens.size()), hidden_size};
  }
};

/// Eqs. 9-11 in fp64 for `tokens` (empty = all). Throws InvalidArgument naming a token outside the batch or
/// out of order.
OracleRouting oracle_routing(const LayerInputs& inputs, const std::vector<std::int64_t>& tokens);

/// Eq. 7 in fp64, including the shared MLP. To compare numbers rather than selections, pass the selection of
/// the path under test and check it with compare_selection(): one expert swapped at a near-tie changes y by
/// far more than rounding does. Throws InvalidArgument when the selection does not belong to the batch.
OracleLayer oracle_layer(const LayerInputs& inputs, const OracleOptions& options);

/// Pairs that one of `ours` and the oracle selected and the other did not.
struct SelectionReport {
  std::int64_t compared_pairs = 0;
  /// Differ, and their fp64 score is within rounding of the threshold, where both selected as many.
  std::int64_t near_ties = 0;
  std::int64_t wrong = 0;   ///< differ otherwise: an error
  std::string first_wrong;  ///< "token 3, expert 17: score -5.1 against threshold -4.9 (tolerance 2e-6)"

  bool ok() const { return wrong == 0; }
};
SelectionReport compare_selection(const Routing& ours, const OracleRouting& oracle);

/// At most `count` tokens spread evenly over the batch, first and last included.
std::vector<std::int64_t> spread_tokens(std::int64_t num_tokens, std::int64_t count);
/// The given rows as a tensor of their own, to compare an output with OracleLayer::view().
HostTensor gather_rows(const HostTensor& tensor, const std::vector<std::int64_t>& rows);

}  // namespace moescope
