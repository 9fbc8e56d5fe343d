#pragma once

#include <cstdint>
#include <vector>

#include "core/ranks/exchange_plan.hpp"

namespace moescope {

/// What a placement does with a batch, from its plan.
struct PlacementUse {
  /// Mean ranks whose own experts a token needs, its home among them; copies that every rank has are free.
  double ranks_per_token = 0;
  double remote_ranks_per_token = 0;  ///< mean ranks beside its home that compute for it: rows of a dispatch
  double remote_nodes_per_token = 0;  ///< mean nodes beside its home's
  std::vector<std::int64_t> pairs;    ///< [P] that each rank computes
  std::vector<std::int64_t> tokens;   ///< [P] that each rank computes for
  double load_max_over_mean = 1;      ///< pairs of the busiest rank over the mean: 1 is perfect balance
  double idle_share = 0;              ///< ranks without a pair
  std::int64_t hottest_rank = 0;      ///< that computes for most tokens
  double hottest_share = 0;           ///< which part of all tokens these are
};
PlacementUse placement_use(const ExchangePlan& plan, const ExpertPlacement& placement,
                           const Routing& routing);

}  // namespace moescope
