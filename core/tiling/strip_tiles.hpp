#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/tiling/tile_config.hpp"

/// How the staircase kernels cut a routing into strips and strips into work, for them and for whoever models
/// them.
namespace moescope {

/// Tokens of tile `tile` of a strip with `count` tokens. Two tiles share equally: they then run side by side
/// and find each other's W and V in L2 (a small one runs ahead of its neighbour by more than L2 keeps). From
/// three on, full tiles and a rest: each reads W and V from L2 anyway, and a rest costs less. Measured:
/// docs/performance/staircase.md.
template <class Int>
constexpr Int strip_tile_tokens(Int count, Int most, Int tile) {
  if ((count + most - 1) / most == 2) {
    return (count + 1 - tile) / 2;
  }
  const Int left = count - tile * most;
  return left < most ? left : most;
}

/// Experts of a strip that one work unit takes: the segment with which a row strip and a column strip take
/// least time, the larger one among equals. A unit gathers its tokens and adds their sums whatever its
/// experts, so a unit of 64 costs much more than a fifth of one of 320. Measured on an H200 over eight grids,
/// relative to a unit of 160 (docs/performance/staircase.md).
constexpr std::int64_t strip_segment_experts(std::int64_t grid_rows, std::int64_t grid_cols) {
  struct Unit {
    std::int64_t experts;
    std::int64_t cost;  ///< percent
  };
  std::int64_t best = 0;
  std::int64_t best_cost = 0;
  for (const Unit unit : {Unit{320, 195}, Unit{256, 155}, Unit{160, 100}, Unit{64, 60}}) {
    const std::int64_t cost =
        (ceil_div(grid_rows, unit.experts) + ceil_div(grid_cols, unit.experts)) * unit.cost;
    if (best == 0 || cost < best_cost) {
      best = unit.experts;
      best_cost = cost;
    }
  }
  return best;
}

/// Most strips that cover one token's selected set: min(floor(2 sqrt K), Nr, Nc), or with rows alone
/// min(K, Nr). (All rows in use are a cover, and so are all columns in use.)
inline std::int64_t max_strips_of_token(const LayerShape& shape, StripRule rule) {
  if (rule == StripRule::kRowsOnly) {
    return std::min(shape.top_k, shape.grid_rows);
  }
  auto strips = static_cast<std::int64_t>(2 * std::sqrt(static_cast<double>(shape.top_k)));
  while (strips * strips > 4 * shape.top_k) {
    --strips;
  }
  while ((strips + 1) * (strips + 1) <= 4 * shape.top_k) {
    ++strips;
  }
  return std::min({strips, shape.grid_rows, shape.grid_cols});
}

/// Whether the strips' kernel sums in fp16 (else in fixed point): where sums need not be repeatable, and a
/// token has few enough of them to add. Each addition rounds; 320 x 320 with rows alone keeps the relative
/// error at 2.5e-3, 1024 x 1024 would have 3.2e-3 (measured).
inline bool strips_sum_in_fp16(const LayerShape& shape, const ScheduleOptions& options) {
  constexpr std::int64_t kMostAdditions = 320;
  const std::int64_t segment = strip_segment_experts(shape.grid_rows, shape.grid_cols);
  const std::int64_t longest = options.strip_rule == StripRule::kRowsOnly
                                   ? shape.grid_cols
                                   : std::max(shape.grid_rows, shape.grid_cols);
  return !options.deterministic &&
         max_strips_of_token(shape, options.strip_rule) * ((longest + segment - 1) / segment) <=
             kMostAdditions;
}

}  // namespace moescope
