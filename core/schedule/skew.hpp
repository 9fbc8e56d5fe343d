#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/routing.hpp"

namespace moescope {

/// How unevenly a routing loads its experts (DESIGN section 6). Let n_i be the pairs of expert i, M their
/// sum, p_i = n_i / M.
struct SkewMetrics {
  std::int64_t num_pairs = 0;       ///< M
  std::int64_t active_experts = 0;  ///< E_active = #{i : n_i > 0}
  double usage = 0;                 ///< E_active / N
  double unevenness = 0;            ///< KL(p || uniform) = sum p_i ln(p_i N), nats (paper section 3.3)
  double gini = 0;                  ///< Gini coefficient of n_i over all N experts, 0 = even
  double max_over_mean = 0;         ///< max n_i / (M / N)
  double effective_experts = 0;     ///< inverse Simpson 1 / sum p_i^2
  double reuse = 0;                 ///< eta = M / E_active (paper eq. viii)
  double rows_per_token = 0;        ///< mean number of distinct grid rows a token uses
  double cols_per_token = 0;        ///< mean number of distinct grid columns
  double strips_per_token = 0;      ///< mean size of the smallest strip cover (strip_cover.hpp)
  std::int64_t max_strips_per_token = 0;
};

SkewMetrics compute_skew(const Routing& routing);

/// Quantiles of expert load, for printing: loads at the given fractions (0..1), nearest rank over all N
/// experts.
std::vector<std::int64_t> load_quantiles(const Routing& routing, std::span<const double> fractions);

}  // namespace moescope
