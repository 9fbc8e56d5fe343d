// How work is cut follows the device: on 132 multiprocessors as every recorded row had it, on others in
// proportion.
#include <gtest/gtest.h>

#include "core/tiling/chunks.hpp"
#include "core/tiling/selection_form.hpp"
#include "core/tiling/token_split.hpp"
#include "tests/support/gpus.hpp"

namespace moescope {
namespace {

LayerShape shape_of(std::int64_t num_tokens, std::int64_t side) {
  LayerShape shape;
  shape.num_tokens = num_tokens;
  shape.grid_rows = shape.grid_cols = side;
  shape.top_k = 512;
  return shape;
}

TEST(GpuSizes, FewTokensAreAsManyAsTheMultiprocessorsTakeAtATime) {
  const GpuTraits large = test::large_gpu();
  EXPECT_TRUE(csr_by_eight_warps(shape_of(264, 320), large));
  EXPECT_FALSE(csr_by_eight_warps(shape_of(265, 320), large));
  EXPECT_TRUE(strips_by_eight_warps(shape_of(528, 320), large));
  EXPECT_FALSE(strips_by_eight_warps(shape_of(529, 320), large));
  EXPECT_TRUE(strips_by_eight_warps(shape_of(264, 321), large));
  EXPECT_FALSE(strips_by_eight_warps(shape_of(265, 321), large));
  const GpuTraits half = test::large_gpu(90, 66);
  EXPECT_TRUE(csr_by_eight_warps(shape_of(132, 320), half));
  EXPECT_FALSE(csr_by_eight_warps(shape_of(133, 320), half));
  EXPECT_TRUE(strips_by_eight_warps(shape_of(264, 320), half));
  EXPECT_FALSE(strips_by_eight_warps(shape_of(265, 320), half));
}

TEST(GpuSizes, DenseSplitsFillTheDevice) {
  EXPECT_EQ(DenseSplits::tiles_to_fill(test::large_gpu()), 128);
  EXPECT_EQ(DenseSplits::tiles_to_fill(test::large_gpu(80, 108)), 104);
  EXPECT_EQ(DenseSplits::tiles_to_fill(test::large_gpu(80, 5)), 8);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 1024, 1024, 98816), 4);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(90, 66), 1024, 1024, 98816), 2);
}

TEST(GpuSizes, WorkersOfATokenFillTheDevice) {
  const auto splits = [](std::int64_t num_sms, std::int64_t num_tokens) {
    return TokenSplit::choose(test::large_gpu(90, num_sms), num_tokens, 512, 2048, 8, 8).splits();
  };
  EXPECT_EQ(splits(132, 64), 16);
  EXPECT_EQ(splits(66, 64), 8);
  EXPECT_EQ(splits(132, 1024), 2);
  EXPECT_EQ(splits(66, 1024), 1);
}

TEST(TokenSplit, LongRowsGiveABlockAsManyWarpsAsShortOnes) {
  const auto split = [](std::int64_t row_bytes) {
    return TokenSplit::choose(test::large_gpu(90, 132), 16, 1024, row_bytes, 8, 8);
  };
  for (const std::int64_t row_bytes : {2048, 4096, 8192, 16384}) {
    const TokenSplit chosen = split(row_bytes);
    EXPECT_EQ(chosen.team * 2048, row_bytes);
    EXPECT_EQ(chosen.workers_per_block() * chosen.team, TokenSplit::kWarpsPerBlock);
    EXPECT_EQ(TokenSplit::choose(test::large_gpu(90, 132), 4096, 1024, row_bytes, 8, 8).warps,
              row_bytes == 2048 ? TokenSplit::kWarpsPerBlock : chosen.team);
    EXPECT_GE(chosen.num_blocks * TokenSplit::kWarpsPerBlock, 4 * 132)
        << row_bytes;  // 2 warps a multiprocessor before
  }
}

}  // namespace
}  // namespace moescope
