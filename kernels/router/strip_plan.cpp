#include "kernels/router/strip_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/base/error.hpp"
#include "core/tiling/selection_form.hpp"
#include "core/tiling/tile_config.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;

/// Layout with `num_lengths` words for the histogram and extra(per_lane) bytes at the end.
template <class Extra>
SelectMemory select_memory(const LayerShape& shape, std::int64_t num_lengths, bool fits_16_bits,
                           Extra extra) {
  // What fits the shared memory of every supported GPU (99 KiB per block on sm_86 and sm_89, more on others:
  // CUDA programming guide, technical specifications per compute capability).
  constexpr std::int64_t kMaxSharedBytes = std::int64_t{96} << 10;
  constexpr std::int64_t kLanes = 32;
  // Columns are sorted padded to a power of two, indexed by int.
  constexpr std::int64_t kMaxCols = std::int64_t{1} << 24;
  if (shape.grid_cols > kMaxCols) {
    throw InvalidArgument("grid_cols", fmt::to_string(shape.grid_cols),
                          fmt::format("at most {} on the GPU", kMaxCols));
  }
  const auto layout = [&](int per_lane, std::int64_t sort_length) {
    SelectMemory memory;
    memory.per_lane = per_lane;
    memory.sort_length = sort_length;
    memory.rows = round_up(shape.grid_rows * 4, kAlignment);
    memory.counts = round_up(shape.grid_rows * (per_lane > 0 ? 2 : 4), kAlignment);
    const std::int64_t mask_words = ceil_div(shape.grid_rows, kLanes) + ceil_div(shape.grid_cols, kLanes);
    memory.gathered = round_up((kLanes + 1) * 4, kAlignment);
    memory.lengths = round_up(std::max(num_lengths, mask_words) * 4, kAlignment);
    memory.csr = extra(per_lane);
    memory.bytes = memory.sort_length * 4 + memory.rows + 3 * memory.counts + memory.gathered +
                   memory.lengths + memory.csr;
    memory.shared = memory.bytes <= kMaxSharedBytes;
    return memory;
  };
  const std::int64_t per_lane = ceil_div(std::max(shape.grid_rows, shape.grid_cols), kLanes);
  for (const int compiled : kSelectPerLane) {
    if (fits_16_bits && per_lane <= compiled) {
      const SelectMemory memory = layout(compiled, compiled * kLanes);
      if (memory.shared) {
        return memory;
      }
    }
  }
  return layout(0, static_cast<std::int64_t>(
                       std::bit_ceil(static_cast<std::uint64_t>(std::max(shape.grid_cols, kLanes)))));
}

}  // namespace

SelectMemory strips_select_memory(const LayerShape& shape, std::int64_t max_cover) {
  return select_memory(shape, max_cover + 1, true, [](int) { return std::int64_t{0}; });
}

SelectMemory csr_select_memory(const LayerShape& shape, const GpuTraits& gpu) {
  constexpr std::int64_t kMax16Bits = 65535;
  return select_memory(shape, shape.grid_cols + 1, shape.top_k <= kMax16Bits,
                       [&](int per_lane) { return csr_memory(shape, per_lane, gpu).bytes; });
}

CsrMemory csr_memory(const LayerShape& shape, int per_lane, const GpuTraits& gpu) {
  const std::int64_t id_bytes = per_lane > 0 ? 2 : 4;
  CsrMemory memory;
  memory.row_log_probs = round_up(shape.grid_cols * 4, kAlignment);
  memory.candidates = memory.row_log_probs + round_up(shape.grid_rows * 4, kAlignment);
  const std::int64_t rest = memory.candidates + round_up(shape.grid_cols * id_bytes, kAlignment);
  if (csr_by_eight_warps(shape, gpu)) {
    memory.ids = rest;
    memory.scores = memory.ids + round_up(shape.top_k * 4, kAlignment);
    memory.bytes = memory.scores + round_up(shape.top_k * 4, kAlignment);
  } else {
    memory.table = rest;
    memory.starts = memory.table + round_up(shape.top_k * id_bytes, kAlignment);
    // Before that, the lengths that occur: n different ones add up to n (n + 1) / 2 pairs at least.
    const auto num_lengths = static_cast<std::int64_t>(std::sqrt(2 * static_cast<double>(shape.top_k))) + 1;
    memory.bytes =
        memory.starts + round_up(std::max(ceil_div(shape.top_k, 32) * 4, num_lengths * id_bytes), kAlignment);
  }
  return memory;
}

StripScratch strip_scratch(const LayerShape& shape, std::int64_t max_cover, const GpuTraits& gpu) {
  const SelectMemory memory = strips_select_memory(shape, max_cover);
  StripScratch scratch;
  scratch.strip_counts = 16;
  scratch.cover_ranks = round_up(scratch.strip_counts + (shape.grid_rows + shape.grid_cols) * 4, kAlignment);
  scratch.memory = round_up(scratch.cover_ranks + shape.num_tokens * max_cover * 4, kAlignment);
  scratch.bytes = scratch.memory +
                  (memory.shared ? 0 : std::min(shape.num_tokens, global_select_blocks(gpu)) * memory.bytes);
  return scratch;
}

StripCapacity strip_capacity(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens,
                             const GpuTraits& gpu) {
  if (tile_tokens < 1) {
    throw InvalidArgument("tile_tokens", fmt::to_string(tile_tokens), "must be at least 1");
  }
  StripCapacity capacity;
  capacity.tile_tokens = tile_tokens;
  capacity.max_cover = max_strips_of_token(shape, rule);
  capacity.max_entries = shape.num_tokens * capacity.max_cover;
  if (capacity.max_entries > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("num_tokens", fmt::to_string(shape.num_tokens),
                          fmt::format("tokens times {} strips must be below 2^31", capacity.max_cover));
  }
  const std::int64_t strips = shape.grid_rows + shape.grid_cols;
  capacity.max_tiles = capacity.max_entries / tile_tokens + std::min(strips, capacity.max_entries);
  capacity.scratch_bytes = strip_scratch(shape, capacity.max_cover, gpu).bytes;
  const std::int64_t per_token = 2 * shape.grid_rows + shape.grid_cols + 4 + capacity.max_cover;
  capacity.bytes = shape.num_tokens * per_token * 4 + (strips + 1) * 4 + capacity.max_entries * 4 +
                   capacity.max_tiles * static_cast<std::int64_t>(sizeof(StripTile)) + 4 * 4 +
                   capacity.scratch_bytes;
  return capacity;
}

}  // namespace moescope::cuda
