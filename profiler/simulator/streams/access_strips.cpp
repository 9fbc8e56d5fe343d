#include <algorithm>
#include <memory>
#include <utility>

#include "core/tiling/selection_form.hpp"
#include "profiler/simulator/streams/access_strips.hpp"

namespace moescope::detail {
namespace {

constexpr std::int64_t kTokensPerPrepareBlock = 8;
/// Columns of X, W and V that go through the kernel's rings at a time.
constexpr std::int64_t kChunkColumns = 64;
/// Kernels as compiled for sm_90a: list_strips, staircase_prepare, experts_staircase_kernel for 320 experts.
constexpr std::int64_t kListCodeBytes = 12'160;
constexpr std::int64_t kPrepareCodeBytes = 6'144;
constexpr std::int64_t kListWarps = 32;
/// Where list_strips spills registers: 24 bytes a thread (ptxas -v for sm_90a).
constexpr std::int64_t kStackOfWarp = std::int64_t{24} * 32;

std::uint64_t at(std::uint64_t base, std::int64_t bytes) { return base + static_cast<std::uint64_t>(bytes); }

std::int64_t strip_index(const StreamContext& context, const WorkItem& item) {
  return item.kind == WorkItemKind::kRowStrip ? item.strip : context.shape.grid_rows + item.strip;
}

void fill_select(const StreamContext& context, const StripArrays& arrays, const Covers& covers,
                 std::int64_t token, WorkUnit& unit) {
  unit.clear();
  const std::int64_t rows = context.shape.grid_rows * 4;
  const std::int64_t cols = context.shape.grid_cols * 4;
  const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
    unit.bursts.push_back(burst(address, bytes, kind));
  };
  const auto logits = static_cast<double>(context.shape.grid_rows + context.shape.grid_cols);
  const StreamConstants& c = context.constants();
  unit.instructions = c.strip_select_instructions_per_token + c.strip_select_instructions_per_logit * logits;
  const bool eight_warps = strips_by_eight_warps(context.shape, context.options.gpu);
  const SelectedRows selected = selected_rows(context.routing->ids_of(token), context.shape.grid_cols);
  const auto rows_taken = static_cast<double>(selected.rows);
  unit.chain_steps =
      eight_warps ? c.strip_select_steps + c.strip_select_steps_per_row * rows_taken +
                        c.strip_select_steps_per_length * static_cast<double>(selected.longest)
                  : c.strip_select_one_warp_steps + c.strip_select_one_warp_steps_per_row * rows_taken +
                        c.strip_select_one_warp_steps_per_logit * logits +
                        c.strip_select_one_warp_steps_per_pair * static_cast<double>(context.shape.top_k);
  add(at(context.map.working, token * (rows + cols)), rows + cols, AccessKind::kReadCached);
  add(at(arrays.row_log_probs, token * rows), rows, AccessKind::kWrite);
  add(at(arrays.col_log_probs, token * cols), cols, AccessKind::kWrite);
  // Read again when the cover is known; columns only where it may have some. Eight warps find them in L1
  // (at up to 256 tokens L2 is asked for the logits alone, as counted).
  const StripRule rule = context.schedule->options.strip_rule;
  if (!eight_warps) {
    add(at(arrays.row_log_probs, token * rows), rows, AccessKind::kRead);
  }
  add(at(arrays.uncovered_rows, token * rows), rows, AccessKind::kWrite);
  if (!eight_warps && rule != StripRule::kRowsOnly) {
    add(at(arrays.col_log_probs, token * cols), cols, AccessKind::kRead);
  }
  const std::int64_t first = covers.offsets[token];
  const std::int64_t strips = covers.offsets[token + 1] - first;
  const std::int64_t list = token * max_strips_of_token(context.shape, rule) * 4;
  if (strips > 0) {
    add(at(arrays.cover, list), strips * 4, AccessKind::kWrite);
    for (std::int64_t i = first; i < first + strips; ++i) {
      add(at(arrays.counts, covers.strips[i] * 4), 4, AccessKind::kReduce);
    }
    add(at(arrays.ranks, list), strips * 4, AccessKind::kWrite);
  }
  for (std::int64_t i = 0; i < 4; ++i) {
    add(at(arrays.of_tokens, (i * context.shape.num_tokens + token) * 4), 4, AccessKind::kWrite);
  }
}

}  // namespace

