// FFN experts: kernels/mlp/grouped_gemm_bf16.cu, kernels/systems/ffn_select.cu and ffn_schedule.cu.
#include <algorithm>
#include <utility>

#include "core/schedule/token_rule.hpp"
#include "profiler/simulator/streams/access_system.hpp"

namespace moescope::detail {
namespace {

/// Rows of weights in one product; a work item has two.
constexpr std::int64_t kPart = 128;
/// Rows of A that one warpgroup multiplies; a tile with no more leaves the other idle.
constexpr std::int64_t kWarpgroupRows = 64;
/// Columns of A and of weights in a stage, and stages on their way.
constexpr std::int64_t kChunk = 64;
constexpr std::int64_t kStages = 4;
/// What a multiprocessor of the only architecture that these kernels have multiplies a clock, bf16.
constexpr double kFlopPerClock = 4096;
/// Clocks in which both warpgroups write their results and no products run: silu asks the special-function
/// units twice a value (docs/performance/systems.md).
constexpr double kGatedEnd = 2000;
constexpr double kPlainEnd = 500;
/// k goes by in slabs, so that A and the weights advance together.
constexpr std::int64_t kGroupedSlab = 512;
/// The kernels as compiled for sm_90a (estimates: a quarter of the staircase's, which holds more of them).
constexpr std::int64_t kGroupedCodeBytes = 16'000;
constexpr std::int64_t kFfnSelectCodeBytes = 6'000;
constexpr std::int64_t kFfnScheduleCodeBytes = 6'000;

/// Warp instructions of ffn_select_kernel: a bisection over the logits that a lane holds. 8 us for 16384
/// tokens of 128 experts and 14 us of 256 are above its start (measured, docs/simulator/validation.md).
constexpr double kSelectPerToken = 110;
constexpr double kSelectPerLogit = 2.6;
constexpr std::int64_t kSelectTokens = 4;  ///< of a block

void fill_grouped(const GroupedProduct& p, std::int64_t blocks, std::int64_t index, WorkUnit& unit) {
  unit.clear();
  const GroupedTileRows& tile = (*p.tiles)[static_cast<std::size_t>(index / blocks)];
  const std::int64_t column = index % blocks * (p.gated ? kPart : 2 * kPart);
  const std::int64_t pitch = p.k * p.element_bytes;
  const auto weights = [&](std::int64_t row) {
    const std::int64_t of_expert = tile.expert * (p.gated ? 2 * p.n : p.n);
    return p.weights + static_cast<std::uint64_t>((of_expert + row) * pitch);
  };
  const std::int64_t first_rows = std::min(kPart, p.n - column);
  const std::int64_t second = p.gated ? p.n + column : column + kPart;
  const std::int64_t second_rows = p.gated ? first_rows : std::clamp<std::int64_t>(p.n - second, 0, kPart);
  if (p.row_ids) {
    unit.bursts.push_back(burst(p.row_ids_at + static_cast<std::uint64_t>(tile.first_row * 4), tile.count * 4,
                                AccessKind::kReadCached));
  }
  for (std::int64_t k = 0; k < p.k; k += kGroupedSlab) {
    const auto offset = static_cast<std::uint64_t>(k * p.element_bytes);
    const std::int64_t bytes = std::min(kGroupedSlab, p.k - k) * p.element_bytes;
    unit.bursts.push_back(burst(weights(column) + offset, bytes, AccessKind::kRead, first_rows, pitch));
    if (second_rows > 0) {
      unit.bursts.push_back(burst(weights(second) + offset, bytes, AccessKind::kRead, second_rows, pitch));
    }
    if (!p.row_ids) {  // a whole box; behind the tile's rows lie others
      unit.bursts.push_back(burst(p.a + static_cast<std::uint64_t>(tile.first_row * pitch) + offset, bytes,
                                  AccessKind::kRead, std::min(kGroupedTile, p.rows - tile.first_row), pitch));
      continue;
    }
    for (std::int64_t row = 0; row < tile.count; ++row) {
      const std::int64_t id = (*p.row_ids)[static_cast<std::size_t>(tile.first_row + row)];
      unit.bursts.push_back(
          burst(p.a + static_cast<std::uint64_t>(id * pitch) + offset, bytes, AccessKind::kRead));
    }
  }
  const std::int64_t out_columns = std::min(p.gated ? kPart : 2 * kPart, p.n - column);
  const std::int64_t out_pitch = p.n * p.element_bytes;
  unit.bursts.push_back(
      burst(p.out + static_cast<std::uint64_t>(tile.first_row * out_pitch + column * p.element_bytes),
            out_columns * p.element_bytes, AccessKind::kWrite, tile.count, out_pitch));
  const auto rows = static_cast<double>(round_up(tile.count, kWarpgroupRows));
  unit.tensor_flop = 2 * rows * static_cast<double>(2 * kPart * round_up(p.k, kChunk));
  unit.clocks = unit.tensor_flop / kFlopPerClock + (p.gated ? kGatedEnd : kPlainEnd);
  unit.dependent_steps = static_cast<double>(ceil_div(p.k, kChunk * kStages));
}

/// How pairs are cut into blocks of the permutation.
std::int64_t pairs_of_part(std::int64_t num_pairs) {
  constexpr std::int64_t kMaxBlocks = 128;
  constexpr std::int64_t kMinPairs = 1024;
  constexpr std::int64_t kThreads = 256;
  return std::max(kMinPairs, round_up(ceil_div(num_pairs, kMaxBlocks), kThreads));
}

/// Tokens in order of experts, and each pair's place there.
struct Permutation {
  std::vector<std::int32_t> row_tokens;
  Routing pair_rows;  ///< the routing of tokens with places instead of ids
};

/// `rows` of every expert, of which those behind its pairs are token 0's.
Permutation permute(const Routing& routing, const std::vector<std::int64_t>& rows) {
  std::vector<std::int64_t> next;
  std::int64_t row = 0;
  for (const std::int64_t count : rows) {
    next.push_back(row);
    row += count;
  }
  Permutation permutation{std::vector<std::int32_t>(static_cast<std::size_t>(row), 0), routing};
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    for (std::int64_t p = routing.token_offsets[token]; p < routing.token_offsets[token + 1]; ++p) {
      const std::int64_t place = next[routing.expert_ids[p]]++;
      permutation.row_tokens[place] = static_cast<std::int32_t>(token);
      permutation.pair_rows.expert_ids[p] = static_cast<std::int32_t>(place);
    }
  }
  return permutation;
}

}  // namespace

