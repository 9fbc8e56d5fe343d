#include <algorithm>
#include <bit>
#include <utility>

#include "profiler/simulator/streams/access_backward.hpp"
#include "profiler/simulator/streams/access_strips.hpp"

namespace moescope::detail {
namespace {

/// Kernels as compiled for sm_90a, for 320 experts: order_strips, strips_backward_prepare, those in the
/// forward's frame, strips_wgrad, strips_finish, strips_router_select_backward.
constexpr std::int64_t kOrderCodeBytes = 8'064;
constexpr std::int64_t kBackwardPrepareCodeBytes = 15'616;
constexpr std::int64_t kScoresStripCodeBytes = 24'704;
constexpr std::int64_t kDgradStripCodeBytes = 110'000;
constexpr std::int64_t kWgradStripCodeBytes = 39'040;
constexpr std::int64_t kFinishCodeBytes = 4'096;
constexpr std::int64_t kSelectStripsCodeBytes = 19'712;

/// Of strips_backward_prepare.cu: rows of p and q that are cleared where column strips begin and behind the
/// last entry.
constexpr std::int64_t kReadAhead = 32;
constexpr std::int64_t kTokensPerBlock = 8;

/// Tokens of a consumer warpgroup, which keeps z of all of them.
constexpr std::int64_t kWarpgroupTokens = 64;

/// Clocks of a tile against the forward's two products with their epilogue: one product, and two with the
/// longer epilogue that makes p, q and h (docs/performance/staircase-backward.md: 0.179 and 0.419 ms where
/// the forward takes 0.345).
constexpr double kScoresPace = 0.5;
constexpr double kDgradPace = 1.2;

std::uint64_t z_of(const BackwardContext& context, const StripUnit& strip) {
  return offset_by(context.at.z, strip.number * kStripTileTokens * context.strip_segment() * 2);
}

std::int64_t z_bytes(const BackwardContext& context, const StripUnit& strip) {
  return round_up(strip.end - strip.begin, kWarpgroupTokens) * context.strip_segment() * 2;
}

void add_tiles(std::vector<KernelLaunch>& launches, const BackwardContext& context, const char* name,
               const StripPass& pass, std::int64_t code_bytes) {
  std::vector<StripUnit> units = strip_units(context);
  const auto count = static_cast<std::int64_t>(units.size());
  launches.push_back(
      {Stage::kExpertsDgrad, name, count, 1,
       [context, pass,
        arrays = StripArrays(context.shape, context.schedule->options.strip_rule, context.map.strips),
        units = std::move(units)](std::int64_t index, WorkUnit& unit) {
         fill_strip(context, arrays, pass, units[static_cast<std::size_t>(index)], unit);
       },
       code_bytes});
  launches.back().dependent = true;
}

void add_prepare(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const std::int64_t blocks = ceil_div(context.shape.num_tokens, kTokensPerBlock);
  launches.push_back(
      {Stage::kExpertsDgrad, "clear sums of dX", blocks, 8,
       [context](std::int64_t index, WorkUnit& unit) {
         unit.clear();
         unit.dependent_steps = 1;
         const std::int64_t first = index * kTokensPerBlock;
         const std::int64_t count = std::min(kTokensPerBlock, context.shape.num_tokens - first);
         const std::int64_t row = context.shape.hidden_size * context.at.sum_bytes;
         unit.bursts.push_back(
             burst(offset_by(context.at.sums, first * row), count * row, AccessKind::kWrite));
         unit.bursts.push_back(burst(offset_by(context.at.dy, first * context.row_bytes),
                                     count * context.row_bytes, AccessKind::kReadCached));
         unit.bursts.push_back(
             burst(offset_by(context.at.exponents, first * 4), count * 4, AccessKind::kWrite));
         if (index == 0) {  // where column strips begin; behind the last entry lies the next tensor
           const auto entries = static_cast<std::int64_t>(context.schedule->tokens.size());
           std::int64_t columns = entries;
           for (const WorkItem& item : context.schedule->items) {
             if (item.kind == WorkItemKind::kColStrip) {
               columns = std::min(columns, std::int64_t{item.token_begin});
             }
           }
           const std::int64_t rows = std::min(kReadAhead, entries - columns);
           for (const std::uint64_t matrix : {context.at.p, context.at.q}) {
             if (rows > 0) {
               unit.bursts.push_back(burst(offset_by(matrix, columns * context.at.pitch_bytes),
                                           rows * context.at.pitch_bytes, AccessKind::kWrite));
             }
           }
         }
       },
       kBackwardPrepareCodeBytes});
  launches.back().dependent = true;
}

/// p and q of a strip's entries, X's or dY's rows, 32 at a time; 320 experts by 128 columns of the sum stay
/// in registers (strips_wgrad.cu).
struct WgradItems {
  static constexpr std::int64_t kExperts = 320;
  static constexpr std::int64_t kSlotTokens = 32;
  static constexpr std::int64_t kGroupTokens = 16;
  /// Clocks of a slot at the tensor cores' rate, and of taking an item and storing its result.
  static constexpr double kSlotClocks = 700;
  static constexpr double kItemClocks = 3'000;

