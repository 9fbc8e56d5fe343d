#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"

namespace moescope::reference {

/// Sum in fp32 in a fixed order that a warp can repeat: lane l of 32 adds the elements l, l+32, ...
/// ascending, then lanes are added pairwise: lane l += lane l+16, l+8, l+4, l+2, l+1.
float lane_sum(std::span<const float> values);

/// out[j] = (s[j] - max) - log(lane_sum(exp(s - max))), fp32, in exactly this order of roundings.
/// `out` has the size of `logits`.
void log_softmax(std::span<const float> logits, std::span<float> out);

/// What the two marginals of a score are: log-softmax of the logits (eq. 10), or the logits as they are
/// (product keys).
enum class Marginals : std::uint8_t { kLogSoftmax, kAsGiven };

/// Exact top K of S[i,j] = fl32(p_r[i] + p_c[j]) for one token without forming the N sums (DESIGN section 2).
///
/// 1. Sort both marginals, descending; only the first min(K, extent) of each can matter.
/// 2. By rank, (i, j) can be in the top K only if (i+1)(j+1) <= K: all pairs of lower or equal ranks are at
///    least as large. A box of a x b >= K ranks bounds the threshold from below. What lies between these
///    two staircases are the candidates, a small multiple of K.
/// 3. The K-th largest candidate is found by bisection on the bits of the threshold: at most 32 counts.
/// 4. Rows are walked by id. A row takes the prefix of sorted columns above the threshold; ties at the
///    threshold go to the lowest expert ids over the *whole* grid, because rounding can tie sums of
///    different ranks.
///
/// O(Nr log Nr + Nc log Nc + C), C candidates, K <= C <= K (1 + ln K). Scratch is kept from token to token.
class TokenSelector {
 public:
  TokenSelector(std::int64_t grid_rows, std::int64_t grid_cols, std::int64_t top_k, GateMode gate_mode,
                Marginals marginals = Marginals::kLogSoftmax);

  /// row_logits [Nr], col_logits [Nc], finite. Writes expert_ids [K] ascending and gates [K]:
  /// kSoftmax exp(S - max S) / lane_sum(exp(S - max S)) over ascending ids; kProbability exp(S); kRelu
  /// max(S, 0).
  void select(std::span<const float> row_logits, std::span<const float> col_logits,
              std::span<std::int32_t> expert_ids, std::span<float> gates);

 private:
  void sort_marginals();
  void unpack_cols(std::int64_t begin, std::int64_t end);
  void collect_candidates();
  float find_threshold() const;
  void emit(float threshold, std::span<std::int32_t> expert_ids);
  void compute_gates(std::span<float> gates) const;

  std::int64_t top_k_;
  GateMode gate_mode_;
  Marginals marginals_;
  std::int64_t kept_rows_;               ///< min(K, Nr)
  std::int64_t kept_cols_;               ///< min(K, Nc)
  std::vector<float> row_p_;             ///< [Nr] by row id
  std::vector<float> col_p_;             ///< [Nc] by column id
  std::vector<float> sorted_rows_;       ///< [Nr] descending up to kept_rows_
  std::vector<std::uint64_t> col_keys_;  ///< [Nc] (descending value, id), ascending up to kept_cols_
  std::vector<float> sorted_cols_;       ///< [Nc] values of the sorted front of col_keys_
  std::vector<std::int32_t> row_picks_;  ///< columns taken by one row
  std::vector<float> candidates_;
  std::int64_t num_candidates_ = 0;
  float lower_bound_ = 0;      ///< at least K sums are >= this
  std::vector<float> scores_;  ///< [K] of the selected pairs, by id
};

/// Selects from every row of `logits` ([R,Nr] and [R,Nc], fp32): a Routing of R rows. Throws InvalidArgument
/// on NaN or infinite logits. Bit-identical whatever the number of threads.
Routing select_rows(const RouterLogits& logits, std::int64_t top_k, GateMode gate_mode, Marginals marginals);

}  // namespace moescope::reference
