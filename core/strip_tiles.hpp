#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/layer_shape.hpp"
#include "core/tile_config.hpp"

/// How strips are cut into work for the staircase kernels, for whoever models them. The kernels have the same
/// rules in kernels/strips.hpp, staircase_tiles.hpp and strip_plan.cpp; tests/kernels_strip_tiles_test.cpp
/// holds the two against each other.
namespace moescope {

/// Most tokens of one tile.
inline constexpr std::int64_t kStripTileTokens = 128;

/// Tokens of tile `tile` of a strip with `count` tokens: two tiles share equally, more are full ones and a
/// rest.
constexpr std::int64_t strip_tile_tokens(std::int64_t count, std::int64_t most, std::int64_t tile) {
  if (ceil_div(count, most) == 2) {
    return (count + 1 - tile) / 2;
  }
  return std::min(count - tile * most, most);
}

/// Experts of a strip that one work unit takes: the segment that pads the grid's strips least, the larger one
/// among equals.
constexpr std::int64_t strip_segment_experts(std::int64_t grid_rows, std::int64_t grid_cols) {
  std::int64_t best = 0;
  std::int64_t best_padded = 0;
  for (const std::int64_t experts : {320, 256, 160, 64}) {
    const std::int64_t padded = round_up(grid_rows, experts) + round_up(grid_cols, experts);
    if (best == 0 || padded < best_padded) {
      best = experts;
      best_padded = padded;
    }
  }
  return best;
}

/// Most strips that cover one token's selected set: min(floor(2 sqrt K), Nr, Nc).
inline std::int64_t max_strips_of_token(const LayerShape& shape) {
  auto strips = static_cast<std::int64_t>(2 * std::sqrt(static_cast<double>(shape.top_k)));
  while (strips * strips > 4 * shape.top_k) {
    --strips;
  }
  while ((strips + 1) * (strips + 1) <= 4 * shape.top_k) {
    ++strips;
  }
  return std::min({strips, shape.grid_rows, shape.grid_cols});
}

}  // namespace moescope
