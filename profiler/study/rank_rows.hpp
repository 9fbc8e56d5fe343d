#pragma once

#include <string>
#include <vector>

#include "core/ranks/rank_report.hpp"
#include "core/results/result.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// Links are rows of their own up to so many ranks: P (P - 1) of each direction.
inline constexpr std::int64_t kMostRanksWithLinks = 16;

/// What ranks did in a layer's last run: time of every stage on every rank, tokens, pairs and experts of
/// each, ranks per token, bytes planned and moved. `point` is of the layer under its schedule.
std::vector<ResultRow> rank_rows(const Point& point, const RankReport& report);

/// A row a rank: tokens at home, pairs, experts, time of its own stages, bytes sent and received.
Table rank_table(const RankReport& report);
/// "8 ranks, placement strips, exchange gather: slowest over mean 1.05 by pairs, 1.10 by time; 3.1 MiB
/// exchanged"
std::string rank_text(const RankReport& report);

}  // namespace moescope
