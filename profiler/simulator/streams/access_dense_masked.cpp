#include <algorithm>

#include "core/tiling/chunks.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope::detail {
namespace {

constexpr std::int64_t kMaskCodeBytes = 18'432;  // mask_kernel as compiled for sm_90a

/// mask_kernel: S is read at the selected entries only, P written whole.
void fill_mask(const StreamContext& context, const DenseChunks& plan, std::int64_t first_expert,
               std::int64_t width, std::int64_t segments, std::int64_t index, WorkUnit& unit) {
  unit.clear();
  unit.dependent_steps = 5;  // three probes of a search in the ids, the scores, the store
  const std::int64_t columns_of_block = DenseChunks::kSegmentBytes / context.element_bytes;
  const std::int64_t token = index / segments;
  const std::int64_t first_column = index % segments * columns_of_block;
  const std::int64_t columns = std::min(columns_of_block, width - first_column);
  const auto ids = context.routing->ids_of(token);
  const auto begin = std::ranges::lower_bound(ids, static_cast<std::int32_t>(first_expert + first_column));
  const auto end =
      std::ranges::lower_bound(ids, static_cast<std::int32_t>(first_expert + first_column + columns));
  const std::int64_t offset = (context.routing->token_offsets[token] + (begin - ids.begin())) * 4;
  const std::int64_t pairs = end - begin;
  const std::int64_t score_bytes = dtype_bytes(DenseChunks::kScores);
  if (pairs > 0) {
    unit.bursts.push_back(burst(context.map.expert_ids + static_cast<std::uint64_t>(offset), pairs * 4,
                                AccessKind::kReadCached));
    unit.bursts.push_back(
        burst(context.map.gates + static_cast<std::uint64_t>(offset), pairs * 4, AccessKind::kReadCached));
  }
  for (auto id = begin; id != end; ++id) {
    unit.bursts.push_back(
        burst(context.map.scratch +
                  static_cast<std::uint64_t>((token * plan.experts + *id - first_expert) * score_bytes),
              score_bytes, AccessKind::kReadCached));
  }
  unit.bursts.push_back(burst(
      context.map.scratch + static_cast<std::uint64_t>(plan.p_offset + (token * plan.experts + first_column) *
                                                                           context.element_bytes),
      columns * context.element_bytes, AccessKind::kWrite));
}

}  // namespace

void add_dense_masked(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const LayerShape& shape = context.shape;
  const DenseChunks plan = DenseChunks::plan(shape);
  const std::int64_t e = context.element_bytes;
  for (std::int64_t first = 0; first < shape.num_experts(); first += plan.experts) {
    const std::int64_t width = std::min(plan.experts, shape.num_experts() - first);
    Product scores{.m = shape.num_tokens, .n = width, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
    scores.a = {context.map.x, context.row_bytes, e};
    scores.b = {context.w_row(first), context.row_bytes, e};
    scores.d = {context.map.scratch, plan.experts * dtype_bytes(DenseChunks::kScores),
                dtype_bytes(DenseChunks::kScores)};
    add_product(launches, Stage::kExperts, "scores", scores, context);

    const std::int64_t segments = ceil_div(width * e, DenseChunks::kSegmentBytes);
    launches.push_back({Stage::kExperts, "mask", shape.num_tokens * segments, 8,
                        [context, plan, first, width, segments](std::int64_t index, WorkUnit& unit) {
                          fill_mask(context, plan, first, width, segments, index, unit);
                        },
                        kMaskCodeBytes});

    Product combine{.m = shape.num_tokens, .n = shape.hidden_size, .k = width, .a = {}, .b = {}, .d = {}};
    combine.transpose_b = false;
    combine.add = first > 0;
    combine.a = {context.map.scratch + static_cast<std::uint64_t>(plan.p_offset), plan.experts * e, e};
    combine.b = {context.v_row(first), context.row_bytes, e};
    combine.d = {context.map.working, shape.hidden_size * 4, 4};
    add_product(launches, Stage::kExperts, "combine", combine, context);
  }
}

}  // namespace moescope::detail
