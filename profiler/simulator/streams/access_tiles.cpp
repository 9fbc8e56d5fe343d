#include <algorithm>

#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope::detail {
namespace {

/// Tiles of experts_tiles.cu for this layer and device.
struct TilePlan {
  std::int64_t block_n = 0;  ///< experts of one product
  std::int64_t chunk_experts =
      0;  ///< experts whose P fits: X is read again for each block, y added per chunk
  std::int64_t blocks_per_sm = 1;
  std::int64_t stages = 2;    ///< of the pipeline of X and W
  std::int64_t v_stages = 2;  ///< of the pipeline of V
};

template <class Tiles>
TilePlan plan_of(std::int64_t max_experts, bool scores_only, std::int64_t shared_bytes, std::int64_t blocks) {
  const int p_blocks = scores_only ? 0 : fit_p_blocks<Tiles>(max_experts, shared_bytes);
  TilePlan plan{Tiles::kBlockN, tile_layout<Tiles>(p_blocks).chunk_experts, blocks};
  if constexpr (Tiles::kElementBytes == 2) {
    plan.stages = Tiles::kStages;
    plan.v_stages = Tiles::kVStages;
  }
  return plan;
}

TilePlan plan_tiles(const StreamContext& context, bool scores_only) {
  const std::int64_t max_experts = max_item_experts(context.shape, context.schedule->options);
  const std::int64_t limit = context.options.gpu.shared_bytes_per_block;
  if (context.shape.dtype == Dtype::kF32) {
    return plan_of<F32Tiles>(max_experts, scores_only, limit, 1);
  }
  return prefer_wide_tiles(max_experts, limit) ? plan_of<WideTiles>(max_experts, scores_only, limit, 1)
                                               : plan_of<NarrowTiles>(max_experts, scores_only, limit, 2);
}

/// A row that cp.async brings in pieces of 16 bytes to padded rows of shared memory. L2 is asked for a part
/// of it twice. Supposed: halves of a sector fall into different passes.
void read_row(const StreamContext& context, std::uint64_t address, std::vector<Burst>& bursts) {
  const std::int64_t bytes = context.row_bytes;
  const auto again =
      static_cast<std::int64_t>(context.constants().tile_row_reread_fraction * static_cast<double>(bytes));
  bursts.push_back(burst(address, bytes, AccessKind::kRead));
  if (again > 0) {
    bursts.push_back(burst(address, again, AccessKind::kRead));
  }
}

/// experts_tiles_kernel as compiled for sm_90a, the wide one; others are up to 15 % smaller.
constexpr std::int64_t kTileCodeBytes = 64'896;
constexpr std::int64_t kScoreCodeBytes = 35'328;

struct TileOfItem {
  std::int64_t item;
  std::int64_t begin;  ///< entries [begin, end) of Schedule::tokens
  std::int64_t end;
};

/// Rows [begin, end) of the item's experts in one matrix.
void read_experts(const StreamContext& context, const WorkItem& item, std::int64_t begin, std::int64_t end,
                  std::uint64_t matrix, std::vector<Burst>& bursts) {
  const auto add = [&](std::int64_t expert, std::int64_t rows, std::int64_t stride) {
    for (std::int64_t row = 0; row < rows; ++row) {
      read_row(context, matrix + static_cast<std::uint64_t>((expert + row * stride) * context.row_bytes),
               bursts);
    }
  };
  const std::int64_t cols = context.shape.grid_cols;
  if (item.kind == WorkItemKind::kRowStrip) {
    add(item.strip * cols + begin, end - begin, 1);
  } else if (item.kind == WorkItemKind::kColStrip) {
    add(begin * cols + item.strip, end - begin, cols);
  } else {
    for (std::int64_t e = begin; e < end; ++e) {
      add(context.schedule->experts[item.expert_begin + e], 1, 0);
    }
  }
}

/// for_each_pair: the tile's pairs in order, then their ids and gates, which lie together where a token's
/// pairs in this item are neighbours in the routing.
void read_pairs(const StreamContext& context, const TileOfItem& tile, bool write_scores, WorkUnit& unit) {
  const Schedule& schedule = *context.schedule;
  const std::int64_t begin = schedule.pair_offsets[tile.begin];
  const std::int64_t end = schedule.pair_offsets[tile.end];
  unit.bursts.push_back(burst(context.map.schedule + static_cast<std::uint64_t>(begin * 4), (end - begin) * 4,
                              AccessKind::kReadCached));
  for (std::int64_t p = begin; p < end;) {
    const std::int64_t first = schedule.sorted_pair_ids[p];
    std::int64_t run = 1;
    while (p + run < end && schedule.sorted_pair_ids[p + run] == first + run) {
      ++run;
    }
    const auto offset = static_cast<std::uint64_t>(first * 4);
    unit.bursts.push_back(burst(context.map.expert_ids + offset, run * 4, AccessKind::kReadCached));
    unit.bursts.push_back(burst(context.map.gates + offset, run * 4, AccessKind::kReadCached));
    if (write_scores) {
      unit.bursts.push_back(burst(context.map.scratch + offset, run * 4, AccessKind::kWrite));
    }
    p += run;
  }
}

void fill_tile(const StreamContext& context, const TilePlan& plan, const TileOfItem& tile, bool scores_only,
               WorkUnit& unit) {
  unit.clear();
  const WorkItem& item = context.schedule->items[tile.item];
  const std::int64_t experts = item.kind == WorkItemKind::kRowStrip   ? context.shape.grid_cols
                               : item.kind == WorkItemKind::kColStrip ? context.shape.grid_rows
                                                                      : item.expert_end - item.expert_begin;
  const std::int64_t rows = round_up(tile.end - tile.begin, 16);  // of 16-row products
  const auto d = static_cast<double>(context.shape.hidden_size);
  const auto& tokens = context.schedule->tokens;
  // Waits: the tile, its lists; 64 columns of X and W a step, and pairs, ids, gates per block; 64 experts by
  // 128 columns of V a step.
  unit.dependent_steps = 3;
  if (context.shape.dtype == Dtype::kBF16) {
    // Tiles of an item so keep pace with each other, and find each other's rows in L2.
    const StreamConstants& c = context.constants();
    const double clocks =
        c.tile_clocks_per_64_experts + c.tile_clocks_per_64_tokens * static_cast<double>(rows) / 64;
    unit.clocks = clocks * static_cast<double>(ceil_div(experts, 64)) * d / 1024;
  }
  const double column_steps = d / 64;
  for (std::int64_t chunk = 0; chunk < experts; chunk += plan.chunk_experts) {
    const std::int64_t chunk_end = std::min(chunk + plan.chunk_experts, experts);
    for (std::int64_t block = chunk; block < chunk_end; block += plan.block_n) {
      const std::int64_t block_end = std::min(block + plan.block_n, chunk_end);
      for (std::int64_t entry = tile.begin; entry < tile.end; ++entry) {
        read_row(context, context.x_row(tokens[entry]), unit.bursts);
      }
      read_experts(context, item, block, block_end, context.map.w_in, unit.bursts);
      unit.tensor_flop += 2.0 * static_cast<double>(rows * plan.block_n) * d;
      read_pairs(context, tile, scores_only, unit);
      unit.dependent_steps += 2 + column_steps / static_cast<double>(plan.stages - 1);
    }
    if (scores_only) {
      continue;
    }
    read_experts(context, item, chunk, chunk_end, context.map.w_out, unit.bursts);
    unit.dependent_steps += column_steps / 2 * static_cast<double>(ceil_div(chunk_end - chunk, 64)) /
                            static_cast<double>(plan.v_stages - 1);
    unit.tensor_flop += 2.0 * static_cast<double>(rows * round_up(chunk_end - chunk, 16)) * d;
    for (std::int64_t entry = tile.begin; entry < tile.end; ++entry) {
      const std::int64_t bytes = context.shape.hidden_size * 4;
      unit.bursts.push_back(burst(context.map.working + static_cast<std::uint64_t>(tokens[entry] * bytes),
                                  bytes, AccessKind::kReduce));
    }
  }
}

}  // namespace