std::shared_ptr<const Covers> covers_of(const StreamContext& context) {
  const Schedule& schedule = *context.schedule;
  auto covers = std::make_shared<Covers>();
  covers->offsets.assign(static_cast<std::size_t>(context.shape.num_tokens) + 1, 0);
  for (const std::int32_t token : schedule.tokens) {
    ++covers->offsets[static_cast<std::size_t>(token) + 1];
  }
  for (std::size_t t = 1; t < covers->offsets.size(); ++t) {
    covers->offsets[t] += covers->offsets[t - 1];
  }
  covers->strips.resize(schedule.tokens.size());
  covers->entries.resize(schedule.tokens.size());
  std::vector<std::int64_t> next(covers->offsets.begin(), covers->offsets.end() - 1);
  for (const WorkItem& item : schedule.items) {
    for (std::int64_t entry = item.token_begin; entry < item.token_end; ++entry) {
      const auto place = static_cast<std::size_t>(next[static_cast<std::size_t>(schedule.tokens[entry])]++);
      covers->strips[place] = strip_index(context, item);
      covers->entries[place] = entry;
    }
  }
  return covers;
}

void fill_strip(const StreamContext& context, const StripArrays& arrays, const StripPass& pass,
                const StripUnit& strip, WorkUnit& unit) {
  unit.clear();
  const LayerShape& shape = context.shape;
  const WorkItem& item = context.schedule->items[strip.item];
  const bool row = item.kind == WorkItemKind::kRowStrip;
  const std::int64_t length = row ? shape.grid_cols : shape.grid_rows;
  const std::int64_t experts = std::min(context.strip_segment(), length - strip.first_expert);
  const auto& tokens = context.schedule->tokens;
  const std::int64_t first = row ? item.strip * shape.grid_cols + strip.first_expert
                                 : strip.first_expert * shape.grid_cols + item.strip;
  const std::int64_t pitch = (row ? 1 : shape.grid_cols) * context.row_bytes;
  const auto each_token = [&](const auto& add) {
    for (std::int64_t entry = strip.begin; entry < strip.end; ++entry) {
      add(tokens[entry]);
    }
  };
  const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind, std::int64_t rows = 1,
                       std::int64_t step = 0) {
    unit.bursts.push_back(burst(address, bytes, kind, rows, step));
  };
  // The item: its tokens, and of each the strip's own log-probability and five numbers.
  add(at(arrays.tokens, strip.begin * 4), (strip.end - strip.begin) * 4, AccessKind::kReadCached);
  const std::int64_t own = row ? shape.grid_rows : shape.grid_cols;
  each_token([&](std::int64_t token) {
    add(at(row ? arrays.row_log_probs : arrays.col_log_probs, (token * own + item.strip) * 4), 4,
        AccessKind::kReadCached);
    for (const std::int64_t array : {0, 1, 2, 4}) {  // threshold, tie limit, gate shift, exponent
      add(at(arrays.of_tokens, (array * shape.num_tokens + token) * 4), 4, AccessKind::kReadCached);
    }
  });
  const std::int64_t chunk = kChunkColumns * context.element_bytes;
  const auto chunks = [&](const auto& visit) {
    for (std::int64_t column = 0; column < context.row_bytes; column += chunk) {
      visit(column, std::min(chunk, context.row_bytes - column));
    }
  };
  chunks([&](std::int64_t column, std::int64_t bytes) {
    add(at(pass.first, first * context.row_bytes + column), bytes, AccessKind::kRead, experts, pitch);
    each_token([&](std::int64_t token) {
      add(at(pass.tokens, token * context.row_bytes + column), bytes, AccessKind::kRead);
    });
  });
  if (pass.has_second) {
    // Log-probabilities of the other axis: of the columns for a row, of the uncovered rows for a column.
    each_token([&](std::int64_t token) {
      add(at(row ? arrays.col_log_probs : arrays.uncovered_rows, (token * length + strip.first_expert) * 4),
          experts * 4, AccessKind::kRead);
    });
  }
  if (pass.between) {
    pass.between(strip, unit);
  }
  if (pass.has_second) {
    chunks([&](std::int64_t column, std::int64_t bytes) {
      add(at(pass.second, first * context.row_bytes + column), bytes, AccessKind::kRead, experts, pitch);
      const std::int64_t scale = pass.sum_bytes;
      each_token([&](std::int64_t token) {
        add(at(pass.sums, token * shape.hidden_size * scale + column / context.element_bytes * scale),
            bytes / context.element_bytes * scale, AccessKind::kReduceKept);
      });
    });
  }
  // Producers run ahead into the next tile: what is left is waiting for the item and for the ring to drain.
  unit.dependent_steps = 4;
  const StreamConstants& c = context.constants();
  unit.clocks = pass.pace *
                (c.strip_tile_clocks + c.strip_tile_clocks_per_64_tokens *
                                           static_cast<double>(ceil_div(strip.end - strip.begin, 64))) *
                static_cast<double>(shape.hidden_size * context.strip_segment()) / (1024.0 * 320.0);
  // Warpgroups of 64 tokens compute whole segments.
  unit.tensor_flop =
      (pass.has_second ? 4.0 : 2.0) * static_cast<double>(round_up(strip.end - strip.begin, 64) *
                                                          context.strip_segment() * shape.hidden_size);
}

