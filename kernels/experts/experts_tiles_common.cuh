#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/device/activation.cuh"

/// What the tile kernels share whatever the arithmetic: taking tiles, and turning scores into P at the pairs.
namespace moescope::cuda {

struct TileArguments {
  const void* hidden_states = nullptr;  ///< X [L, d]
  const void* w_in = nullptr;           ///< W [N, d]
  const void* w_out = nullptr;          ///< V [N, d]
  const std::int32_t* expert_ids = nullptr;
  const float* gates = nullptr;
  DeviceSchedule schedule;
  float* y = nullptr;       ///< [L, d]; fused kernel only
  float* scores = nullptr;  ///< [L*K]; scores kernel only
  std::int32_t hidden_size = 0;
  std::int32_t grid_cols = 0;
  std::int64_t num_row_strips = 0;  ///< Nr of a staircase, else 0
  std::int64_t num_strips = 0;      ///< Nr + Nc of a staircase, else 0: the index of the first group
  std::int64_t group_size = 0;
  Activation activation = Activation::kSilu;
  int p_blocks = 0;
};

/// The experts of a work item: an arithmetic sequence (strips) or a list (groups).
struct TileItem {
  const std::int32_t* list = nullptr;
  std::int32_t first = 0;
  std::int32_t stride = 1;
  std::int32_t num_experts = 0;
};

__device__ __forceinline__ TileItem describe_item(const TileArguments& args, std::int64_t item) {
  if (item < args.num_row_strips) {
    return {.first = static_cast<std::int32_t>(item * args.grid_cols), .num_experts = args.grid_cols};
  }
  if (item < args.num_strips) {
    return {.first = static_cast<std::int32_t>(item - args.num_row_strips),
            .stride = args.grid_cols,
            .num_experts = static_cast<std::int32_t>(args.num_row_strips)};
  }
  const std::int64_t begin = (item - args.num_strips) * args.group_size;
  const std::int64_t experts = args.schedule.counts[2] - begin;
  return {.list = args.schedule.group_experts + begin,
          .num_experts = static_cast<std::int32_t>(experts < args.group_size ? experts : args.group_size)};
}

/// A tile: up to kTileEntries consecutive entries of one item.
struct Tile {
  std::int64_t item = 0;
  std::int64_t entry_begin = 0;
  std::int32_t rows = 0;  ///< entries; 0 when no tile is left
};

/// The item of a tile: the largest i with item_tile_offsets[i] <= tile. One warp probes 32 places at a time.
__device__ __forceinline__ std::int64_t find_item(const DeviceSchedule& schedule, std::int64_t tile,
                                                  int lane) {
  std::int64_t low = 0;
  std::int64_t high = schedule.max_items;  // its offset is the number of tiles, above `tile`
  while (high - low > 1) {
    const std::int64_t step = ceil_div(high - low, 33);
    const std::int64_t probe = low + (lane + 1) * step;
    const bool at_or_below = probe < high && schedule.item_tile_offsets[probe] <= tile;
    const int passed = __popc(__ballot_sync(0xffffffffU, at_or_below));
    const std::int64_t next = low + (passed + 1) * step;
    low += passed * step;
    high = next < high ? next : high;
  }
  return low;
}

/// Takes the next tile from the counter counts[3]. Called by all threads; `shared` must not be in use, and a
/// barrier must separate the return from the next call.
__device__ __forceinline__ Tile next_tile(const DeviceSchedule& schedule, Tile& shared) {
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x);
    unsigned long long index = 0;
    if (lane == 0) {
      index = atomicAdd(reinterpret_cast<unsigned long long*>(schedule.counts + 3), 1ULL);
    }
    index = __shfl_sync(0xffffffffU, index, 0);
    const auto tile = static_cast<std::int64_t>(index);
    Tile taken;
    if (tile < schedule.item_tile_offsets[schedule.max_items]) {
      taken.item = find_item(schedule, tile, lane);
      taken.entry_begin = schedule.item_entry_offsets[taken.item] +
                          (tile - schedule.item_tile_offsets[taken.item]) * kTileEntries;
      const std::int64_t left = schedule.item_entry_offsets[taken.item + 1] - taken.entry_begin;
      taken.rows = static_cast<std::int32_t>(left < kTileEntries ? left : kTileEntries);
    }
    if (lane == 0) {
      shared = taken;
    }
  }
  __syncthreads();
  return shared;
}