  bool rows = true;
  std::int64_t columns = 128;  ///< of one block; a pair of blocks takes neighbouring ones
  std::int64_t chunks = 1;     ///< pairs of blocks across d
  std::int64_t segments = 1;
  std::int64_t length = 0;                                    ///< experts of a strip
  std::vector<std::pair<std::int64_t, std::int64_t>> strips;  ///< first entry and end

  WgradItems(const BackwardContext& context, bool of_rows) : rows(of_rows) {
    const LayerShape& shape = context.shape;
    columns = 256 / context.gradient_bytes();
    chunks = ceil_div(shape.hidden_size, 2 * columns);
    length = rows ? shape.grid_cols : shape.grid_rows;
    segments = ceil_div(length, kExperts);
    strips.assign(static_cast<std::size_t>(rows ? shape.grid_rows : shape.grid_cols), {0, 0});
    const auto kind = rows ? WorkItemKind::kRowStrip : WorkItemKind::kColStrip;
    for (const WorkItem& item : context.schedule->items) {
      if (item.kind == kind) {
        strips[static_cast<std::size_t>(item.strip)] = {item.token_begin, item.token_end};
      }
    }
  }

  /// Of blocks: neighbours are a pair.
  std::int64_t units() const { return static_cast<std::int64_t>(strips.size()) * segments * 2 * chunks * 2; }

  void fill(const BackwardContext& context, std::int64_t index, WorkUnit& unit) const {
    unit.clear();
    const std::int64_t rank = index % 2;
    std::int64_t rest = index / 2;
    const std::int64_t strip = rest / (chunks * 2 * segments);
    rest %= chunks * 2 * segments;
    const std::int64_t first_expert = rest / (chunks * 2) * kExperts;
    rest %= chunks * 2;
    const bool is_out = rest >= chunks;
    const std::int64_t column = (2 * (is_out ? rest - chunks : rest) + rank) * columns;
    const auto [begin, end] = strips[static_cast<std::size_t>(strip)];
    if (column >= context.shape.hidden_size || (begin == end && !rows)) {
      return;  // nothing to add
    }
    const std::int64_t width = std::min(columns, context.shape.hidden_size - column);
    const std::int64_t experts = std::min(kExperts, length - first_expert);
    const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind, std::int64_t count = 1,
                         std::int64_t pitch = 0) {
      unit.bursts.push_back(burst(address, bytes, kind, count, pitch));
    };
    const std::int64_t g = context.gradient_bytes();
    const std::int64_t place =
        rows ? strip * length + first_expert : first_expert * context.shape.grid_cols + strip;
    const std::int64_t pitch = (rows ? 1 : context.shape.grid_cols) * context.gradient_row_bytes();
    const std::uint64_t target = offset_by(is_out ? context.at.w_out_gradient : context.at.w_in_gradient,
                                           place * context.gradient_row_bytes() + column * g);
    if (!rows) {
      add(target, width * g, AccessKind::kRead, experts, pitch);
    }
    const std::uint64_t pairs = is_out ? context.at.p : context.at.q;
    const std::uint64_t tokens = is_out ? context.at.dy : context.map.x;
    const std::int64_t pair_bytes = std::min(experts * 2, context.at.pitch_bytes - first_expert * 2);
    for (std::int64_t slot = begin; slot < end; slot += kSlotTokens) {
      // One group is loaded by this block, the other by its neighbour, for both.
      add(offset_by(pairs, (slot + rank * kGroupTokens) * context.at.pitch_bytes + first_expert * 2),
          pair_bytes, AccessKind::kRead, kGroupTokens, context.at.pitch_bytes);
      unit.multicast_bytes += static_cast<double>(kGroupTokens * pair_bytes);
      const std::int64_t last = std::min(slot + kSlotTokens, end);
      add(offset_by(context.at.entry_tokens, slot * 4), (last - slot) * 4, AccessKind::kReadCached);
      for (std::int64_t entry = slot; entry < last; ++entry) {
        add(offset_by(tokens, std::int64_t{context.schedule->tokens[entry]} * context.row_bytes +
                                  column * context.element_bytes),
            width * context.element_bytes, AccessKind::kRead);
      }
    }
    add(target, width * g, AccessKind::kWrite, experts, pitch);
    const auto slots = static_cast<double>(ceil_div(end - begin, kSlotTokens));
    unit.tensor_flop =
        2.0 * slots * static_cast<double>(kSlotTokens * kExperts) * static_cast<double>(columns);
    unit.clocks = kItemClocks + slots * kSlotClocks * static_cast<double>(columns) / 128;
    unit.dependent_steps = begin == end ? 0 : 1;
  }
};

}  // namespace

