#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/schedule/schedule.hpp"
#include "core/schedule/schedule_buckets.hpp"
#include "core/schedule/strip_cover.hpp"

namespace moescope {

namespace {

/// Marks a token whose cover by row length is larger than 2 sqrt(K), which no staircase's is.
constexpr std::int64_t kNoStaircase = -1;

/// The threshold k of each token's cover, or kNoStaircase: [L].
std::vector<std::int64_t> find_thresholds(const Routing& routing, StripRule rule) {
  if (rule == StripRule::kRowsOnly) {
    return std::vector<std::int64_t>(static_cast<std::size_t>(routing.num_tokens), 0);
  }
  std::int64_t max_top_k = 0;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    max_top_k = std::max(max_top_k, routing.token_offsets[token + 1] - routing.token_offsets[token]);
  }
  const std::vector<std::int64_t> first_token = balanced_token_ranges(routing, kMinPairsPerThread);
  const std::int64_t chunks = std::ssize(first_token) - 1;
  std::vector<ThresholdCover> finders(static_cast<std::size_t>(chunks),
                                      ThresholdCover(routing.grid_cols, max_top_k));
  std::vector<std::int64_t> thresholds(static_cast<std::size_t>(routing.num_tokens));
#pragma omp parallel for schedule(static, 1) if (chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::int64_t token = first_token[chunk]; token < first_token[chunk + 1]; ++token) {
      const std::span<const std::int32_t> ids = routing.ids_of(token);
      const ThresholdCover::Best cover = finders[chunk].find(ids);
      const auto top_k = static_cast<std::int64_t>(ids.size());
      thresholds[token] = cover.strips * cover.strips <= 4 * top_k ? cover.k : kNoStaircase;
    }
  }
  return thresholds;
}

/// Groups of the experts that tokens without a staircase use.
ExpertGroups group_remaining_experts(const Routing& routing, std::span<const std::int64_t> thresholds,
                                     std::int64_t group_size) {
  std::vector<std::int32_t> active;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    if (thresholds[token] != kNoStaircase) continue;
    active.resize(static_cast<std::size_t>(routing.num_experts()), -1);
    for (const std::int32_t expert : routing.ids_of(token)) active[expert] = 0;
  }
  return make_expert_groups(std::move(active), group_size);
}

}  // namespace

Schedule build_staircase(const Routing& routing, const ScheduleOptions& options) {
  validate_tile_tokens(options.tile_tokens);
  Schedule schedule;
  schedule.kind = ScheduleKind::kStaircase;
  schedule.options = options;
  schedule.options.kind = schedule.kind;

  const std::vector<std::int64_t> thresholds = find_thresholds(routing, options.strip_rule);
  ExpertGroups groups = group_remaining_experts(routing, thresholds, options.group_size);

  // Buckets in order of execution: Nr row strips, Nc column strips, the groups.
  const std::int64_t first_col = routing.grid_rows;
  const std::int64_t first_group = routing.grid_rows + routing.grid_cols;
  const std::int64_t num_buckets = first_group + groups.count();
  const auto assign = [&](std::int64_t token, const auto& emit) {
    const std::span<const std::int32_t> ids = routing.ids_of(token);
    const std::int64_t first_pair = routing.token_offsets[token];
    const std::int64_t k = thresholds[token];
    if (k == kNoStaircase) {
      for (std::size_t i = 0; i < ids.size(); ++i) {
        emit(first_pair + static_cast<std::int64_t>(i), first_group + groups.group_of[ids[i]]);
      }
      return;
    }
    for_each_grid_row(ids, routing.grid_cols, [&](std::int64_t row, std::size_t begin, std::size_t end) {
      const bool row_strip = static_cast<std::int64_t>(end - begin) > k;
      for (std::size_t i = begin; i < end; ++i) {
        emit(first_pair + static_cast<std::int64_t>(i),
             row_strip ? row : first_col + ids[i] - row * routing.grid_cols);
      }
    });
  };
  const std::vector<std::int64_t> bucket_tokens =
      sort_pairs_by_bucket(routing, num_buckets, assign, schedule);
  for (std::int64_t bucket = 0; bucket < num_buckets; ++bucket) {
    if (bucket_tokens[bucket] == bucket_tokens[bucket + 1]) continue;
    WorkItem item;
    if (bucket < first_col) {
      item = {.kind = WorkItemKind::kRowStrip, .strip = static_cast<std::int32_t>(bucket)};
    } else if (bucket < first_group) {
      item = {.kind = WorkItemKind::kColStrip, .strip = static_cast<std::int32_t>(bucket - first_col)};
    } else {
      item = groups.item(bucket - first_group);
    }
    item.token_begin = bucket_tokens[bucket];
    item.token_end = bucket_tokens[bucket + 1];
    schedule.items.push_back(item);
  }
  schedule.experts = std::move(groups.experts);
  return schedule;
}

}  // namespace moescope
