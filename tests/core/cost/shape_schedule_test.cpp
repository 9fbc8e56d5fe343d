// The choice by shape alone chooses what was fastest on an H200.
#include "core/cost/shape_schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/tiling/strip_tiles.hpp"

namespace moescope {
namespace {

const GpuTraits kGpu = [] {
  GpuTraits gpu;
  gpu.num_sms = 132;
  gpu.l2_bytes = std::int64_t{60} << 20;
  return gpu;
}();

LayerShape table_a(std::int64_t tokens, std::int64_t top_k) {
  LayerShape shape;
  shape.num_tokens = tokens;
  shape.top_k = top_k;
  return shape;
}

TEST(ShapeSchedule, ChoosesWhatWasFastest) {
  // docs/results/h200.md: bf16, N = 320 x 320, d = 1024.
  for (const bool lists_pairs : {false, true}) {
    for (const std::int64_t tokens : {1, 64, 256}) {
      EXPECT_EQ(schedule_of_shape(table_a(tokens, 512), kGpu, lists_pairs), ScheduleKind::kTokenCentric)
          << tokens;
    }
    for (const std::int64_t tokens : {4096, 16384}) {
      EXPECT_EQ(schedule_of_shape(table_a(tokens, 512), kGpu, lists_pairs), ScheduleKind::kStaircase)
          << tokens;
    }
    EXPECT_EQ(schedule_of_shape(table_a(1024, 4096), kGpu, lists_pairs), ScheduleKind::kStaircase);
  }
  EXPECT_EQ(schedule_of_shape(table_a(16384, 1), kGpu, false), ScheduleKind::kTokenCentric);
}

TEST(ShapeSchedule, CoversAreWithinTheirBound) {
  for (const std::int64_t top_k : {1, 8, 512, 4096, 102400}) {
    const LayerShape shape = table_a(1, top_k);
    EXPECT_GE(expected_strips(shape), 1);
    EXPECT_LE(expected_strips(shape),
              static_cast<double>(max_strips_of_token(shape, StripRule::kMinimalCover)));
  }
}

}  // namespace
}  // namespace moescope