void add_strips_order(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const std::int64_t strips = context.shape.grid_rows + context.shape.grid_cols;
  std::vector<std::pair<std::int64_t, std::int64_t>> entries(static_cast<std::size_t>(strips), {0, 0});
  for (const WorkItem& item : context.schedule->items) {
    const std::int64_t index =
        item.kind == WorkItemKind::kRowStrip ? item.strip : context.shape.grid_rows + item.strip;
    entries[static_cast<std::size_t>(index)] = {item.token_begin, item.token_end};
  }
  launches.push_back(
      {Stage::kSchedule, "order strips", strips, 6,
       [context, entries = std::move(entries),
        arrays = StripArrays(context.shape, context.schedule->options.strip_rule, context.map.strips)](
           std::int64_t index, WorkUnit& unit) {
         unit.clear();
         const auto [begin, end] = entries[static_cast<std::size_t>(index)];
         const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
           unit.bursts.push_back(burst(address, bytes, kind));
         };
         if (begin == end) {
           return;
         }
         const std::int64_t most = max_strips_of_token(context.shape, context.schedule->options.strip_rule);
         add(offset_by(arrays.tokens, begin * 4), (end - begin) * 4, AccessKind::kReadCached);
         for (std::int64_t entry = begin; entry < end; ++entry) {
           const std::int64_t token = context.schedule->tokens[entry];
           add(offset_by(arrays.of_tokens, (3 * context.shape.num_tokens + token) * 4), 4,
               AccessKind::kReadCached);
           add(offset_by(arrays.cover, token * most * 4), 64, AccessKind::kReadCached);
           add(offset_by(context.at.entries, token * most * 4), 4, AccessKind::kWrite);
         }
         add(offset_by(context.at.entry_tokens, begin * 4), (end - begin) * 4, AccessKind::kWrite);
         // Tokens, then 256 at a time once more, with a search in the cover of each.
         constexpr std::int64_t kThreads = 256;
         unit.dependent_steps =
             3 + static_cast<double>(ceil_div(end - begin, kThreads) *
                                     (2 + std::bit_width(static_cast<std::uint64_t>(most))));
         unit.chain_steps = 10;
       },
       kOrderCodeBytes});
  launches.back().dependent = true;
}

void add_strips_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  add_prepare(launches, context);
  if (!context.saves_scores()) {
    StripPass scores{.tokens = context.map.x, .first = context.map.w_in, .has_second = false};
    scores.pace = kScoresPace;
    scores.between = [context](const StripUnit& strip, WorkUnit& unit) {
      unit.bursts.push_back(burst(z_of(context, strip), z_bytes(context, strip), AccessKind::kWrite));
    };
    add_tiles(launches, context, "scores of strips", scores, kScoresStripCodeBytes);
  }
  StripPass dgrad{.tokens = context.at.dy,
                  .first = context.map.w_out,
                  .second = context.map.w_in,
                  .sums = context.at.sums,
                  .sum_bytes = context.at.sum_bytes};
  dgrad.pace = kDgradPace;
  dgrad.between = [context](const StripUnit& strip, WorkUnit& unit) {
    const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
      unit.bursts.push_back(burst(address, bytes, kind));
    };
    add(z_of(context, strip), z_bytes(context, strip), AccessKind::kReadCached);
    const std::int64_t rows = strip.end - strip.begin;
    const std::int64_t segment = context.strip_segment();
    for (const std::uint64_t matrix : {context.at.p, context.at.q, context.at.h}) {
      unit.bursts.push_back(
          burst(offset_by(matrix, strip.begin * context.at.pitch_bytes + strip.first_expert * 2), segment * 2,
                AccessKind::kWrite, rows, context.at.pitch_bytes));
    }
    const auto entries = static_cast<std::int64_t>(context.schedule->tokens.size());
    const std::int64_t part = strip.number % context.at.segments;
    for (const std::int64_t array : {std::int64_t{0}, entries}) {  // of h, of gates
      unit.bursts.push_back(
          burst(offset_by(context.at.h_sums, ((array + strip.begin) * context.at.segments + part) * 4), 4,
                AccessKind::kWrite, rows, context.at.segments * 4));
    }
  };
  add_tiles(launches, context, "dgrad of strips", dgrad, kDgradStripCodeBytes);
  // strips_finish: a block to a token.
  const std::int64_t values = context.shape.num_tokens * context.shape.hidden_size;
  std::vector<PassPart> parts = {{context.at.sums, values * context.at.sum_bytes, AccessKind::kRead}};
  if (context.dx_holds()) {
    parts.push_back({context.at.dx_sums, values * 4, AccessKind::kRead});
  }
  parts.push_back({context.at.dx_sums, values * 4, AccessKind::kWrite});
  add_pass(launches, Stage::kExpertsDgrad, "finish dX", std::move(parts), 0, kFinishCodeBytes);
}

