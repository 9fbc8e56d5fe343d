#pragma once

#include <vector>

#include "core/results/result.hpp"
#include "profiler/placement/placement_study.hpp"

namespace moescope {

/// Everything that the study knows, as rows; source analytic. Of each placement: balance and ranks per token
/// (no exchange), bytes of both exchanges, pairs, tokens and experts of each rank. `links`: also the bytes
/// from each rank to each other.
std::vector<ResultRow> placement_rows(const PlacementStudy& study, bool links);

}  // namespace moescope
