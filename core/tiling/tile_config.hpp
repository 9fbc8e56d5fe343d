#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"

/// Host arithmetic of the kernels that work on tiles of a grouped schedule (expert_centric, staircase): tile
/// sizes, shared memory, grid sizes, and which thread holds which element. constexpr and free of CUDA, so
/// that it is tested anywhere; the kernels use the same functions.
namespace moescope {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// Entries (distinct tokens of an item) per tile; the unit of DeviceSchedule::item_tile_offsets.
inline constexpr int kTileEntries = 128;

/// Most experts an item of a grouped schedule can have.
inline std::int64_t max_item_experts(const LayerShape& shape, const ScheduleOptions& options) {
  const std::int64_t group = std::min({options.group_size, shape.num_experts(), shape.num_pairs()});
  return options.kind == ScheduleKind::kStaircase ? std::max({shape.grid_rows, shape.grid_cols, group})
                                                  : group;
}

/// Upper bound of the number of tiles: every item has at most one partly filled tile.
constexpr std::int64_t max_tiles(std::int64_t max_items, std::int64_t max_entries) {
  return max_entries / kTileEntries + std::min(max_items, max_entries);
}

/// Tensor-core tiles (bf16). The first product is S [kBlockM, kBlockN] = X W^T over d in steps of kBlockK;
/// the second y [kBlockM, kBlockD] = P V over the item's experts in steps of kBlockK. Rows of 2-byte tiles
/// are padded by 16 bytes: an odd number of 16-byte units per row keeps ldmatrix free of bank conflicts.
template <int kBlockN_, int kStages_>
struct Bf16Tiles {
  static constexpr int kBlockM = kTileEntries;
  static constexpr int kBlockN = kBlockN_;
  static constexpr int kBlockK = 64;
  static constexpr int kBlockD = 128;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = 256;
  static constexpr int kElementBytes = 2;
  static constexpr int kWarpsM = 2;
  static constexpr int kWarpsN = 4;
  static constexpr int kMTiles = kBlockM / (16 * kWarpsM);  ///< 16-row tiles of one warp
  static constexpr int kNTiles = kBlockN / (8 * kWarpsN);   ///< 8-column tiles of one warp, first product
  static constexpr int kDTiles = kBlockD / (8 * kWarpsN);   ///< 8-column tiles of one warp, second product

  static constexpr int kTileLd = kBlockK + 8;  ///< row stride of X and W tiles
  static constexpr int kVLd = kBlockD + 8;     ///< row stride of V tiles
  static constexpr int kScoreLd =
      kBlockN + 8;                 ///< row stride of S, fp32; 8 words: float2 stores hit all banks
  static constexpr int kPPad = 8;  ///< P rows are p_blocks * kBlockN + kPPad long
  static constexpr int kStageBytes = (kBlockM + kBlockN) * kTileLd * kElementBytes;
  static constexpr int kVStageBytes = kBlockK * kVLd * kElementBytes;
  static constexpr int kScoreBytes = kBlockM * kScoreLd * 4;
  /// The pipelines of both products and S take turns in one region.
  static constexpr int kUnionBytes = std::max(kStages * kStageBytes, kScoreBytes);
  static constexpr int kVStages = std::min(4, kUnionBytes / kVStageBytes);

