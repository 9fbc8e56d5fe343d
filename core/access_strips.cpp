#include <algorithm>

#include "core/access_builder.hpp"

namespace moescope::detail {
namespace {

/// A tile of a strip's tokens against one segment of its experts.
struct StripUnit {
  std::int64_t item;
  std::int64_t begin;  ///< entries [begin, end) of Schedule::tokens
  std::int64_t end;
  std::int64_t first_expert;  ///< within the strip
};

void fill_strip(const StreamContext& context, const StripUnit& strip, WorkUnit& unit) {
  unit.clear();
  const LayerShape& shape = context.shape;
  const WorkItem& item = context.schedule->items[strip.item];
  const bool row = item.kind == WorkItemKind::kRowStrip;
  const std::int64_t length = row ? shape.grid_cols : shape.grid_rows;
  const std::int64_t experts = std::min(context.options.strip_segment_experts, length - strip.first_expert);
  const auto& tokens = context.schedule->tokens;
  const std::int64_t first = row ? item.strip * shape.grid_cols + strip.first_expert
                                 : strip.first_expert * shape.grid_cols + item.strip;
  const std::int64_t pitch = (row ? 1 : shape.grid_cols) * context.row_bytes;
  for (std::int64_t entry = strip.begin; entry < strip.end; ++entry) {
    unit.bursts.push_back(burst(context.x_row(tokens[entry]), context.row_bytes, AccessKind::kRead));
  }
  unit.bursts.push_back(burst(context.w_row(first), context.row_bytes, AccessKind::kRead, experts, pitch));
  // Log-probabilities of the other axis: of the columns for a row, of the uncovered rows for a column.
  const std::int64_t row_block = shape.num_tokens * shape.grid_rows * 4;
  const std::int64_t col_block = shape.num_tokens * shape.grid_cols * 4;
  const std::uint64_t others =
      context.map.strips + static_cast<std::uint64_t>(row ? row_block : row_block + col_block);
  for (std::int64_t entry = strip.begin; entry < strip.end; ++entry) {
    unit.bursts.push_back(
        burst(others + static_cast<std::uint64_t>((tokens[entry] * length + strip.first_expert) * 4),
              experts * 4, AccessKind::kRead));
  }
  unit.bursts.push_back(burst(context.v_row(first), context.row_bytes, AccessKind::kRead, experts, pitch));
  const std::int64_t sum_bytes = shape.hidden_size * context.options.strip_sum_bytes;
  for (std::int64_t entry = strip.begin; entry < strip.end; ++entry) {
    unit.bursts.push_back(burst(context.map.y + static_cast<std::uint64_t>(tokens[entry] * sum_bytes),
                                sum_bytes, AccessKind::kReduce));
  }
  // Producers run ahead into the next tile: what is left is waiting for the item and for the ring to drain.
  unit.dependent_steps = 4;
  // Warpgroups of 64 tokens compute whole segments.
  unit.tensor_flop = 4.0 * static_cast<double>(round_up(strip.end - strip.begin, 64) *
                                               context.options.strip_segment_experts * shape.hidden_size);
}

}  // namespace

void add_strips(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const Schedule& schedule = *context.schedule;
  std::vector<StripUnit> units;
  for (std::size_t i = 0; i < schedule.items.size(); ++i) {
    const WorkItem& item = schedule.items[i];
    const std::int64_t length =
        item.kind == WorkItemKind::kRowStrip ? context.shape.grid_cols : context.shape.grid_rows;
    for (std::int64_t begin = item.token_begin; begin < item.token_end;
         begin += context.options.strip_tile_tokens) {
      const std::int64_t end = std::min(begin + context.options.strip_tile_tokens, item.token_end);
      for (std::int64_t first = 0; first < length; first += context.options.strip_segment_experts) {
        units.push_back({static_cast<std::int64_t>(i), begin, end, first});
      }
    }
  }
  const std::int64_t sums =
      context.shape.num_tokens * context.shape.hidden_size * context.options.strip_sum_bytes;
  add_pass(launches, Stage::kExperts, "clear sums",
           {{context.map.y, sums, AccessKind::kWrite},
            {context.map.x, context.shape.num_tokens * context.row_bytes, AccessKind::kRead}},
           0);
  const auto count = static_cast<std::int64_t>(units.size());
  launches.push_back({Stage::kExperts, "strips", count, 1,
                      [context, units = std::move(units)](std::int64_t index, WorkUnit& unit) {
                        fill_strip(context, units[static_cast<std::size_t>(index)], unit);
                      }});
}

}  // namespace moescope::detail
