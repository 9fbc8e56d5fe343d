#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope::detail {
namespace {

/// Tile of an output.
struct ProductPlan {
  std::int64_t tile_m = 128;
  std::int64_t tile_n = 256;
  std::int64_t splits = 1;  ///< of k
  bool clusters = false;    ///< of 2 x 2 tiles: each loads half of what it shares with a neighbour for both
};

/// The narrowest tile that is `n` wide or more: a power of two up to 64, then a multiple of 16.
std::int64_t tile_width(std::int64_t n) {
  constexpr std::uint64_t kNarrowest = 8;
  const auto width = std::bit_ceil(std::max(static_cast<std::uint64_t>(n), kNarrowest));
  return width <= 64 ? static_cast<std::int64_t>(width) : round_up(n, 16);
}

/// cuBLASLt's choice is its own; this is a model of it that gives the tiles that were counted
/// (tensor_flop, tma_read_bytes and l2_read_bytes of router_project and shared_mlp;
/// docs/simulator/validation.md): of the usual tiles, and those that just fit all of the output into one
/// wave, the one that needs least time when every multiprocessor takes as many as the busiest, the first
/// among equals. k is never split: no reductions are counted.
ProductPlan plan_product(const Product& product, std::int64_t batch, const StreamContext& context) {
  const std::int64_t num_sms = context.options.gpu.num_sms;
  const std::int64_t operand_cost = context.constants().product_operand_cost;
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 7> kTiles = {
      {{128, 256}, {160, 128}, {192, 128}, {128, 128}, {64, 256}, {64, 128}, {64, 64}}};
  ProductPlan plan;
  plan.clusters = context.options.gpu.has_clusters();
  std::int64_t best = 0;
  std::int64_t best_tiles = 1;
  const auto consider = [&](std::int64_t m, std::int64_t n) {
    const std::int64_t tiles = ceil_div(product.m, m) * ceil_div(product.n, n) * batch;
    const std::int64_t time = ceil_div(tiles, num_sms) * (m * n + operand_cost * (m + n));
    if (best == 0 || time < best) {
      best = time;
      best_tiles = tiles;
      plan.tile_m = m;
      plan.tile_n = n;
    }
  };
  for (const auto& [m, n] : kTiles) {
    consider(m, n);
  }
  constexpr std::int64_t kLongSum = 2048;  // supposed: longer than any sum that was counted
  if (product.k > kLongSum) {
    plan.splits = std::max<std::int64_t>(num_sms / best_tiles, 1);
    return plan;
  }
  for (const std::int64_t m : {128, 64}) {
    const std::int64_t tiles_of_row = num_sms / (ceil_div(product.m, m) * batch);
    const std::int64_t n = tiles_of_row > 0 ? tile_width(ceil_div(product.n, tiles_of_row)) : 0;
    if (n > 0 && n <= 256) {
      consider(m, n);
    }
  }
  return plan;
}

/// Which of `count` rows tile number `index` of `tiles` loads: half, when it shares them with a neighbour.
struct SharedRows {
  std::int64_t first = 0;
  std::int64_t count = 0;

