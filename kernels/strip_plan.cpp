#include "kernels/strip_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/tile_config.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;

/// Largest s with s * s <= 4 K.
std::int64_t max_strips(std::int64_t top_k) {
  auto strips = static_cast<std::int64_t>(2 * std::sqrt(static_cast<double>(top_k)));
  while (strips * strips > 4 * top_k) {
    --strips;
  }
  while ((strips + 1) * (strips + 1) <= 4 * top_k) {
    ++strips;
  }
  return strips;
}

}  // namespace

SelectMemory select_memory(const LayerShape& shape, std::int64_t max_cover) {
  // What fits the shared memory of every supported GPU (99 KiB per block on sm_86 and sm_89, more on others:
  // CUDA programming guide, technical specifications per compute capability).
  constexpr std::int64_t kMaxSharedBytes = std::int64_t{96} << 10;
  constexpr std::int64_t kLanes = 32;
  const auto layout = [&](int per_lane, std::uint64_t sort_length) {
    SelectMemory memory;
    memory.per_lane = per_lane;
    memory.sort_length = static_cast<std::int64_t>(sort_length);
    memory.rows = round_up(shape.grid_rows * 4, kAlignment);
    memory.counts = round_up(shape.grid_rows * (per_lane > 0 ? 2 : 4), kAlignment);
    memory.lengths = round_up(std::max(kLanes, max_cover + 1) * 4, kAlignment);
    memory.bytes = memory.sort_length * 4 + memory.rows + 2 * memory.counts + memory.lengths;
    memory.shared = memory.bytes <= kMaxSharedBytes;
    return memory;
  };
  const std::int64_t per_lane = ceil_div(std::max(shape.grid_rows, shape.grid_cols), kLanes);
  for (const int compiled : kSelectPerLane) {
    if (per_lane <= compiled) {
      return layout(compiled, static_cast<std::uint64_t>(compiled * kLanes));
    }
  }
  return layout(0, std::bit_ceil(static_cast<std::uint64_t>(std::max(shape.grid_cols, kLanes))));
}

StripScratch strip_scratch(const LayerShape& shape, std::int64_t max_cover) {
  const SelectMemory memory = select_memory(shape, max_cover);
  StripScratch scratch;
  scratch.strip_counts = 16;
  scratch.cover_ranks = round_up(scratch.strip_counts + (shape.grid_rows + shape.grid_cols) * 4, kAlignment);
  scratch.memory = round_up(scratch.cover_ranks + shape.num_tokens * max_cover * 4, kAlignment);
  scratch.bytes =
      scratch.memory + (memory.shared ? 0 : std::min(shape.num_tokens, kGlobalSelectBlocks) * memory.bytes);
  return scratch;
}

StripCapacity strip_capacity(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens) {
  if (tile_tokens < 1) {
    throw InvalidArgument("tile_tokens", fmt::to_string(tile_tokens), "must be at least 1");
  }
  StripCapacity capacity;
  capacity.tile_tokens = tile_tokens;
  // All rows in use are a cover, and so are all columns in use.
  capacity.max_cover = rule == StripRule::kRowsOnly
                           ? std::min(shape.top_k, shape.grid_rows)
                           : std::min({max_strips(shape.top_k), shape.grid_rows, shape.grid_cols});
  capacity.max_entries = shape.num_tokens * capacity.max_cover;
  if (capacity.max_entries > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("num_tokens", fmt::to_string(shape.num_tokens),
                          fmt::format("tokens times {} strips must be below 2^31", capacity.max_cover));
  }
  const std::int64_t strips = shape.grid_rows + shape.grid_cols;
  capacity.max_tiles = capacity.max_entries / tile_tokens + std::min(strips, capacity.max_entries);
  capacity.scratch_bytes = strip_scratch(shape, capacity.max_cover).bytes;
  const std::int64_t per_token = 2 * shape.grid_rows + shape.grid_cols + 4 + capacity.max_cover;
  capacity.bytes = shape.num_tokens * per_token * 4 + (strips + 1) * 4 + capacity.max_entries * 4 +
                   capacity.max_tiles * static_cast<std::int64_t>(sizeof(StripTile)) + 4 * 4 +
                   capacity.scratch_bytes;
  return capacity;
}

}  // namespace moescope::cuda
