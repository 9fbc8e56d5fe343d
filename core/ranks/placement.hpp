#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/schedule/placement_spec.hpp"
#include "core/schedule/rank_group.hpp"

namespace moescope {

/// In place of a rank: all of them.
inline constexpr std::int32_t kEveryRank = -1;

/// Which ranks hold which experts, as data.
struct ExpertPlacement {
  PlacementSpec spec;
  RankGroup group;
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  /// Of expert e holders[holder_offsets[e] .. holder_offsets[e + 1]): ranks, ascending and distinct, at least
  /// one; or kEveryRank alone.
  std::vector<std::int64_t> holder_offsets;  ///< [N+1]
  std::vector<std::int32_t> holders;
  /// Strips: the rank that computes a row or column of the grid, kEveryRank for a hot one; else empty.
  std::vector<std::int32_t> row_owner;  ///< [Nr]
  std::vector<std::int32_t> col_owner;  ///< [Nc]

  std::int64_t num_experts() const { return grid_rows * grid_cols; }
  bool has_strips() const { return !row_owner.empty(); }
  /// Its ranks, or kEveryRank alone.
  std::span<const std::int32_t> holders_of(std::int64_t expert) const;
  bool holds(std::int64_t rank, std::int64_t expert) const;
  /// Experts that each rank stores, a copy counted once: [P].
  std::vector<std::int64_t> experts_per_rank() const;
  /// Experts stored in all, beyond one of each.
  std::int64_t copies() const;

  /// Throws InvalidArgument naming field, place and value: extents, offsets, ranks out of range or twice,
  /// experts without a rank, strips that do not hold their experts.
  void validate() const;
};

/// Puts the experts of a grid on ranks. `seen`: routing to count, on the same grid; needed where
/// spec.by_counts(). Deterministic: the same whatever the number of threads. Throws InvalidArgument for a
/// group or a specification that does not fit the grid.
ExpertPlacement make_placement(const PlacementSpec& spec, const RankGroup& group, std::int64_t grid_rows,
                               std::int64_t grid_cols, const Routing* seen);

/// Copies of experts by counts, and ranks for all of them: what EPLB (github.com/deepseek-ai/EPLB) computes
/// for one layer. Groups of consecutive experts are packed onto nodes where nodes divide groups, else there
/// is one group and one node. A further copy goes to the expert with most counts per copy; in its node the
/// heaviest copy goes to the lightest rank with room and, unlike there, without such a copy where there is
/// one. Ranks take as many as others, or one less. Experts of each rank in the order they came: [P][].
std::vector<std::vector<std::int32_t>> replicate_and_pack(std::span<const std::int64_t> counts,
                                                          std::int64_t copies, std::int64_t expert_groups,
                                                          const RankGroup& group);

/// Ranks of experts and of tokens, found together: experts go where the tokens that use them are, tokens
/// where their experts are, in turns, until neither moves. Both in equal shares, and ranks' pairs within a
/// tenth of the mean where experts are small enough.
struct CoClusters {
  std::vector<std::int32_t> expert_rank;  ///< [N]
  std::vector<std::int32_t> token_rank;   ///< [L]
};
CoClusters cluster_together(const Routing& routing, const RankGroup& group);
/// The second half alone: tokens to the ranks that have most of their experts, in equal shares: [L].
std::vector<std::int32_t> tokens_to_experts(const Routing& routing, std::span<const std::int32_t> expert_rank,
                                            const RankGroup& group);

/// The H strips without which tokens of `routing` need the fewest further strips, chosen a few at a time:
/// rows by their index, columns behind them (Nr + index); ascending.
std::vector<std::int32_t> hottest_strips(const Routing& routing, std::int64_t count);

}  // namespace moescope