  static_assert(kBlockM % (16 * kWarpsM) == 0 && kBlockN % (8 * kWarpsN) == 0 &&
                kBlockD % (8 * kWarpsN) == 0);
  static_assert(kWarpsM * kWarpsN * 32 == kThreads && kVStages >= 2);
};

/// Strips of several hundred experts (Table A: 320 = 2 x 160), on devices with 227 KiB of shared memory.
using WideTiles = Bf16Tiles<160, 3>;
/// Groups and small grids; small enough for two blocks per multiprocessor on sm_90, and for sm_80 and sm_86.
using NarrowTiles = Bf16Tiles<64, 2>;

/// CUDA-core tiles (fp32, for checking). Threads hold 8 x 4 elements of either product.
struct F32Tiles {
  static constexpr int kBlockM = kTileEntries;
  static constexpr int kBlockN = 64;
  static constexpr int kBlockK = 16;
  static constexpr int kBlockD = 64;
  static constexpr int kThreads = 256;
  static constexpr int kElementBytes = 4;
  static constexpr int kThreadM = 8;
  static constexpr int kThreadN = 4;
  static constexpr int kXLd = kBlockM + 4;  ///< X and W tiles are stored [k][row]
  static constexpr int kWLd = kBlockN + 4;
  static constexpr int kVLd = kBlockD + 4;
  static constexpr int kScoreLd = kBlockN + 8;
  static constexpr int kPPad = 4;
  static constexpr int kUnionBytes =
      std::max({kBlockK * (kXLd + kWLd) * 4, kBlockK* kVLd * 4, kBlockM* kScoreLd * 4});
  static_assert((kBlockM / kThreadM) * (kBlockN / kThreadN) == kThreads && kBlockD == kBlockN);
};

/// Byte offsets of a block's shared memory. `p_blocks` blocks of Tiles::kBlockN experts are kept in P at once
/// (0: scores alone, the experts are still taken kBlockN at a time).
struct TileLayout {
  std::int64_t p_offset = 0;        ///< [kBlockM, p_ld] of the storage type
  std::int64_t experts_offset = 0;  ///< int32 [chunk_experts]
  std::int64_t tokens_offset = 0;   ///< int32 [kBlockM]
  std::int64_t pairs_offset = 0;    ///< int32 [kBlockM + 1]
  std::int64_t bytes = 0;
  int p_ld = 0;           ///< row stride of P in elements
  int chunk_experts = 0;  ///< experts whose P fits
};

template <class Tiles>
constexpr TileLayout tile_layout(int p_blocks) {
  TileLayout layout;
  layout.chunk_experts = std::max(p_blocks, 1) * Tiles::kBlockN;
  layout.p_ld = layout.chunk_experts + Tiles::kPPad;
  layout.p_offset = round_up(Tiles::kUnionBytes, 16);
  layout.experts_offset =
      layout.p_offset +
      (p_blocks > 0 ? std::int64_t{Tiles::kBlockM} * layout.p_ld * Tiles::kElementBytes : 0);
  layout.tokens_offset = layout.experts_offset + std::int64_t{layout.chunk_experts} * 4;
  layout.pairs_offset = layout.tokens_offset + std::int64_t{Tiles::kBlockM} * 4;
  layout.bytes = round_up(layout.pairs_offset + (std::int64_t{Tiles::kBlockM} + 1) * 4, 16);
  return layout;
}

/// As many blocks of P as the items need and `limit_bytes` of shared memory hold; 0 when not even one fits.
template <class Tiles>
constexpr int fit_p_blocks(std::int64_t max_experts, std::int64_t limit_bytes) {
  auto blocks = static_cast<int>(std::min<std::int64_t>(ceil_div(max_experts, Tiles::kBlockN), 64));
  while (blocks > 0 && tile_layout<Tiles>(blocks).bytes > limit_bytes) {
    --blocks;
  }
  return blocks;
}

/// Relative cost of an item of `max_experts` experts: per block of experts the products over its width plus
/// one more read of X (as long as kBlockM rows of W), and per chunk of P one more addition into y.
template <class Tiles>
constexpr std::int64_t tile_cost(std::int64_t max_experts, int p_blocks) {
  const std::int64_t blocks = ceil_div(max_experts, Tiles::kBlockN);
  return blocks * (Tiles::kBlockN + Tiles::kBlockM) + ceil_div(blocks, p_blocks) * Tiles::kBlockM;
}

/// Whether WideTiles suit items of up to `max_experts` experts better than NarrowTiles within `limit_bytes`.
constexpr bool prefer_wide_tiles(std::int64_t max_experts, std::int64_t limit_bytes) {
  const int wide = fit_p_blocks<WideTiles>(max_experts, limit_bytes);
  const int narrow = fit_p_blocks<NarrowTiles>(max_experts, limit_bytes);
  return wide > 0 && (narrow == 0 ||
                      tile_cost<WideTiles>(max_experts, wide) < tile_cost<NarrowTiles>(max_experts, narrow));
}

/// Row and column of a warp's accumulator element within the block (mma.m16n8k16: a lane holds columns
/// 2 (lane % 4) and the next in rows lane / 4 (half 0) and lane / 4 + 8 (half 1)). A warp's 16-row tiles are
/// interleaved with the other warps', so that a partly filled tile keeps all warps busy.
template <class Tiles>
constexpr int accumulator_row(int warp_m, int m_tile, int lane, int half) {
  return (m_tile * Tiles::kWarpsM + warp_m) * 16 + lane / 4 + half * 8;
}
constexpr int accumulator_col(int warp_n, int n_tiles, int n_tile, int lane) {
  return (warp_n * n_tiles + n_tile) * 8 + lane % 4 * 2;
}
/// First of the four columns that a lane adds into y after even and odd lanes have swapped halves: even lanes
/// then hold half 0, odd lanes half 1.
constexpr int vector_add_col(int warp_n, int n_tiles, int n_tile, int lane) {
  return (warp_n * n_tiles + n_tile) * 8 + lane % 4 / 2 * 4;
}

}  // namespace moescope
