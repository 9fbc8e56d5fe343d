// PKM and PEER: kernels/systems/product_key_scores.cu, the selection and gathers of OmniMoE's kernels, and
// kernels/systems/product_key_masked.cu.
#include <algorithm>

#include "core/tiling/chunks.hpp"
#include "profiler/simulator/streams/access_system.hpp"

namespace moescope::detail {
namespace {

constexpr std::int64_t kNormCodeBytes = 4'000;  // layer_norm_kernel (estimate)

bool has_norm(const SystemShape& shape) { return !shape.has_neurons(); }

/// mask_kernel of several lists: S is read where some list selects, P written whole.
void fill_mask(const SystemContext& context, const DenseChunks& plan, std::int64_t first_expert,
               std::int64_t width, std::int64_t segments, std::int64_t index, WorkUnit& unit) {
  const auto [token, first_column, columns] = begin_mask(width, segments, context.element_bytes, index, unit);
  const std::int64_t score_bytes = dtype_bytes(DenseChunks::kScores);
  for (std::int64_t head = 0; head < context.shape.heads; ++head) {
    const auto ids =
        read_selected(*context.queries, token * context.shape.heads + head, first_expert + first_column,
                      columns, context.map.expert_ids, context.map.gates, unit);
    for (const std::int32_t id : context.shape.has_neurons() ? ids : std::span<const std::int32_t>()) {
      unit.bursts.push_back(
          burst(context.map.hidden +
                    static_cast<std::uint64_t>((token * plan.experts + id - first_expert) * score_bytes),
                score_bytes, AccessKind::kReadCached));
    }
  }
  const std::int64_t at = plan.p_offset + (token * plan.experts + first_column) * context.element_bytes;
  unit.bursts.push_back(burst(context.map.hidden + static_cast<std::uint64_t>(at),
                              columns * context.element_bytes, AccessKind::kWrite));
}

/// Y += P V of one chunk: parts of the experts side by side, each to sums of its own, and what is left over.
void add_combine(std::vector<KernelLaunch>& launches, const SystemContext& context, const DenseChunks& plan,
                 std::int64_t first, std::int64_t width, std::int64_t parts, const StreamContext& layer) {
  const SystemShape& shape = context.shape;
  const Stage stage = shape.has_neurons() ? Stage::kExperts : Stage::kExpertCombine;
  const std::int64_t e = context.element_bytes;
  Product combine{.m = shape.num_tokens, .n = shape.hidden_size, .k = 0, .a = {}, .b = {}, .d = {}};
  combine.transpose_b = false;
  combine.add = first > 0;
  combine.k = DenseSplits::part(width, parts);
  combine.a = {context.map.hidden + static_cast<std::uint64_t>(plan.p_offset), plan.experts * e, e};
  combine.b = {context.map.w_out + static_cast<std::uint64_t>(first * context.row_bytes), context.row_bytes,
               e};
  combine.d = {context.map.results, shape.hidden_size * 4, 4};
  const ProductBatch batch{.count = parts,
                           .stride_a = combine.k * e,
                           .stride_b = combine.k * context.row_bytes,
                           .stride_d = shape.num_tokens * shape.hidden_size * 4};
  if (combine.k > 0) {
    add_product(launches, stage, "combine parts", combine, layer, batch);
  }
  const std::int64_t done = combine.k * parts;
  if (done < width) {
    combine.k = width - done;
    combine.add = true;
    combine.a.address += static_cast<std::uint64_t>(done * e);
    combine.b.address += static_cast<std::uint64_t>(done * context.row_bytes);
    add_product(launches, stage, "combine the rest", combine, layer);
  }
}

}  // namespace

void add_product_keys(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const SystemShape& shape = context.shape;
  const LayerShape queries = shape.query_shape();
  const StreamContext layer = context.as_layer(queries, context.queries);
  const std::int64_t e = context.element_bytes;
  const std::int64_t halves = 2 * shape.heads;
  const std::int64_t width = halves * shape.key_size;
  const std::int64_t n = shape.num_keys();
  const std::int64_t values = shape.num_tokens * width;
  const std::uint64_t before_norm =
      context.map.queries + static_cast<std::uint64_t>(round_up(values * e, 256));
  Product project{.m = shape.num_tokens, .n = width, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
  project.a = {context.map.x, context.row_bytes, e};
  project.b = {context.map.router, context.row_bytes, e};
  const std::int64_t out = has_norm(shape) ? 4 : e;
  project.d = {has_norm(shape) ? before_norm : context.map.queries, width * out, out};
  add_product(launches, Stage::kRouterProject, "queries", project, layer);
  if (has_norm(shape)) {
    add_pass(
        launches, Stage::kRouterProject, "layer norm",
        {{before_norm, values * 4, AccessKind::kRead}, {context.map.queries, values * e, AccessKind::kWrite}},
        0, kNormCodeBytes);
  }
  Product scores{.m = shape.num_tokens, .n = n, .k = shape.key_size, .a = {}, .b = {}, .d = {}};
  scores.a = {context.map.queries, width * e, e};
  scores.b = {context.map.keys, shape.key_size * e, e};
  scores.d = {context.map.logits, halves * n * 4, 4};
  add_product(launches, Stage::kRouterProject, "scores of keys", scores, layer,
              {.count = halves,
               .stride_a = shape.key_size * e,
               .stride_b = n * shape.key_size * e,
               .stride_d = n * 4});
  add_select(launches, "select queries", layer);
}

void add_gathered_rows(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const bool scored = context.shape.has_neurons();
  add_token_pairs(launches, scored ? Stage::kExperts : Stage::kExpertCombine, scored, true,
                  context.as_layer(context.shape.row_shape(), context.tokens), true);
}

void add_masked_product_keys(std::vector<KernelLaunch>& launches, const SystemContext& context) {
  const SystemShape& shape = context.shape;
  const Stage stage = shape.has_neurons() ? Stage::kExperts : Stage::kExpertCombine;
  const StreamContext layer = context.as_layer(shape.row_shape(), context.tokens);
  const std::int64_t e = context.element_bytes;
  LayerShape row = shape.row_shape();
  row.top_k = shape.top_k_per_query();
  const DenseChunks plan = DenseChunks::plan(row, shape.has_neurons());
  const std::int64_t parts = DenseSplits::count(context.options.gpu, shape.num_tokens, shape.hidden_size,
                                                std::min(plan.experts, shape.num_experts));
  for (std::int64_t first = 0; first < shape.num_experts; first += plan.experts) {
    const std::int64_t width = std::min(plan.experts, shape.num_experts - first);
    if (shape.has_neurons()) {
      Product scores{.m = shape.num_tokens, .n = width, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
      scores.a = {context.map.x, context.row_bytes, e};
      scores.b = {context.map.w_in + static_cast<std::uint64_t>(first * context.row_bytes), context.row_bytes,
                  e};
      const std::int64_t score_bytes = dtype_bytes(DenseChunks::kScores);
      scores.d = {context.map.hidden, plan.experts * score_bytes, score_bytes};
      add_product(launches, stage, "scores of all", scores, layer);
    }
    const std::int64_t segments = ceil_div(width * e, DenseChunks::kSegmentBytes);
    launches.push_back({stage, "mask of heads", shape.num_tokens * segments, 8,
                        [context, plan, first, width, segments](std::int64_t index, WorkUnit& unit) {
                          fill_mask(context, plan, first, width, segments, index, unit);
                        },
                        kMaskCodeBytes});
    add_combine(launches, context, plan, first, width, parts, layer);
  }
  const std::int64_t values = shape.num_tokens * shape.hidden_size;
  add_pass(launches, stage, "sum parts",
           {{context.map.results, parts * values * 4, AccessKind::kRead},
            {context.map.output, values * e, AccessKind::kWrite}},
           0);
}

}  // namespace moescope::detail
