#include <algorithm>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/ranks.hpp"

namespace moescope::cuda {

RankArena RankArena::of(const LayerShape& shape, const RankGroup& group, std::int64_t max_cover) {
  constexpr std::int64_t kAlignment = 256;
  RankArena arena;
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t begin = arena.bytes;
    arena.bytes += round_up(bytes, kAlignment);
    return begin;
  };
  const std::int64_t tokens = shape.num_tokens;
  arena.flags = take(kRankPhases * group.ranks * 4);
  arena.hidden_states = take(tokens * shape.hidden_size * 2);
  arena.row_log_probs = take(tokens * shape.grid_rows * 4);
  arena.col_log_probs = take(tokens * shape.grid_cols * 4);
  arena.threshold = take(tokens * 4);
  arena.tie_limit = take(tokens * 4);
  arena.gate_shift = take(tokens * 4);
  arena.cover_sizes = take(tokens * 4);
  arena.cover = take(tokens * max_cover * 4);
  arena.sums = take(group.ranks * ceil_div(tokens, group.ranks) * shape.hidden_size * 2);
  return arena;
}

}  // namespace moescope::cuda