std::vector<StripUnit> strip_units(const StreamContext& context) {
  const Schedule& schedule = *context.schedule;
  const std::int64_t most = schedule.options.tile_tokens;
  const std::int64_t segment = context.strip_segment();
  const std::int64_t segments = ceil_div(std::max(context.shape.grid_rows, context.shape.grid_cols), segment);
  std::vector<StripUnit> units;
  std::int64_t tiles = 0;
  for (std::size_t i = 0; i < schedule.items.size(); ++i) {
    const WorkItem& item = schedule.items[i];
    const std::int64_t length =
        item.kind == WorkItemKind::kRowStrip ? context.shape.grid_cols : context.shape.grid_rows;
    const std::int64_t count = item.token_end - item.token_begin;
    std::int64_t begin = item.token_begin;
    for (std::int64_t tile = 0; tile < ceil_div(count, most); ++tile, ++tiles) {
      const std::int64_t end = begin + strip_tile_tokens(count, most, tile);
      for (std::int64_t first = 0; first < length; first += segment) {
        units.push_back(
            {static_cast<std::int64_t>(i), begin, end, first, tiles * segments + first / segment});
      }
      begin = end;
    }
  }
  return units;
}

StripArrays::StripArrays(const LayerShape& shape, StripRule rule, std::uint64_t first) {
  const std::int64_t tokens_of_layer = shape.num_tokens;
  const std::int64_t entries = tokens_of_layer * max_strips_of_token(shape, rule);
  const auto place = [&first](std::uint64_t& array, std::int64_t words) {
    array = first;
    first += static_cast<std::uint64_t>(round_up(words * 4, 256));
  };
  place(row_log_probs, tokens_of_layer * shape.grid_rows);
  place(col_log_probs, tokens_of_layer * shape.grid_cols);
  place(uncovered_rows, tokens_of_layer * shape.grid_rows);
  place(of_tokens, 5 * tokens_of_layer);
  place(cover, entries);
  place(ranks, entries);
  place(counts, shape.grid_rows + shape.grid_cols);
  place(tokens, entries);
  end = first;
}

void add_strip_select(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  // Of one warp as many as registers allow; of eight warps all that there are run at once.
  const std::int64_t side = std::max(context.shape.grid_rows, context.shape.grid_cols);
  const std::int64_t blocks_per_sm = side <= kSideInTenRegisters ? 32 : side <= 512 ? 24 : 14;
  launches.push_back(
      {Stage::kRouterSelect, "select strips", context.shape.num_tokens, blocks_per_sm,
       [context,
        arrays = StripArrays(context.shape, context.schedule->options.strip_rule, context.map.strips),
        covers = covers_of(context)](std::int64_t token, WorkUnit& unit) {
         fill_select(context, arrays, *covers, token, unit);
       },
       context.constants().select_code_bytes});
  launches.back().dependent = true;
}

