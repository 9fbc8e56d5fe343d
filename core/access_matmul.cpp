#include <algorithm>
#include <array>
#include <utility>

#include "core/access_builder.hpp"

namespace moescope::detail {
namespace {

/// Tile of an output and how many ways its reduction is split.
struct ProductPlan {
  std::int64_t tile_m = 128;
  std::int64_t tile_n = 256;
  std::int64_t splits = 1;
  std::int64_t sharing = 1;  ///< tiles of a cluster, one below the other: each loads its part of B for all
};

/// cuBLASLt's choice is its own; this is a model of it: the largest usual tile that still gives every
/// multiprocessor one, two to a cluster where there are clusters, and for products with fewer tiles than that
/// a split of k into pieces of at least 256.
ProductPlan plan_product(const Product& product, std::int64_t num_sms, bool clusters) {
  constexpr std::array<std::pair<std::int64_t, std::int64_t>, 4> kTiles = {
      {{128, 256}, {128, 128}, {64, 128}, {64, 64}}};
  ProductPlan plan;
  std::int64_t tiles = 0;
  for (const auto& [m, n] : kTiles) {
    plan.tile_m = m;
    plan.tile_n = n;
    tiles = ceil_div(product.m, m) * ceil_div(product.n, n);
    if (tiles >= num_sms && m <= round_up(product.m, 64)) {
      plan.sharing = clusters && product.m > m ? 2 : 1;
      return plan;
    }
  }
  plan.splits = std::clamp<std::int64_t>(num_sms / tiles, 1, std::max<std::int64_t>(product.k / 256, 1));
  return plan;
}

/// k goes by in slabs of this many elements, so that A and B advance together.
constexpr std::int64_t kSlab = 512;
/// Waits per slab: 8 steps of 64 behind a pipeline of 4 stages (estimate).
constexpr double kStepsPerSlab = 2;

void fill_product(const Product& p, const ProductPlan& plan, std::uint64_t partial, std::int64_t index,
                  WorkUnit& unit) {
  unit.clear();
  unit.dependent_steps = 2;  // first load, last store
  // Tiles run down m first: those at work together share columns of B.
  const std::int64_t rows_of_tiles = ceil_div(p.m, plan.tile_m);
  const std::int64_t tile = index / plan.splits;
  const std::int64_t split = index % plan.splits;
  const std::int64_t m = tile % rows_of_tiles * plan.tile_m;
  const std::int64_t n = tile / rows_of_tiles * plan.tile_n;
  const std::int64_t rows = std::min(plan.tile_m, p.m - m);
  const std::int64_t cols = std::min(plan.tile_n, p.n - n);
  const std::int64_t part = ceil_div(ceil_div(p.k, plan.splits), 64) * 64;
  const std::int64_t k_end = std::min(p.k, (split + 1) * part);
  const auto at = [](const Operand& operand, std::int64_t row, std::int64_t col) {
    return operand.address +
           static_cast<std::uint64_t>(row * operand.pitch_bytes + col * operand.element_bytes);
  };
  for (std::int64_t k = split * part; k < k_end; k += kSlab) {
    const std::int64_t width = std::min(kSlab, k_end - k);
    unit.bursts.push_back(
        burst(at(p.a, m, k), width * p.a.element_bytes, AccessKind::kRead, rows, p.a.pitch_bytes));
    // The block's part of B: some of its columns when they are rows in memory, else some of its rows.
    const std::int64_t part_of_b = tile % rows_of_tiles % plan.sharing;
    const std::int64_t b_rows = p.transpose_b ? cols : width;
    const std::int64_t b_first = b_rows * part_of_b / plan.sharing;
    const std::int64_t b_count = b_rows * (part_of_b + 1) / plan.sharing - b_first;
    const std::int64_t b_bytes = (p.transpose_b ? width : cols) * p.b.element_bytes;
    const std::uint64_t b_at = p.transpose_b ? at(p.b, n + b_first, k) : at(p.b, k + b_first, n);
    unit.bursts.push_back(burst(b_at, b_bytes, AccessKind::kRead, b_count, p.b.pitch_bytes));
    unit.dependent_steps += kStepsPerSlab;
  }
  const std::int64_t depth = std::max<std::int64_t>(k_end - split * part, 0);
  unit.tensor_flop = 2.0 * static_cast<double>(plan.tile_m * plan.tile_n) * static_cast<double>(depth);
  if (plan.splits > 1) {
    const auto offset = static_cast<std::uint64_t>((split * p.m + m) * p.n * 4 + n * 4);
    unit.bursts.push_back(burst(partial + offset, cols * 4, AccessKind::kWrite, rows, p.n * 4));
    return;
  }
  if (p.add) {
    unit.bursts.push_back(
        burst(at(p.d, m, n), cols * p.d.element_bytes, AccessKind::kRead, rows, p.d.pitch_bytes));
  }
  unit.bursts.push_back(
      burst(at(p.d, m, n), cols * p.d.element_bytes, AccessKind::kWrite, rows, p.d.pitch_bytes));
}

}  // namespace

void add_product(std::vector<KernelLaunch>& launches, Stage stage, std::string name, const Product& product,
                 const StreamContext& context) {
  const ProductPlan plan = plan_product(product, context.options.num_sms, context.options.clusters);
  // The library's workspace lies behind everything else.
  const std::uint64_t partial = context.map.scratch + (std::uint64_t{1} << 34);
  const std::int64_t tiles = ceil_div(product.m, plan.tile_m) * ceil_div(product.n, plan.tile_n);
  launches.push_back(
      {stage, name, tiles * plan.splits, 1, [product, plan, partial](std::int64_t index, WorkUnit& unit) {
         fill_product(product, plan, partial, index, unit);
       }});
  if (plan.splits > 1) {
    const std::int64_t bytes = product.m * product.n * 4;
    std::vector<PassPart> parts = {
        {partial, bytes * plan.splits, AccessKind::kRead},
        {product.d.address, product.m * product.d.pitch_bytes, AccessKind::kWrite}};
    if (product.add) {
      parts.push_back({product.d.address, product.m * product.d.pitch_bytes, AccessKind::kRead});
    }
    add_pass(launches, stage, name + ", sum of splits", std::move(parts), 0);
  }
}

void add_pass(std::vector<KernelLaunch>& launches, Stage stage, std::string name, std::vector<PassPart> parts,
              double instructions) {
  std::int64_t most = 1;
  for (const PassPart& part : parts) {
    most = std::max(most, part.bytes);
  }
  constexpr std::int64_t kUnitBytes = 16 * 1024;
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
                      }});
}

}  // namespace moescope::detail
