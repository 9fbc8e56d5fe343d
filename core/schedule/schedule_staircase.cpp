#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/schedule_buckets.hpp"

namespace moescope {

namespace {

/// Calls visit(row, begin, end) for each grid row that ids[begin..end) select, ascending. One division per
/// row.
template <class Visit>
void for_each_row(std::span<const std::int32_t> ids, std::int64_t grid_cols, const Visit& visit) {
  std::size_t begin = 0;
  while (begin < ids.size()) {
    const std::int64_t row = ids[begin] / grid_cols;
    const std::int64_t row_end = (row + 1) * grid_cols;
    std::size_t end = begin + 1;
    while (end < ids.size() && ids[end] < row_end) ++end;
    visit(row, begin, end);
    begin = end;
  }
}

/// Finds minimal covers of one token after another without allocating.
class CoverFinder {
 public:
  /// `max_top_k`: the most pairs a token has.
  CoverFinder(std::int64_t grid_cols, std::int64_t max_top_k)
      : grid_cols_(grid_cols),
        shortest_row_(static_cast<std::size_t>(grid_cols), kUnused),
        changes_(static_cast<std::size_t>(std::min(grid_cols, max_top_k) + 1)) {}

  struct Threshold {
    std::int64_t k =
        0;  ///< rows with more than k selected columns are row strips, the rest is taken by columns
    std::int64_t strips = 0;  ///< size of that cover
  };

  /// min over k of rows(k) + cols(k): a row with n columns is a strip while k < n, and a column is needed
  /// once k reaches the length of the shortest row that selects it. Two counts per length give all k in O(K).
  Threshold find(std::span<const std::int32_t> ids) {
    std::int64_t rows = 0;
    std::int64_t longest = 0;
    for_each_row(ids, grid_cols_, [&](std::int64_t row, std::size_t begin, std::size_t end) {
      const auto length = static_cast<std::int32_t>(end - begin);
      ++rows;
      longest = std::max<std::int64_t>(longest, length);
      --changes_[length];
      for (std::size_t i = begin; i < end; ++i) {
        std::int32_t& shortest = shortest_row_[ids[i] - row * grid_cols_];
        shortest = std::min(shortest, length);
      }
    });
    for_each_row(ids, grid_cols_, [&](std::int64_t row, std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        std::int32_t& shortest = shortest_row_[ids[i] - row * grid_cols_];
        if (shortest == kUnused) continue;
        ++changes_[shortest];
        shortest = kUnused;
      }
    });
    Threshold best{.k = 0, .strips = rows};
    std::int64_t strips = rows;
    for (std::int64_t k = 1; k <= longest; ++k) {
      strips += changes_[k];
      changes_[k] = 0;
      if (strips < best.strips) best = {.k = k, .strips = strips};
    }
    return best;
  }

 private:
  static constexpr std::int32_t kUnused = std::numeric_limits<std::int32_t>::max();
  std::int64_t grid_cols_;
  std::vector<std::int32_t> shortest_row_;  ///< per column, kUnused between tokens
  std::vector<std::int64_t> changes_;       ///< strips(k) - strips(k - 1), zero between tokens
};

/// Marks a token whose smallest cover is larger than 2 sqrt(K).
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
  std::vector<CoverFinder> finders(static_cast<std::size_t>(chunks),
                                   CoverFinder(routing.grid_cols, max_top_k));
  std::vector<std::int64_t> thresholds(static_cast<std::size_t>(routing.num_tokens));
#pragma omp parallel for schedule(static, 1) if (chunks > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::int64_t token = first_token[chunk]; token < first_token[chunk + 1]; ++token) {
      const std::span<const std::int32_t> ids = routing.ids_of(token);
      const CoverFinder::Threshold cover = finders[chunk].find(ids);
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

StripCover minimal_strip_cover(std::span<const std::int32_t> expert_ids, std::int64_t grid_rows,
                               std::int64_t grid_cols) {
  if (grid_rows < 1) throw InvalidArgument("grid_rows", std::to_string(grid_rows), "must be at least 1");
  if (grid_cols < 1) throw InvalidArgument("grid_cols", std::to_string(grid_cols), "must be at least 1");
  for (std::size_t i = 0; i < expert_ids.size(); ++i) {
    const bool in_grid = expert_ids[i] >= 0 && expert_ids[i] < grid_rows * grid_cols;
    if (!in_grid || (i > 0 && expert_ids[i] <= expert_ids[i - 1])) {
      throw InvalidArgument(fmt::format("expert_ids[{}]", i), std::to_string(expert_ids[i]),
                            fmt::format("must lie in [0, {}) and ascend", grid_rows * grid_cols));
    }
  }
  const std::int64_t k =
      CoverFinder(grid_cols, static_cast<std::int64_t>(expert_ids.size())).find(expert_ids).k;
  StripCover cover;
  for_each_row(expert_ids, grid_cols, [&](std::int64_t row, std::size_t begin, std::size_t end) {
    if (static_cast<std::int64_t>(end - begin) > k) {
      cover.rows.push_back(static_cast<std::int32_t>(row));
      return;
    }
    for (std::size_t i = begin; i < end; ++i) {
      cover.cols.push_back(static_cast<std::int32_t>(expert_ids[i] - row * grid_cols));
    }
  });
  std::sort(cover.cols.begin(), cover.cols.end());
  cover.cols.erase(std::unique(cover.cols.begin(), cover.cols.end()), cover.cols.end());
  return cover;
}

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
    for_each_row(ids, routing.grid_cols, [&](std::int64_t row, std::size_t begin, std::size_t end) {
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
