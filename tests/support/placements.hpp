#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/ranks/exchange_plan.hpp"
#include "tests/support/routings.hpp"

namespace moescope::test {

/// One of every placement, by its text; `strips`: how many the grid has, at most that many are hot.
inline std::vector<std::string> all_placements(std::int64_t strips = 4) {
  return {"linear",
          "round_robin",
          "rows",
          "columns",
          "blocks",
          "strips",
          "strips+hot:" + std::to_string(std::min<std::int64_t>(strips, 4)),
          "lpt",
          "eplb",
          "eplb:2",
          "clustered",
          "clustered+tokens"};
}

/// As many copies as there is room for.
inline PlacementSpec fitting(PlacementSpec spec, const Routing& seen, std::int64_t ranks) {
  const std::int64_t most = seen.num_experts() * (ranks - 1);
  if (spec.kind == PlacementKind::kEplb && (spec.copies == 0 ? ranks : spec.copies) > most) {
    spec.kind = PlacementKind::kLpt;
    spec.copies = 0;
  }
  return spec;
}

}  // namespace moescope::test