void add_pair_tiles(std::vector<KernelLaunch>& launches, Stage stage, bool scores_only,
                    const StreamContext& context) {
  const TilePlan plan = plan_tiles(context, scores_only);
  if (!scores_only) {
    add_pass(
        launches, stage, "clear y",
        {{context.map.working, context.shape.num_tokens * context.shape.hidden_size * 4, AccessKind::kWrite}},
        0);
  }
  std::vector<TileOfItem> tiles;
  for (std::size_t i = 0; i < context.schedule->items.size(); ++i) {
    const WorkItem& item = context.schedule->items[i];
    for (std::int64_t begin = item.token_begin; begin < item.token_end; begin += kTileEntries) {
      tiles.push_back({static_cast<std::int64_t>(i), begin, std::min(begin + kTileEntries, item.token_end)});
    }
  }
  const auto units = static_cast<std::int64_t>(tiles.size());
  launches.push_back(
      {stage, scores_only ? "scores by tile" : "tiles", units, plan.blocks_per_sm,
       [context, plan, tiles = std::move(tiles), scores_only](std::int64_t index, WorkUnit& unit) {
         fill_tile(context, plan, tiles[static_cast<std::size_t>(index)], scores_only, unit);
       },
       scores_only ? kScoreCodeBytes : kTileCodeBytes});
}

}  // namespace moescope::detail
