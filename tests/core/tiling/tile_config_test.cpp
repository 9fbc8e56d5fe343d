#include "core/tiling/tile_config.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace moescope {
namespace {

// Largest dynamic shared memory of a block (CUDA programming guide, compute capabilities 9.0, 8.0, 8.6).
constexpr std::int64_t kSm90Bytes = 232448;
constexpr std::int64_t kSm80Bytes = 166912;
constexpr std::int64_t kSm86Bytes = 101376;

template <class Tiles>
class TileConfigOf : public testing::Test {};
using AllTiles = testing::Types<WideTiles, NarrowTiles, F32Tiles>;
TYPED_TEST_SUITE(TileConfigOf, AllTiles);

TYPED_TEST(TileConfigOf, LaysRegionsOutWithoutOverlapAndAligned) {
  for (int p_blocks = 0; p_blocks <= 6; ++p_blocks) {
    const TileLayout layout = tile_layout<TypeParam>(p_blocks);
    const std::int64_t p_bytes =
        p_blocks == 0 ? 0 : std::int64_t{TypeParam::kBlockM} * layout.p_ld * TypeParam::kElementBytes;
    EXPECT_GE(layout.p_offset, TypeParam::kUnionBytes);
    EXPECT_GE(layout.experts_offset, layout.p_offset + p_bytes);
    EXPECT_GE(layout.tokens_offset, layout.experts_offset + layout.chunk_experts * 4);
    EXPECT_GE(layout.pairs_offset, layout.tokens_offset + TypeParam::kBlockM * 4);
    EXPECT_GE(layout.bytes, layout.pairs_offset + (TypeParam::kBlockM + 1) * 4);
    for (const std::int64_t offset :
         {layout.p_offset, layout.experts_offset, layout.tokens_offset, layout.pairs_offset, layout.bytes}) {
      EXPECT_EQ(offset % 16, 0) << "p_blocks " << p_blocks;
    }
    EXPECT_GE(layout.p_ld, layout.chunk_experts);
    EXPECT_EQ(layout.p_ld * TypeParam::kElementBytes % 16, 0) << "P is cleared in 16-byte stores";
  }
}

TYPED_TEST(TileConfigOf, TakesAsMuchPAsFitsAndNoMoreThanNeeded) {
  for (const std::int64_t limit : {kSm90Bytes, kSm80Bytes, kSm86Bytes}) {
    for (std::int64_t experts = 1; experts <= 2048; experts = experts * 3 / 2 + 1) {
      const int blocks = fit_p_blocks<TypeParam>(experts, limit);
      const std::int64_t needed = ceil_div(experts, TypeParam::kBlockN);
      EXPECT_LE(blocks, needed);
      if (blocks > 0) {
        EXPECT_LE(tile_layout<TypeParam>(blocks).bytes, limit);
      }
      if (blocks < needed) {
        EXPECT_GT(tile_layout<TypeParam>(blocks + 1).bytes, limit);
      }
    }
  }
}

TEST(TileConfig, HasTilesForEveryArchitecture) {
  for (const std::int64_t limit : {kSm90Bytes, kSm80Bytes, kSm86Bytes}) {
    EXPECT_GE(fit_p_blocks<NarrowTiles>(64, limit), 1);
    EXPECT_GE(fit_p_blocks<F32Tiles>(64, limit), 1);
  }
}

TEST(TileConfig, KeepsAWholeTableAStripInSharedMemoryOnHopper) {
  EXPECT_TRUE(prefer_wide_tiles(320, kSm90Bytes));
  EXPECT_EQ(fit_p_blocks<WideTiles>(320, kSm90Bytes), 2);
}

TEST(TileConfig, ChoosesNarrowTilesForGroupsAndSmallDevices) {
  EXPECT_FALSE(prefer_wide_tiles(64, kSm90Bytes));
  EXPECT_FALSE(prefer_wide_tiles(320, kSm86Bytes));
  // Two blocks of narrow tiles share a multiprocessor of 228 KiB; each block also costs 1 KiB of it.
  EXPECT_LE(2 * (tile_layout<NarrowTiles>(1).bytes + 1024), 228 * 1024);
}

TYPED_TEST(TileConfigOf, RowsOfSixteenByteUnitsAreOddForLdmatrix) {
  if constexpr (TypeParam::kElementBytes == 2) {
    EXPECT_EQ(TypeParam::kTileLd * 2 / 16 % 2, 1);
    EXPECT_EQ(TypeParam::kVLd * 2 / 16 % 2, 1);
    for (int p_blocks = 1; p_blocks < 5; ++p_blocks) {
      EXPECT_EQ(tile_layout<TypeParam>(p_blocks).p_ld * 2 / 16 % 2, 1);
    }
  }
}

/// Marks what every lane of every warp holds and expects each element of [rows, cols] once.
template <class Tiles>
void expect_fragments_cover(int n_tiles, int cols) {
  std::vector<int> held(static_cast<std::size_t>(Tiles::kBlockM * cols), 0);
  std::vector<int> added(held.size(), 0);
  for (int warp = 0; warp < Tiles::kThreads / 32; ++warp) {
    const int warp_m = warp / Tiles::kWarpsN;
    const int warp_n = warp % Tiles::kWarpsN;
    for (int m_tile = 0; m_tile < Tiles::kMTiles; ++m_tile) {
      for (int n_tile = 0; n_tile < n_tiles; ++n_tile) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int half = 0; half < 2; ++half) {
            const int row = accumulator_row<Tiles>(warp_m, m_tile, lane, half);
            const int col = accumulator_col(warp_n, n_tiles, n_tile, lane);
            ++held.at(static_cast<std::size_t>(row * cols + col));
            ++held.at(static_cast<std::size_t>(row * cols + col + 1));
          }
          const int row = accumulator_row<Tiles>(warp_m, m_tile, lane, lane % 2);
          const int first = vector_add_col(warp_n, n_tiles, n_tile, lane);
          for (int i = 0; i < 4; ++i) {
            ++added.at(static_cast<std::size_t>(row * cols + first + i));
          }
        }
      }
    }
  }
  for (std::size_t i = 0; i < held.size(); ++i) {
    ASSERT_EQ(held[i], 1) << "accumulator element " << i;
    ASSERT_EQ(added[i], 1) << "element added into y " << i;
  }
}

