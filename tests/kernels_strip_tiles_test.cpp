#include "core/strip_tiles.hpp"

#include <gtest/gtest.h>

#include "kernels/staircase_tiles.hpp"
#include "kernels/strips.hpp"

namespace moescope {
namespace {

TEST(StripTiles, AreWhatTheKernelsCut) {
  EXPECT_EQ(kStripTileTokens, (cuda::StaircaseTiles<160, 2, cuda::StaircaseSums::kFp16>::kTokens));
  for (const int most : {1, 4, 128}) {
    for (int count = 1; count <= 5 * most; ++count) {
      for (int tile = 0; tile < ceil_div(count, most); ++tile) {
        ASSERT_EQ(strip_tile_tokens(count, most, tile), cuda::strip_tile_tokens(count, most, tile))
            << count << " tokens, tile " << tile << " of at most " << most;
      }
    }
  }
  for (std::int64_t rows = 1; rows < 1100; rows += 7) {
    for (std::int64_t cols = 1; cols < 1100; cols += 11) {
      ASSERT_EQ(strip_segment_experts(rows, cols), cuda::staircase_segment(rows, cols))
          << rows << " x " << cols;
    }
  }
}

TEST(StripTiles, CoverAsManyStripsAsTheKernelsMakeRoomFor) {
  for (std::int64_t top_k = 1; top_k <= 4096; top_k += 5) {
    LayerShape shape;
    shape.num_tokens = 3;
    shape.hidden_size = 64;
    shape.grid_rows = 320;
    shape.grid_cols = 100;
    shape.top_k = top_k;
    ASSERT_EQ(max_strips_of_token(shape),
              cuda::strip_capacity(shape, cuda::StripRule::kMinimalCover, 128).max_cover);
  }
}

}  // namespace
}  // namespace moescope
