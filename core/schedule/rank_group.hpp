#pragma once

#include <cstdint>

namespace moescope {

/// Most ranks that a layer may be spread over: what a placement study asks for, far more than what runs.
inline constexpr std::int64_t kMaxRanks = 1024;

/// Most ranks that a layer runs on so far: those of one process on the CPU.
inline constexpr std::int64_t kMaxRunningRanks = 64;

/// Ranks 0, 1, ..., and how many of them share a node: consecutive ranks do.
struct RankGroup {
  std::int64_t ranks = 1;  ///< [P]
  std::int64_t nodes = 1;  ///< divides `ranks`

  constexpr std::int64_t ranks_per_node() const { return ranks / nodes; }
  constexpr std::int64_t node_of(std::int64_t rank) const { return rank / ranks_per_node(); }
  /// First of `count` things dealt out in order that belongs to `rank`; its last is before the next rank's.
  /// Shares differ by one at most, and are empty where there are fewer things than ranks.
  constexpr std::int64_t first_of(std::int64_t rank, std::int64_t count) const {
    return (rank * count + ranks - 1) / ranks;
  }
  /// The rank that `index` of `count` things dealt out in order belongs to.
  constexpr std::int64_t owner_of(std::int64_t index, std::int64_t count) const {
    return index * ranks / count;
  }

  /// Throws InvalidArgument("ranks" or "nodes", ...).
  void validate() const;

  friend bool operator==(const RankGroup&, const RankGroup&) = default;
};

}  // namespace moescope