/// A block's shared memory, and the part of the item's experts that P holds now.
struct TileShared {
  std::byte* stages = nullptr;  ///< pipelines and S take turns here
  std::byte* p = nullptr;
  std::int32_t* experts = nullptr;  ///< [chunk_experts] ids, -1 behind the last
  std::int32_t* tokens = nullptr;   ///< [kTileEntries] ids, -1 behind the last
  std::int32_t* pairs = nullptr;    ///< [rows + 1] entry_pair_offsets of the tile's entries
  int p_ld = 0;
  int rows = 0;
  int chunk = 0;  ///< experts in this chunk

  __device__ TileShared(std::byte* memory, const TileLayout& layout)
      : stages(memory),
        p(memory + layout.p_offset),
        experts(reinterpret_cast<std::int32_t*>(memory + layout.experts_offset)),
        tokens(reinterpret_cast<std::int32_t*>(memory + layout.tokens_offset)),
        pairs(reinterpret_cast<std::int32_t*>(memory + layout.pairs_offset)),
        p_ld(layout.p_ld) {}
};

/// Index of `expert` among the chunk's experts, which begin with the item's `chunk_begin`th; outside [0,
/// chunk) when it is not one of them.
__device__ __forceinline__ int chunk_slot(const TileShared& shared, const TileItem& item, int chunk_begin,
                                          std::int32_t expert) {
  if (item.list == nullptr) {
    const std::int32_t distance = expert - item.first;
    return (item.stride == 1 ? distance : distance / item.stride) - chunk_begin;
  }
  int low = 0;
  int high = shared.chunk;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (shared.experts[middle] < expert) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < shared.chunk && shared.experts[low] == expert ? low : -1;
}

/// Calls emit(pair, row, column, p) with p = gate * sigma(S[row, column]) for every pair of the tile whose
/// expert is in columns [0, block_n) of S, which are the chunk's experts from `block_begin` on. sigma is
/// evaluated at the pairs alone, not at all of S.
template <class Tiles, class Emit>
__device__ __forceinline__ void for_each_pair(const TileArguments& args, const TileShared& shared,
                                              const TileItem& item, int chunk_begin, int block_begin,
                                              const Emit& emit) {
  constexpr int kBatch = 4;  // loads in flight per thread
  const auto* const s = reinterpret_cast<const float*>(shared.stages);
  const int columns =
      shared.chunk - block_begin < Tiles::kBlockN ? shared.chunk - block_begin : Tiles::kBlockN;
  const std::int32_t end = shared.pairs[shared.rows];
  // 64-bit: the last batch may step over 2^31.
  for (std::int64_t base = std::int64_t{shared.pairs[0]} + threadIdx.x; base < end;
       base += kBatch * Tiles::kThreads) {
    std::int32_t pair[kBatch];
    std::int32_t expert[kBatch];
    float gate[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::int64_t position = base + i * Tiles::kThreads;
      pair[i] = position < end ? args.schedule.sorted_pair_ids[position] : -1;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      expert[i] = pair[i] >= 0 ? args.expert_ids[pair[i]] : 0;
      gate[i] = pair[i] >= 0 ? args.gates[pair[i]] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (pair[i] < 0) {
        continue;
      }
      const int column = chunk_slot(shared, item, chunk_begin, expert[i]) - block_begin;
      if (column < 0 || column >= columns) {
        continue;
      }
      // Row: the last entry that begins at or before the pair's position.
      const std::int64_t position = base + i * Tiles::kThreads;
      int row = 0;
#pragma unroll
      for (int step = kTileEntries / 2; step > 0; step /= 2) {
        const int probe = row + step;
        row = probe < shared.rows && shared.pairs[probe] <= position ? probe : row;
      }
      emit(pair[i], row, column, gate[i] * activate(args.activation, s[row * Tiles::kScoreLd + column]));
    }
  }
}

/// y[0..3] += values, without return; one 16-byte reduction where the architecture has it.
__device__ __forceinline__ void add_vector(float* y, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(y), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
#else
  atomicAdd(y, a);
  atomicAdd(y + 1, b);
  atomicAdd(y + 2, c);
  atomicAdd(y + 3, d);
#endif
}

}  // namespace moescope::cuda
