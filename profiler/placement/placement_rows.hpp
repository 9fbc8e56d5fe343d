#pragma once

#include <functional>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/placement/placement_study.hpp"

namespace moescope {

/// Everything that the study knows, as rows; source analytic. Of each placement: balance and ranks per token
/// (no exchange), bytes of both exchanges, pairs, tokens and experts of each rank. `links`: also the bytes
/// from each rank to each other.
/// One placement's rows are held at a time: with links there are as many as pairs of ranks.
void for_each_placement_row(const PlacementStudy& study, bool links,
                            const std::function<void(const ResultRow&)>& visit);

/// The same in a list.
std::vector<ResultRow> placement_rows(const PlacementStudy& study, bool links);

}  // namespace moescope