void add_strip_schedule(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  // kernels/schedule/schedule_strips.cu: two blocks of 32 warps to a multiprocessor at most, a warp to a
  // token; the first block writes offsets and tiles only (20 bytes to a strip here).
  const std::int64_t blocks =
      std::min(2 * context.options.gpu.num_sms, 1 + ceil_div(context.shape.num_tokens, kListWarps));
  launches.push_back(
      {Stage::kSchedule, "list strips", blocks, 2,
       [context, blocks,
        arrays = StripArrays(context.shape, context.schedule->options.strip_rule, context.map.strips),
        covers = covers_of(context)](std::int64_t block, WorkUnit& unit) {
         unit.clear();
         const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
           unit.bursts.push_back(burst(address, bytes, kind));
         };
         const StreamConstants& c = context.constants();
         unit.chain_steps = c.list_steps;
         const std::int64_t strips = context.shape.grid_rows + context.shape.grid_cols;
         add(arrays.counts, strips * 4, AccessKind::kReadCached);
         if (block == 0) {
           add(arrays.end, strips * 20, AccessKind::kWrite);
           return;
         }
         if (block == blocks - 1) {  // the last to finish clears the counts for the next run
           add(arrays.counts, strips * 4, AccessKind::kWrite);
         }
         const std::int64_t list =
             max_strips_of_token(context.shape, context.schedule->options.strip_rule) * 4;
         std::int64_t longest = 0;
         std::int64_t rank = 0;  // of the token among the block's: its warp, and how often that has begun
         for (std::int64_t token = block - 1; token < context.shape.num_tokens; token += blocks - 1, ++rank) {
           const std::int64_t first = covers->offsets[token];
           const std::int64_t size = covers->offsets[token + 1] - first;
           longest = std::max(longest, size);
           const std::int64_t warp = block * kListWarps + rank % kListWarps;
           const std::int64_t spilled =
               c.list_spill_bytes_per_token + (rank < kListWarps ? c.list_spill_bytes_per_warp : 0);
           if (spilled > 0) {
             add(at(context.map.scratch, warp * kStackOfWarp), spilled, AccessKind::kWrite);
           }
           add(at(arrays.of_tokens, (3 * context.shape.num_tokens + token) * 4), 4, AccessKind::kReadCached);
           if (size > 0) {
             add(at(arrays.cover, token * list), size * 4, AccessKind::kReadCached);
             add(at(arrays.ranks, token * list), size * 4, AccessKind::kReadCached);
           }
           for (std::int64_t i = first; i < first + size; ++i) {
             add(at(arrays.tokens, covers->entries[i] * 4), 4, AccessKind::kWrite);
           }
         }
         const std::int64_t full_words = longest / 32;
         unit.chain_steps += c.list_steps_per_32_strips * static_cast<double>(full_words);
         unit.dependent_steps = 2 * static_cast<double>(ceil_div(rank, kListWarps));  // size, cover and ranks
       },
       kListCodeBytes});
  launches.back().dependent = true;
}

void add_strips(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const StripArrays arrays(context.shape, context.schedule->options.strip_rule, context.map.strips);
  const std::int64_t prepare_units = ceil_div(context.shape.num_tokens, kTokensPerPrepareBlock);
  launches.push_back(
      {Stage::kExperts, kClearSums, prepare_units, 8,
       [context, arrays](std::int64_t index, WorkUnit& unit) {
         unit.clear();
         unit.dependent_steps = 1;
         const std::int64_t first = index * kTokensPerPrepareBlock;
         const std::int64_t count = std::min(kTokensPerPrepareBlock, context.shape.num_tokens - first);
         const std::int64_t sums = context.shape.hidden_size * context.strip_sum_bytes();
         unit.bursts.push_back(
             burst(at(context.map.working, first * sums), count * sums, AccessKind::kWrite));
         unit.bursts.push_back(
             burst(context.x_row(first), count * context.row_bytes, AccessKind::kReadCached));
         unit.bursts.push_back(burst(at(arrays.of_tokens, (4 * context.shape.num_tokens + first) * 4),
                                     count * 4, AccessKind::kWrite));
       },
       kPrepareCodeBytes});
  launches.back().overlap = Overlap::kSchedule;
  launches.back().dependent = true;
  const StripPass forward{.tokens = context.map.x,
                          .first = context.map.w_in,
                          .second = context.map.w_out,
                          .sums = context.map.working,
                          .sum_bytes = context.strip_sum_bytes()};
  std::vector<StripUnit> units = strip_units(context);
  const auto count = static_cast<std::int64_t>(units.size());
  launches.push_back(
      {Stage::kExperts, "strips", count, 1,
       [context, arrays, forward, units = std::move(units)](std::int64_t index, WorkUnit& unit) {
         fill_strip(context, arrays, forward, units[static_cast<std::size_t>(index)], unit);
       },
       kStripCodeBytes});
}

}  // namespace moescope::detail
