#include "core/cost/host_needs.hpp"

#include <algorithm>
#include <cmath>

#include "core/schedule/schedule_buckets.hpp"
#include "core/schedule/schedule_info.hpp"
#include "core/tiling/strip_tiles.hpp"

namespace moescope {
namespace {

double real(std::int64_t count) { return static_cast<double>(count); }

/// What the schedules' sizes are made of.
struct Extents {
  double tokens;
  double pairs;
  double active;  ///< experts, at most
  double groups;
  double strips_of_token;  ///< at most

  Extents(const LayerShape& shape, const ScheduleOptions& options)
      : tokens(real(shape.num_tokens)),
        pairs(real(shape.num_tokens) * real(shape.top_k)),
        active(std::min(real(shape.num_experts()), pairs)),
        groups(std::ceil(active / real(std::max<std::int64_t>(options.group_size, 1)))),
        strips_of_token(real(std::min(shape.top_k, max_strips_of_token(shape, options.strip_rule)))) {}
};

/// items, experts, tokens with their pair_offsets, sorted_pair_ids.
double lists(double items, double experts, double tasks, double pairs) {
  return items * sizeof(WorkItem) + experts * sizeof(std::int32_t) +
         tasks * (sizeof(std::int32_t) + sizeof(std::int64_t)) + pairs * sizeof(std::int64_t);
}

/// Cursors of sort_pairs_by_bucket(): one of three numbers per bucket and chunk, and the buckets' ends.
double sorting(double buckets, double pairs, int threads) {
  const double chunks = std::clamp(pairs / std::max(real(kMinPairsPerThread), 4 * buckets), 1.0,
                                   static_cast<double>(std::max(threads, 1)));
  return buckets * (3 * chunks + 1) * sizeof(std::int64_t);
}

}  // namespace

double routing_host_bytes(const LayerShape& shape) {
  return real(shape.num_tokens) * real(shape.top_k) * (sizeof(std::int32_t) + sizeof(float)) +
         (real(shape.num_tokens) + 1) * sizeof(std::int64_t);
}

double inputs_host_bytes(const LayerShape& shape, bool fixed_routing, bool has_experts) {
  const double row = real(shape.hidden_size) * real(dtype_bytes(shape.dtype));
  const double sides = real(shape.grid_rows) + real(shape.grid_cols);
  const double experts =
      has_experts ? 0 : (2 * real(shape.num_experts()) + 3 * real(shape.shared_size)) * row;
  // Popularity has a bias and an order of ranks per row and column.
  const double router = fixed_routing ? routing_host_bytes(shape) : sides * (row + 2 * sizeof(std::int64_t));
  return experts + router + real(shape.num_tokens) * row;
}

HostNeeds schedule_host_needs(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options,
                              int threads) {
  const Extents x(shape, options);
  const double group_tasks = std::min(x.pairs, x.tokens * std::min(x.groups, real(shape.top_k)));
  const double group_of = real(shape.num_experts()) * sizeof(std::int32_t);
  switch (options.kind) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kSparseLibrary:
      return {lists(x.tokens, 0, x.tokens, x.pairs), 0};
    case ScheduleKind::kDenseMasked:
      return {lists(1, 0, x.tokens, x.pairs), 0};
    case ScheduleKind::kExpertCentric:
      return {lists(x.groups, x.active, group_tasks, x.pairs),
              group_of + sorting(x.groups, x.pairs, threads)};
    case ScheduleKind::kStaircase: {
      const double sides = real(shape.grid_rows) + real(shape.grid_cols);
      const bool groups = fixed_routing && options.strip_rule == StripRule::kMinimalCover;
      const double strip_tasks = x.tokens * std::min(x.strips_of_token, sides);
      const double thresholds = x.tokens * sizeof(std::int64_t);
      const double finders = threads * (real(shape.grid_cols) * sizeof(std::int32_t) +
                                        real(std::min(shape.grid_cols, shape.top_k)) * sizeof(std::int64_t));
      const double buckets = sides + (groups ? x.groups : 0);
      // Items grow by doubling.
      const double items = std::min(sides, strip_tasks) + (groups ? x.groups : 0);
      return {lists(items, groups ? x.active : 0, groups ? std::max(strip_tasks, group_tasks) : strip_tasks,
                    x.pairs),
              items * sizeof(WorkItem) + thresholds + finders + (groups ? group_of : 0) +
                  sorting(buckets, x.pairs, threads)};
    }
    case ScheduleKind::kAuto:
      break;
  }
  HostNeeds most;
  for (const ScheduleKind kind : named_schedules(/*with_library=*/false)) {
    ScheduleOptions named = options;
    named.kind = kind;
    const HostNeeds one = schedule_host_needs(shape, fixed_routing, named, threads);
    most.kept = std::max(most.kept, one.kept);
    most.passing = std::max(most.passing, one.passing);
  }
  most.passing += analysis_host_bytes(shape, threads);
  return most;
}

double analysis_host_bytes(const LayerShape& shape, int threads) {
  const double cols = real(shape.grid_cols);
  const double rows = std::min(real(shape.grid_rows), real(shape.top_k));
  return real(shape.num_experts()) * sizeof(std::int64_t) +
         threads * (cols * (2 * sizeof(std::int64_t) + 3 * sizeof(std::int32_t)) + rows * 72);
}

}  // namespace moescope