GroupedTiles grouped_tiles(const std::vector<std::int64_t>& loads) {
  std::vector<GroupedTileRows> tiles;
  std::int64_t row = 0;
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    for (std::int64_t done = 0; done < loads[expert]; done += kGroupedTile) {
      tiles.push_back(
          {static_cast<std::int64_t>(expert), row + done, std::min(kGroupedTile, loads[expert] - done)});
    }
    row += loads[expert];
  }
  return std::make_shared<const std::vector<GroupedTileRows>>(std::move(tiles));
}

void add_grouped_product(std::vector<KernelLaunch>& launches, Stage stage, std::string name,
                         const GroupedProduct& product) {
  const std::int64_t blocks = ceil_div(product.n, product.gated ? kPart : 2 * kPart);
  launches.push_back(
      {stage, std::move(name), std::ssize(*product.tiles) * blocks, 1,
       [product, blocks](std::int64_t index, WorkUnit& unit) { fill_grouped(product, blocks, index, unit); },
       kGroupedCodeBytes});
}

void add_ffn_router(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const SystemShape& shape = context.shape;
  const std::int64_t n = shape.num_experts;
  Product logits{.m = shape.num_tokens, .n = n, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
  logits.a = {context.map.x, context.row_bytes, context.element_bytes};
  logits.b = {context.map.router, context.row_bytes, context.element_bytes};
  logits.d = {context.map.logits, n * 4, 4};
  add_product(launches, Stage::kRouterProject, "expert logits", logits,
              context.as_layer(shape.row_shape(), context.tokens));
  launches.push_back(
      {Stage::kRouterSelect, "select experts", ceil_div(shape.num_tokens, kSelectTokens), 16,
       [context, n](std::int64_t index, WorkUnit& unit) {
         unit.clear();
         const std::int64_t first = index * kSelectTokens;
         const std::int64_t tokens = std::min(kSelectTokens, context.shape.num_tokens - first);
         const auto pairs = static_cast<std::uint64_t>(context.tokens->token_offsets[first]);
         const std::int64_t bytes =
             (context.tokens->token_offsets[first + tokens] - context.tokens->token_offsets[first]) * 4;
         unit.dependent_steps = 1;
         unit.instructions =
             static_cast<double>(tokens) * (kSelectPerToken + kSelectPerLogit * static_cast<double>(n));
         unit.bursts.push_back(burst(context.map.logits + static_cast<std::uint64_t>(first * n * 4),
                                     tokens * n * 4, AccessKind::kReadCached));
         unit.bursts.push_back(burst(context.map.expert_ids + pairs * 4, bytes, AccessKind::kWrite));
         unit.bursts.push_back(burst(context.map.gates + pairs * 4, bytes, AccessKind::kWrite));
       },
       kFfnSelectCodeBytes});
}

void add_ffn_schedule(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const std::int64_t pairs = context.tokens->num_pairs();
  const std::int64_t part = pairs_of_part(pairs);
  const std::int64_t blocks = ceil_div(pairs, part);
  const std::int64_t counts = context.shape.num_experts * 4;
  const auto add = [&](const char* name, bool places) {
    launches.push_back(
        {Stage::kSchedule, name, blocks, 4,
         [context, pairs, part, blocks, counts, places](std::int64_t index, WorkUnit& unit) {
           unit.clear();
           const std::int64_t bytes = (std::min(pairs, (index + 1) * part) - index * part) * 4;
           const auto first = static_cast<std::uint64_t>(index * part * 4);
           unit.dependent_steps = 2;
           unit.bursts.push_back(burst(context.map.expert_ids + first, bytes, AccessKind::kReadCached));
           if (!places) {
             unit.bursts.push_back(burst(context.map.counts + static_cast<std::uint64_t>(index * counts),
                                         counts, AccessKind::kWrite));
             return;
           }
           unit.bursts.push_back(burst(context.map.counts, blocks * counts, AccessKind::kReadCached));
           unit.bursts.push_back(burst(context.map.row_tokens + first, bytes, AccessKind::kWrite));
           unit.bursts.push_back(burst(context.map.pair_rows + first, bytes, AccessKind::kWrite));
         },
         kFfnScheduleCodeBytes});
  };
  add("count pairs", false);
  add("place pairs", true);
}

void add_ffn_experts(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const SystemShape& shape = context.shape;
  std::vector<std::int64_t> rows = expert_loads(*context.tokens);
  if (context.capacity > 0) {
    rows.assign(rows.size(), context.capacity);
  }
  Permutation permutation = permute(*context.tokens, rows);
  GroupedProduct up;
  up.tiles = grouped_tiles(rows);
  up.gated = true;
  up.rows = std::ssize(permutation.row_tokens);
  up.n = shape.expert_size;
  up.k = shape.hidden_size;
  up.element_bytes = context.element_bytes;
  up.a = context.map.x;
  up.row_ids = std::make_shared<const std::vector<std::int32_t>>(std::move(permutation.row_tokens));
  up.row_ids_at = context.map.row_tokens;
  up.weights = context.map.gate_up;
  up.out = context.map.hidden;
  add_grouped_product(launches, Stage::kExperts, "grouped gated product", up);
  GroupedProduct down = up;
  down.gated = false;
  down.n = shape.hidden_size;
  down.k = shape.expert_size;
  down.a = context.map.hidden;
  down.row_ids = nullptr;
  down.weights = context.map.down;
  down.out = context.map.results;
  add_grouped_product(launches, Stage::kExperts, "grouped product", down);
  // Every token adds the results of its pairs, whose places stand where ids of experts would.
  LayerShape row = shape.row_shape();
  StreamContext sums =
      context.as_layer(row, std::make_shared<const Routing>(std::move(permutation.pair_rows)));
  sums.map.w_out = context.map.results;
  sums.map.expert_ids = context.map.pair_rows;
  add_token_pairs(launches, Stage::kExperts, false, true, sums, true);
  for (KernelLaunch& launch : launches) {
    launch.overlap = launch.stage == Stage::kExperts ? Overlap::kNone : launch.overlap;
  }
}

}  // namespace moescope::detail
