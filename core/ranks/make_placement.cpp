#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/index.hpp"
#include "core/ranks/placement.hpp"

namespace moescope {
namespace {

/// P as rows x columns of rectangles: the pair whose rectangles have the least rows and columns of the grid
/// together, for that is what a token's strips cross.
std::pair<std::int64_t, std::int64_t> block_grid(std::int64_t ranks, std::int64_t grid_rows,
                                                 std::int64_t grid_cols) {
  std::pair<std::int64_t, std::int64_t> best{ranks, 1};
  const auto around = [&](std::int64_t rows) {
    return (grid_rows + rows - 1) / rows + (grid_cols + ranks / rows - 1) / (ranks / rows);
  };
  for (std::int64_t rows = 1; rows <= ranks; ++rows) {
    if (ranks % rows == 0 && around(rows) <= around(best.first)) {
      best = {rows, ranks / rows};
    }
  }
  return best;
}

/// One rank for each expert, by a function of the expert.
template <class RankOf>
void set_single(ExpertPlacement& placement, const RankOf& rank_of) {
  const std::int64_t experts = placement.num_experts();
  placement.holder_offsets.resize(at(experts + 1));
  placement.holders.resize(at(experts));
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    placement.holder_offsets[at(expert + 1)] = expert + 1;
    placement.holders[at(expert)] = static_cast<std::int32_t>(rank_of(expert));
  }
}

void set_blocks(ExpertPlacement& placement) {
  const auto [rows, cols] = block_grid(placement.group.ranks, placement.grid_rows, placement.grid_cols);
  set_single(placement, [&, rows = rows, cols = cols](std::int64_t expert) {
    const std::int64_t row = expert / placement.grid_cols * rows / placement.grid_rows;
    return row * cols + expert % placement.grid_cols * cols / placement.grid_cols;
  });
}

void set_strips(ExpertPlacement& placement, std::span<const std::int32_t> hot) {
  const RankGroup& group = placement.group;
  for (std::int64_t row = 0; row < placement.grid_rows; ++row) {
    placement.row_owner.push_back(static_cast<std::int32_t>(group.owner_of(row, placement.grid_rows)));
  }
  for (std::int64_t col = 0; col < placement.grid_cols; ++col) {
    placement.col_owner.push_back(static_cast<std::int32_t>(group.owner_of(col, placement.grid_cols)));
  }
  for (const std::int32_t strip : hot) {
    (strip < placement.grid_rows ? placement.row_owner[at(strip)]
                                 : placement.col_owner[at(strip - placement.grid_rows)]) = kEveryRank;
  }
  placement.holder_offsets.push_back(0);
  for (std::int64_t expert = 0; expert < placement.num_experts(); ++expert) {
    const std::int32_t row = placement.row_owner[at(expert / placement.grid_cols)];
    const std::int32_t col = placement.col_owner[at(expert % placement.grid_cols)];
    placement.holders.push_back(std::min(row, col));  // kEveryRank is below all ranks
    if (row != col && row != kEveryRank && col != kEveryRank) {
      placement.holders.push_back(std::max(row, col));
    }
    placement.holder_offsets.push_back(std::ssize(placement.holders));
  }
}

void set_by_lists(ExpertPlacement& placement, const std::vector<std::vector<std::int32_t>>& experts_of) {
  std::vector<std::set<std::int32_t>> ranks(at(placement.num_experts()));
  for (std::size_t rank = 0; rank < experts_of.size(); ++rank) {
    for (const std::int32_t expert : experts_of[rank]) {
      ranks[at(expert)].insert(static_cast<std::int32_t>(rank));
    }
  }
  placement.holder_offsets.push_back(0);
  for (const std::set<std::int32_t>& each : ranks) {
    placement.holders.insert(placement.holders.end(), each.begin(), each.end());
    placement.holder_offsets.push_back(std::ssize(placement.holders));
  }
}

const Routing& counted(const PlacementSpec& spec, const Routing* seen, std::int64_t grid_rows,
                       std::int64_t grid_cols) {
  if (seen == nullptr) {
    throw InvalidArgument("placement", spec.text(), "goes by counts: it needs routing to be made from");
  }
  if (seen->grid_rows != grid_rows || seen->grid_cols != grid_cols) {
    throw InvalidArgument("placement", spec.text(),
                          fmt::format("was given routing on a {} x {} grid, the layer's is {} x {}",
                                      seen->grid_rows, seen->grid_cols, grid_rows, grid_cols));
  }
  return *seen;
}

}  // namespace

ExpertPlacement make_placement(const PlacementSpec& spec, const RankGroup& group, std::int64_t grid_rows,
                               std::int64_t grid_cols, const Routing* seen) {
  group.validate();
  if (grid_rows < 1 || grid_cols < 1) {
    throw InvalidArgument("grid", fmt::format("{}x{}", grid_rows, grid_cols), "must have rows and columns");
  }
  ExpertPlacement placement{spec, group, grid_rows, grid_cols, {}, {}, {}, {}};
  const std::int64_t experts = placement.num_experts();
  const auto counts = [&] { return expert_loads(counted(spec, seen, grid_rows, grid_cols)); };
  switch (spec.kind) {
    case PlacementKind::kRows:
      set_single(placement, [&](std::int64_t e) { return group.owner_of(e / grid_cols, grid_rows); });
      break;
    case PlacementKind::kColumns:
      set_single(placement, [&](std::int64_t e) { return group.owner_of(e % grid_cols, grid_cols); });
      break;
    case PlacementKind::kBlocks:
      set_blocks(placement);
      break;
    case PlacementKind::kStrips:
      if (spec.hot_strips > grid_rows + grid_cols) {
        throw InvalidArgument(
            "placement", spec.text(),
            fmt::format("a grid of {} x {} has {} strips", grid_rows, grid_cols, grid_rows + grid_cols));
      }
      set_strips(placement, spec.hot_strips == 0
                                ? std::vector<std::int32_t>{}
                                : hottest_strips(counted(spec, seen, grid_rows, grid_cols), spec.hot_strips));
      break;
    case PlacementKind::kLinear:
      set_single(placement, [&](std::int64_t e) { return group.owner_of(e, experts); });
      break;
    case PlacementKind::kRoundRobin:
      set_single(placement, [&](std::int64_t e) { return e % group.ranks; });
      break;
    case PlacementKind::kLpt:
      set_by_lists(placement, replicate_and_pack(counts(), 0, 1, group));
      break;
    case PlacementKind::kEplb:
      set_by_lists(placement, replicate_and_pack(counts(), spec.copies > 0 ? spec.copies : group.ranks,
                                                 spec.expert_groups, group));
      break;
    case PlacementKind::kClustered: {
      const CoClusters clusters = cluster_together(counted(spec, seen, grid_rows, grid_cols), group);
      set_single(placement, [&](std::int64_t e) { return clusters.expert_rank[at(e)]; });
      break;
    }
  }
  return placement;
}

}  // namespace moescope
