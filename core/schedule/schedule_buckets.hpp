#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/schedule/schedule.hpp"

namespace moescope {

/// Active experts in ascending order, cut into groups of B; a part of the expert_centric and staircase
/// builders.
struct ExpertGroups {
  std::vector<std::int32_t> group_of;  ///< [N]; -1 for an expert without pairs
  std::vector<std::int32_t> experts;   ///< active experts, ascending; group g is [g B, min((g + 1) B, size))
  std::int64_t group_size = 1;         ///< [B]

  std::int64_t count() const;
  /// The item of group g with its expert range; its tokens are still empty.
  WorkItem item(std::int64_t group) const;
};

/// Numbers the groups. On entry group_of[e] >= 0 marks expert e active.
/// Throws InvalidArgument("group_size", ...) unless group_size >= 1.
ExpertGroups make_expert_groups(std::vector<std::int32_t> group_of, std::int64_t group_size);

/// Cuts the batch into consecutive token ranges with about equally many pairs, one per thread as long as each
/// has at least `min_pairs`: first tokens of the ranges, then L.
std::vector<std::int64_t> balanced_token_ranges(const Routing& routing, std::int64_t min_pairs);

/// Pairs that pay for waking a thread: an estimate, some 5 us against a few ns per pair.
inline constexpr std::int64_t kMinPairsPerThread = 1024;

/// Stable counting sort of all pairs by bucket: fills schedule.tokens, pair_offsets and sorted_pair_ids so
/// that tokens ascend within a bucket and pairs ascend within a token. `assign(token, emit)` calls
/// `emit(pair, bucket)` for the token's pairs in ascending order; it is called twice per token, from several
/// threads, and must not throw. Returns [num_buckets + 1]: the range of schedule.tokens of each bucket.
/// Independent of the number of threads, because chunks are consecutive token ranges and each bucket keeps
/// their order.
template <class Assign>
std::vector<std::int64_t> sort_pairs_by_bucket(const Routing& routing, std::int64_t num_buckets,
                                               const Assign& assign, Schedule& schedule) {
  struct Cursor {
    std::int64_t pair = 0;
    std::int64_t slot = 0;
    std::int64_t last_token = -1;
  };
  // A chunk costs one cursor per bucket: with many buckets, more chunks than this would outgrow the pairs.
  const std::int64_t min_pairs = std::max(kMinPairsPerThread, 4 * num_buckets);
  const std::vector<std::int64_t> first_token = balanced_token_ranges(routing, min_pairs);
  const std::int64_t chunks = std::ssize(first_token) - 1;
  std::vector<Cursor> cursors(static_cast<std::size_t>(chunks * num_buckets));

#pragma omp parallel for schedule(static, 1) if (chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    Cursor* const mine = cursors.data() + chunk * num_buckets;
    for (std::int64_t token = first_token[chunk]; token < first_token[chunk + 1]; ++token) {
      assign(token, [mine, token](std::int64_t, std::int64_t bucket) {
        Cursor& cursor = mine[bucket];
        ++cursor.pair;
        cursor.slot += cursor.last_token != token ? 1 : 0;
        cursor.last_token = token;
      });
    }
  }

  std::vector<std::int64_t> bucket_tokens(static_cast<std::size_t>(num_buckets + 1), 0);
  Cursor next;
  for (std::int64_t bucket = 0; bucket < num_buckets; ++bucket) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      Cursor& cursor = cursors[static_cast<std::size_t>(chunk * num_buckets + bucket)];
      const Cursor count = cursor;
      cursor = next;
      next.pair += count.pair;
      next.slot += count.slot;
    }
    bucket_tokens[static_cast<std::size_t>(bucket + 1)] = next.slot;
  }

  schedule.tokens.resize(static_cast<std::size_t>(next.slot));
  schedule.pair_offsets.resize(static_cast<std::size_t>(next.slot + 1));
  schedule.sorted_pair_ids.resize(static_cast<std::size_t>(next.pair));
  schedule.pair_offsets.back() = next.pair;
#pragma omp parallel for schedule(static, 1) if (chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    Cursor* const mine = cursors.data() + chunk * num_buckets;
    for (std::int64_t token = first_token[chunk]; token < first_token[chunk + 1]; ++token) {
      assign(token, [mine, token, &schedule](std::int64_t pair, std::int64_t bucket) {
        Cursor& cursor = mine[bucket];
        if (cursor.last_token != token) {
          cursor.last_token = token;
          schedule.tokens[cursor.slot] = static_cast<std::int32_t>(token);
          schedule.pair_offsets[cursor.slot] = cursor.pair;
          ++cursor.slot;
        }
        schedule.sorted_pair_ids[cursor.pair++] = pair;
      });
    }
  }
  return bucket_tokens;
}

}  // namespace moescope
