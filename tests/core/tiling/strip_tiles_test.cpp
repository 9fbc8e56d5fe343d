// How strips are cut, and into what tiles.
#include "core/tiling/strip_tiles.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace moescope {
namespace {

LayerShape choosing(std::int64_t num_tokens, std::int64_t top_k) {
  return {.num_tokens = num_tokens, .hidden_size = 1024, .grid_rows = 320, .grid_cols = 320, .top_k = top_k};
}

TEST(StripTiles, HoldEveryTokenOnceAndTwoOfThemShareEqually) {
  for (const int most : {1, 4, 128}) {
    for (int count = 1; count <= 5 * most; ++count) {
      const int tiles = (count + most - 1) / most;
      int sum = 0;
      int smallest = most;
      for (int tile = 0; tile < tiles; ++tile) {
        const int tokens = strip_tile_tokens(count, most, tile);
        ASSERT_GE(tokens, 1) << count << " tokens, tile " << tile << " of at most " << most;
        ASSERT_LE(tokens, most);
        smallest = std::min(smallest, tokens);
        sum += tokens;
      }
      ASSERT_EQ(sum, count);
      if (tiles == 2) {
        ASSERT_EQ(smallest, count / 2);
      }
    }
  }
}

TEST(StripTiles, SegmentsPadStripsLeast) {
  EXPECT_EQ(strip_segment_experts(320, 320), 320);
  EXPECT_EQ(strip_segment_experts(64, 64), 64);
  EXPECT_EQ(strip_segment_experts(1024, 1024), 256);
  EXPECT_EQ(strip_segment_experts(160, 100), 160);
  EXPECT_EQ(strip_segment_experts(1, 1), 64);
  // What was fastest on an H200 at 64 and 2048 tokens, or within 10 % of it.
  EXPECT_EQ(strip_segment_experts(96, 96), 160);
  EXPECT_EQ(strip_segment_experts(200, 200), 256);
  EXPECT_EQ(strip_segment_experts(512, 512), 256);
  EXPECT_EQ(strip_segment_experts(33, 700), 160);
  EXPECT_EQ(strip_segment_experts(64, 1600), 160);
  EXPECT_EQ(strip_segment_experts(321, 640), 160);
  EXPECT_EQ(strip_segment_experts(1000, 100), 256);
}

TEST(StripTiles, ATokenHasAtMostTwoSqrtKStripsOrKRows) {
  for (std::int64_t top_k = 1; top_k <= 4096; ++top_k) {
    LayerShape shape = choosing(1, top_k);
    const std::int64_t strips = max_strips_of_token(shape, StripRule::kMinimalCover);
    ASSERT_LE(strips * strips, 4 * top_k);
    ASSERT_TRUE((strips + 1) * (strips + 1) > 4 * top_k || strips == 320);
    ASSERT_EQ(max_strips_of_token(shape, StripRule::kRowsOnly), std::min<std::int64_t>(top_k, 320));
    shape.grid_cols = 10;
    ASSERT_LE(max_strips_of_token(shape, StripRule::kMinimalCover), 10);
  }
}

TEST(StripTiles, SumsInFp16OnlyFewTermsThatNeedNotBeRepeatable) {
  const auto fp16 = [](std::int64_t side, std::int64_t top_k, StripRule rule, bool deterministic) {
    LayerShape shape = choosing(1, top_k);
    shape.grid_rows = side;
    shape.grid_cols = side;
    return strips_sum_in_fp16(shape, {.deterministic = deterministic, .strip_rule = rule});
  };
  EXPECT_TRUE(fp16(320, 4096, StripRule::kMinimalCover, false));
  EXPECT_FALSE(fp16(320, 4096, StripRule::kMinimalCover, true));
  EXPECT_TRUE(fp16(320, 4096, StripRule::kRowsOnly, false));  // 320 rows in one segment each
  EXPECT_FALSE(fp16(321, 4096, StripRule::kRowsOnly, false));
  EXPECT_TRUE(fp16(1024, 512, StripRule::kMinimalCover, false));  // 45 strips of 4 segments
  EXPECT_TRUE(fp16(1024, 80, StripRule::kRowsOnly, false));       // 80 rows of 4 segments
  EXPECT_FALSE(fp16(1024, 81, StripRule::kRowsOnly, false));
}

}  // namespace
}  // namespace moescope