TEST(TileConfig, FragmentsHoldEveryElementOnce) {
  expect_fragments_cover<WideTiles>(WideTiles::kNTiles, WideTiles::kBlockN);
  expect_fragments_cover<WideTiles>(WideTiles::kDTiles, WideTiles::kBlockD);
  expect_fragments_cover<NarrowTiles>(NarrowTiles::kNTiles, NarrowTiles::kBlockN);
  expect_fragments_cover<NarrowTiles>(NarrowTiles::kDTiles, NarrowTiles::kBlockD);
}

TEST(TileConfig, BoundsTheNumberOfTiles) {
  // Worst case: every item ends in a tile of one entry.
  for (const std::int64_t items : {1, 7, 640}) {
    for (const std::int64_t full : {0, 1, 5}) {
      const std::int64_t entries = items * (full * kTileEntries + 1);
      EXPECT_GE(max_tiles(items, entries), items * (full + 1));
    }
  }
  EXPECT_EQ(max_tiles(1000, 3), 3);
}

TEST(TileConfig, FindsTheLargestItemOfASchedule) {
  LayerShape shape;
  shape.num_tokens = 2;
  shape.grid_rows = 48;
  shape.grid_cols = 16;
  shape.top_k = 5;
  EXPECT_EQ(max_item_experts(shape, {.kind = ScheduleKind::kStaircase, .group_size = 64}), 48);
  EXPECT_EQ(max_item_experts(shape, {.kind = ScheduleKind::kExpertCentric, .group_size = 64}), 10)
      << "no more experts than pairs can be active";
  EXPECT_EQ(max_item_experts(shape, {.kind = ScheduleKind::kExpertCentric, .group_size = 4}), 4);
}

}  // namespace
}  // namespace moescope
