#pragma once

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/launch.hpp"

/// Host arithmetic of schedule.cu: capacities, workspace layout and launch sizes, from the shape alone. Plain
/// C++.
namespace moescope::cuda {

/// Enough blocks to fill any GPU; the kernels loop.
inline constexpr std::int64_t kMaxScheduleBlocks = 4096;

/// Per-token counters of the cover: row lengths [Nr], shortest selected row per column [Nc], and the change
/// of the number of strips at each threshold [min(Nc, K) + 1].
struct CoverShape {
  std::int32_t grid_rows = 0;
  std::int32_t grid_cols = 0;
  std::int32_t top_k = 0;

  constexpr std::int32_t num_thresholds() const { return (grid_cols < top_k ? grid_cols : top_k) + 1; }
  constexpr std::int64_t num_counters() const {
    return std::int64_t{grid_rows} + grid_cols + num_thresholds();
  }
};

/// What the launches need to know, from the shape alone.
struct SchedulePlan {
  std::int64_t num_pairs = 0;
  std::int64_t num_experts = 0;
  std::int64_t first_group = 0;  ///< item index of group 0: Nr + Nc behind the strips, else 0
  ScheduleCapacity capacity;
  bool staircase = false;
  bool wide_keys = false;          ///< 32-bit keys; 16-bit hold items and the no-staircase mark otherwise
  bool values_in_entries = false;  ///< the sort's second buffer is entry_tokens, which is written after it
  CoverShape cover;
  int cover_blocks = 1;
  std::int64_t cover_shared_bytes = 0;
  std::int64_t cover_global_bytes = 0;

  // Workspace layout in bytes.
  std::int64_t key_bytes = 0;
  std::int64_t values_bytes = 0;
  std::int64_t ranks_bytes = 0;
  std::int64_t cub_bytes = 0;
};

/// Throws as launch_schedule().
SchedulePlan plan_schedule(const LayerShape& shape, const ScheduleOptions& options);

}  // namespace moescope::cuda
