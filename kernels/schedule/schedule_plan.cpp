#include "kernels/schedule/schedule_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"

namespace moescope::cuda {
namespace {

/// Default dynamic shared memory of a block, less what CUB needs beside the counters.
constexpr std::int64_t kMaxSharedCounterBytes = std::int64_t{40} << 10;
/// Global counters of grids that are too large for shared memory; fewer blocks run when a block needs more.
constexpr std::int64_t kGlobalCounterBytes = std::int64_t{16} << 20;
constexpr std::int64_t kAlignment = 256;

std::int64_t aligned(std::int64_t bytes) { return round_up(bytes, kAlignment); }

/// Bound of CUB's temporary storage for the sort, selection and scans. Sort (radix bits 8): 1 KiB of
/// look-back per tile of at least 2048 pairs, or a spine per resident block where one-sweep is not used
/// (below 4 MiB). Selection and scans: 16 bytes per tile of at least 128 elements. The launcher checks the
/// real need against it.
std::int64_t cub_bytes_bound(std::int64_t num_pairs, std::int64_t num_experts, std::int64_t max_items) {
  return num_pairs / 2 + (num_pairs + num_experts + max_items) / 8 + (std::int64_t{4} << 20);
}

}  // namespace

SchedulePlan plan_schedule(const LayerShape& shape, const ScheduleOptions& options) {
  shape.validate();
  if (options.kind != ScheduleKind::kExpertCentric && options.kind != ScheduleKind::kStaircase) {
    throw InternalError(
        fmt::format("schedule {} has no grouped form on the device", to_string(options.kind)));
  }
  if (options.group_size < 1) {
    throw InvalidArgument("group_size", fmt::to_string(options.group_size), "must be at least 1");
  }
  SchedulePlan plan;
  plan.num_pairs = shape.num_pairs();
  plan.num_experts = shape.num_experts();
  if (plan.num_pairs >= (std::int64_t{1} << 31)) {
    throw InvalidArgument("num_tokens * top_k", fmt::to_string(plan.num_pairs),
                          fmt::format("must be below 2^31 for schedule {}", to_string(options.kind)));
  }
  plan.staircase = options.kind == ScheduleKind::kStaircase;
  plan.first_group = plan.staircase ? shape.grid_rows + shape.grid_cols : 0;
  ScheduleCapacity& capacity = plan.capacity;
  capacity.max_group_experts = std::min(plan.num_experts, plan.num_pairs);
  const std::int64_t max_groups = ceil_div(capacity.max_group_experts, options.group_size);
  capacity.max_items = plan.first_group + max_groups;
  // A token has at most 2 sqrt(K) strips, or one entry per group; strips <= K as well.
  std::int64_t entries_per_token = std::min(shape.top_k, max_groups);
  if (plan.staircase) {
    std::int64_t strips = 1;
    while ((strips + 1) * (strips + 1) <= 4 * shape.top_k) {
      ++strips;
    }
    entries_per_token = std::max(entries_per_token, std::min(strips, shape.top_k));
  }
  capacity.max_entries = shape.num_tokens * entries_per_token;
  const std::int64_t words64 = 2 * (capacity.max_items + 1) + 4;  // offsets of items and tiles, counts
  const std::int64_t words32 = 2 * capacity.max_entries + 1 + plan.num_pairs + capacity.max_group_experts;
  capacity.array_bytes = 8 * words64 + 4 * words32;

  plan.wide_keys = capacity.max_items > 0xffff;
  plan.values_in_entries = capacity.max_entries >= plan.num_pairs;
  plan.key_bytes = aligned(plan.num_pairs * (plan.wide_keys ? 4 : 2));
  plan.values_bytes = plan.values_in_entries ? 0 : aligned(plan.num_pairs * 4);
  plan.ranks_bytes = aligned((plan.num_experts + 1) * 4);
  plan.cub_bytes = aligned(cub_bytes_bound(plan.num_pairs, plan.num_experts, capacity.max_items));
  if (plan.staircase) {
    plan.cover = {.grid_rows = static_cast<std::int32_t>(shape.grid_rows),
                  .grid_cols = static_cast<std::int32_t>(shape.grid_cols),
                  .top_k = static_cast<std::int32_t>(shape.top_k)};
    const std::int64_t counter_bytes = plan.cover.num_counters() * 4;
    plan.cover_blocks = static_cast<int>(std::min(shape.num_tokens, kMaxScheduleBlocks));
    if (counter_bytes <= kMaxSharedCounterBytes) {
      plan.cover_shared_bytes = counter_bytes;
    } else {
      plan.cover_blocks = static_cast<int>(
          std::clamp<std::int64_t>(kGlobalCounterBytes / counter_bytes, 1, plan.cover_blocks));
      plan.cover_global_bytes = aligned(plan.cover_blocks * counter_bytes);
    }
  }
  capacity.workspace_bytes =
      2 * plan.key_bytes + plan.values_bytes + plan.ranks_bytes + plan.cub_bytes + plan.cover_global_bytes;
  return plan;
}

ScheduleCapacity schedule_capacity(const LayerShape& shape, const ScheduleOptions& options) {
  return plan_schedule(shape, options).capacity;
}

}  // namespace moescope::cuda