void add_strips_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const bool columns = context.schedule->options.strip_rule != StripRule::kRowsOnly;
  for (const bool rows : {true, false}) {
    if (!rows && !columns) {
      continue;
    }
    const WgradItems items(context, rows);
    launches.push_back(
        {Stage::kExpertsWgrad, rows ? "wgrad of rows" : "wgrad of columns", items.units(), 1,
         [context, items](std::int64_t index, WorkUnit& unit) { items.fill(context, index, unit); },
         rows ? kWgradStripCodeBytes : 0});  // by one kernel
    launches.back().dependent = true;
  }
}

void add_strips_select_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  constexpr std::int64_t kBlocksPerSm = 6;  // of 320 threads
  launches.push_back(
      {Stage::kRouterSelectBackward, "logits by strips", context.shape.num_tokens, kBlocksPerSm,
       [context, covers = covers_of(context),
        arrays = StripArrays(context.shape, context.schedule->options.strip_rule, context.map.strips)](
           std::int64_t token, WorkUnit& unit) {
         unit.clear();
         const LayerShape& shape = context.shape;
         const auto add = [&](std::uint64_t address, std::int64_t bytes) {
           unit.bursts.push_back(burst(address, bytes, AccessKind::kReadCached));
         };
         for (const std::int64_t array : {0, 1, 2, 3}) {  // threshold, tie limit, gate shift, strips
           add(offset_by(arrays.of_tokens, (array * shape.num_tokens + token) * 4), 4);
         }
         const std::int64_t first = covers->offsets[token];
         const std::int64_t size = covers->offsets[token + 1] - first;
         const std::int64_t list = max_strips_of_token(shape, context.schedule->options.strip_rule) * 4;
         if (size > 0) {
           add(offset_by(arrays.cover, token * list), size * 4);
           add(offset_by(context.at.entries, token * list), size * 4);
         }
         const std::int64_t rows = shape.grid_rows * 4;
         const std::int64_t cols = shape.grid_cols * 4;
         add(offset_by(arrays.uncovered_rows, token * rows), rows);
         add(offset_by(arrays.row_log_probs, token * rows), rows);
         add(offset_by(arrays.col_log_probs, token * cols), cols);
         const auto entries = static_cast<std::int64_t>(context.schedule->tokens.size());
         for (std::int64_t i = first; i < first + size; ++i) {
           const bool is_row = covers->strips[i] < shape.grid_rows;
           add(offset_by(context.at.h, covers->entries[i] * context.at.pitch_bytes),
               (is_row ? shape.grid_cols : shape.grid_rows) * 2);
           for (const std::int64_t array : {std::int64_t{0}, entries}) {
             add(offset_by(context.at.h_sums, (array + covers->entries[i]) * context.at.segments * 4),
                 context.at.segments * 4);
           }
         }
         unit.bursts.push_back(burst(offset_by(context.at.logits_gradient, token * context.sides() * 4),
                                     context.sides() * 4, AccessKind::kWrite));
         // Of a strip every pair of places: two sums of h, and of gates where a score passes the threshold.
         unit.instructions =
             600 +
             28.0 * static_cast<double>(size * ceil_div(std::max(shape.grid_rows, shape.grid_cols) / 2, 32));
         unit.dependent_steps = 6 + static_cast<double>(ceil_div(size, 5));
         unit.chain_steps = 4 + static_cast<double>(ceil_div(size, 5));
       },
       kSelectStripsCodeBytes});
  launches.back().dependent = true;
}

}  // namespace moescope::detail
