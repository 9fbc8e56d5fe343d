#include <algorithm>

#include "core/tiling/chunks.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope::detail {
namespace {

/// mask_kernel: S is read at the selected entries only, P written whole.
void fill_mask(const StreamContext& context, const DenseChunks& plan, std::int64_t first_expert,
               std::int64_t width, std::int64_t segments, std::int64_t index, WorkUnit& unit) {
  const auto [token, first_column, columns] = begin_mask(width, segments, context.element_bytes, index, unit);
  const std::int64_t score_bytes = dtype_bytes(DenseChunks::kScores);
  for (const std::int32_t id : read_selected(*context.routing, token, first_expert + first_column, columns,
                                             context.map.expert_ids, context.map.gates, unit)) {
    unit.bursts.push_back(
        burst(context.map.scratch +
                  static_cast<std::uint64_t>((token * plan.experts + id - first_expert) * score_bytes),
              score_bytes, AccessKind::kReadCached));
  }
  unit.bursts.push_back(burst(
      context.map.scratch + static_cast<std::uint64_t>(plan.p_offset + (token * plan.experts + first_column) *
                                                                           context.element_bytes),
      columns * context.element_bytes, AccessKind::kWrite));
}

}  // namespace

MaskBlock begin_mask(std::int64_t width, std::int64_t segments, std::int64_t element_bytes,
                     std::int64_t index, WorkUnit& unit) {
  unit.clear();
  unit.dependent_steps = 5;  // three probes of a search in the ids, the scores, the store
  const std::int64_t columns_of_block = DenseChunks::kSegmentBytes / element_bytes;
  const std::int64_t first_column = index % segments * columns_of_block;
  return {.token = index / segments,
          .first_column = first_column,
          .columns = std::min(columns_of_block, width - first_column)};
}

std::span<const std::int32_t> read_selected(const Routing& routing, std::int64_t row, std::int64_t first,
                                            std::int64_t count, std::uint64_t expert_ids, std::uint64_t gates,
                                            WorkUnit& unit) {
  const auto ids = routing.ids_of(row);
  const auto begin = std::ranges::lower_bound(ids, static_cast<std::int32_t>(first));
  const auto end = std::ranges::lower_bound(ids, static_cast<std::int32_t>(first + count));
  const auto offset = static_cast<std::uint64_t>((routing.token_offsets[row] + (begin - ids.begin())) * 4);
  if (begin != end) {
    for (const std::uint64_t list : {expert_ids, gates}) {
      unit.bursts.push_back(burst(list + offset, (end - begin) * 4, AccessKind::kReadCached));
    }
  }
  return {begin, end};
}

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