  SharedRows(std::int64_t rows, std::int64_t index, std::int64_t tiles, bool shared) {
    const bool alone = !shared || (tiles % 2 == 1 && index == tiles - 1);
    first = alone ? 0 : rows * (index % 2) / 2;
    count = alone ? rows : rows * (index % 2 + 1) / 2 - first;
  }
};

/// Place of a tile among `rows` x `cols`.
struct TilePlace {
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// The order of CUTLASS's persistent scheduler for sm_90 (include/cutlass/gemm/kernel/
/// tile_scheduler_params.h), taken for cuBLASLt's: strips of up to 8 tiles of the longer side, each from end
/// to end of the shorter side. Tiles at work together so share rows of A as well as of B.
TilePlace place_of(std::int64_t tile, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kStripTiles = 8;
  const bool along_rows = cols > rows;  // the shorter side
  const std::int64_t shorter = std::min(rows, cols);
  const std::int64_t first = tile / (kStripTiles * shorter) * kStripTiles;
  const std::int64_t width = std::min(kStripTiles, std::max(rows, cols) - first);
  const std::int64_t in_strip = tile % (kStripTiles * shorter);
  const std::int64_t on_longer = first + in_strip % width;
  const std::int64_t on_shorter = in_strip / width;
  return along_rows ? TilePlace{on_shorter, on_longer} : TilePlace{on_longer, on_shorter};
}

/// k goes by in slabs of this many elements, so that A and B advance together.
constexpr std::int64_t kSlab = 512;
/// Waits for a product's k: it goes by in steps of 64, behind a pipeline of as many as shared memory has room
/// for (4 for tiles of 128 x 256), 16 at most (estimate).
double pipeline_waits(const ProductPlan& plan, std::int64_t k, std::int64_t element_bytes) {
  constexpr std::int64_t kStep = 64;
  constexpr std::int64_t kSharedBytes = 200'000;
  constexpr std::int64_t kMostStages = 16;
  const std::int64_t stage_bytes = (plan.tile_m + plan.tile_n) * kStep * element_bytes;
  const std::int64_t stages = std::clamp<std::int64_t>(kSharedBytes / stage_bytes, 2, kMostStages);
  return static_cast<double>(ceil_div(k, kStep * stages));
}

void fill_product(const Product& p, const ProductPlan& plan, std::int64_t index, WorkUnit& unit) {
  unit.clear();
  unit.dependent_steps = 2;  // first load, last store
  const std::int64_t rows_of_tiles = ceil_div(p.m, plan.tile_m);
  const std::int64_t tiles_of_row = ceil_div(p.n, plan.tile_n);
  const TilePlace place = place_of(index / plan.splits, rows_of_tiles, tiles_of_row);
  const std::int64_t m = place.row * plan.tile_m;
  const std::int64_t n = place.col * plan.tile_n;
  const std::int64_t part = round_up(ceil_div(p.k, plan.splits), 64);
  const std::int64_t k_begin = std::min(p.k, index % plan.splits * part);
  const std::int64_t k_end = std::min(p.k, k_begin + part);
  const std::int64_t rows = std::min(plan.tile_m, p.m - m);
  const std::int64_t cols = std::min(plan.tile_n, p.n - n);
  const auto at = [](const Operand& operand, std::int64_t row, std::int64_t col) {
    return operand.address +
           static_cast<std::uint64_t>(row * operand.pitch_bytes + col * operand.element_bytes);
  };
  const SharedRows own_a(rows, place.col, tiles_of_row, plan.clusters);
  for (std::int64_t k = k_begin; k < k_end; k += kSlab) {
    const std::int64_t width = std::min(kSlab, k_end - k);
    if (p.transpose_a) {  // rows of k, of which the block's part is some columns
      unit.bursts.push_back(burst(at(p.a, k, m + own_a.first), own_a.count * p.a.element_bytes,
                                  AccessKind::kRead, width, p.a.pitch_bytes));
    } else {
      unit.bursts.push_back(burst(at(p.a, m + own_a.first, k), width * p.a.element_bytes, AccessKind::kRead,
                                  own_a.count, p.a.pitch_bytes));
    }
    // The block's part of B: some of its columns when they are rows in memory, else some of its rows.
    const std::int64_t b_rows = p.transpose_b ? cols : width;
    const SharedRows own_b(b_rows, place.row, rows_of_tiles, plan.clusters);
    const std::int64_t b_bytes = (p.transpose_b ? width : cols) * p.b.element_bytes;
    const std::uint64_t b_at = p.transpose_b ? at(p.b, n + own_b.first, k) : at(p.b, k + own_b.first, n);
    unit.bursts.push_back(burst(b_at, b_bytes, AccessKind::kRead, own_b.count, p.b.pitch_bytes));
    unit.multicast_bytes += static_cast<double>((rows - own_a.count) * width * p.a.element_bytes +
                                                (b_rows - own_b.count) * b_bytes);
  }
  unit.dependent_steps += pipeline_waits(plan, k_end - k_begin, p.a.element_bytes);
  unit.tensor_flop =
      2.0 * static_cast<double>(plan.tile_m * plan.tile_n) * static_cast<double>(k_end - k_begin);
  unit.bursts.push_back(burst(at(p.d, m, n), cols * p.d.element_bytes,
                              p.add ? AccessKind::kReduce : AccessKind::kWrite, rows, p.d.pitch_bytes));
}

}  // namespace

void add_product(std::vector<KernelLaunch>& launches, Stage stage, std::string name, const Product& product,
                 const StreamContext& context, const ProductBatch& batch) {
  const ProductPlan plan = plan_product(product, batch.count, context);
  const std::int64_t tiles = ceil_div(product.m, plan.tile_m) * ceil_div(product.n, plan.tile_n);
  launches.push_back(
      {stage, std::move(name), tiles * plan.splits * batch.count, 1,
       [product, plan, batch, of_one = tiles * plan.splits](std::int64_t index, WorkUnit& unit) {
         Product one = product;
         const std::int64_t number = index / of_one;
         one.a.address += static_cast<std::uint64_t>(number * batch.stride_a);
         one.b.address += static_cast<std::uint64_t>(number * batch.stride_b);
         one.d.address += static_cast<std::uint64_t>(number * batch.stride_d);
         fill_product(one, plan, index % of_one, unit);
       },
       context.constants().product_code_bytes});
}

void add_pass(std::vector<KernelLaunch>& launches, Stage stage, std::string name, std::vector<PassPart> parts,
              double instructions, std::int64_t code_bytes) {
  std::int64_t most = 1;
  for (const PassPart& part : parts) {
    most = std::max(most, part.bytes);
  }
  constexpr std::int64_t kUnitBytes = std::int64_t{16} << 10;
  const std::int64_t units = ceil_div(most, kUnitBytes);
  launches.push_back({stage, std::move(name), units, 8,
                      [parts = std::move(parts), units, instructions](std::int64_t index, WorkUnit& unit) {
                        unit.clear();
                        unit.instructions = instructions / static_cast<double>(units);
                        unit.dependent_steps = 1;
                        for (const PassPart& part : parts) {
                          const std::int64_t step = round_up(ceil_div(part.bytes, units), 32);
                          const std::int64_t begin = std::min(index * step, part.bytes);
                          const std::int64_t end = std::min(begin + step, part.bytes);
                          if (end > begin) {
                            unit.bursts.push_back(burst(part.address + static_cast<std::uint64_t>(begin),
                                                        end - begin, part.kind));
                          }
                        }
                      },
                      code_bytes});
}

}  // namespace moescope::detail
