#include <algorithm>

#include "core/tiling/chunks.hpp"
#include "profiler/simulator/streams/access_backward.hpp"

namespace moescope::detail {
namespace {

/// As compiled for sm_90a: pair_gradients_kernel and scatter_kernel, count_kernel.
constexpr std::int64_t kDensePairCodeBytes = 4'352;
constexpr std::int64_t kCountCodeBytes = 640;
/// 256 threads of a pair each, by a grid of up to 8192 blocks.
constexpr std::int64_t kPairsOfUnit = 256;

/// Columns of a chunk (chunk_experts() in kernels/backward/experts_backward_dense_masked.cu).
std::int64_t chunk_of(const LayerShape& shape, std::int64_t column_bytes) {
  constexpr std::int64_t kGranularity = DenseChunks::kGranularity;
  const std::int64_t most =
      std::max(DenseChunks::kMaxWorkspaceBytes / (shape.num_tokens * column_bytes) / kGranularity,
               std::int64_t{1}) *
      kGranularity;
  const std::int64_t chunks = ceil_div(shape.num_experts(), most);
  return round_up(ceil_div(shape.num_experts(), chunks), kGranularity);
}

/// A chunk of experts, and where its matrices [L, lead] lie.
struct DenseChunk {
  std::int64_t first = 0;
  std::int64_t width = 0;
  std::int64_t lead = 0;
  std::uint64_t s = 0;  ///< fp32; 0 without
  std::uint64_t u = 0;  ///< fp32; 0 without
  std::uint64_t p = 0;  ///< storage; 0 without
  std::uint64_t q = 0;  ///< storage
};

/// What one of the kernels between products does with the pairs [begin, end): those of the chunk alone touch
/// its matrices, their lists are read for all.
void fill_pairs(const BackwardContext& context, const DenseChunk& chunk, bool gradients, std::int64_t index,
                WorkUnit& unit) {
  unit.clear();
  const Routing& routing = *context.routing;
  const std::int64_t begin = index * kPairsOfUnit;
  const std::int64_t count = std::min(kPairsOfUnit, routing.num_pairs() - begin);
  const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
    unit.bursts.push_back(burst(address, bytes, kind));
  };
  add(offset_by(context.map.expert_ids, begin * 4), count * 4, AccessKind::kReadCached);
  const auto* const row = std::ranges::upper_bound(routing.token_offsets.data(),
                                                   routing.token_offsets.data() + routing.num_tokens, begin);
  std::int64_t token = row - routing.token_offsets.data() - 1;
  const std::int64_t e = context.element_bytes;
  for (std::int64_t pair = begin; pair < begin + count; ++pair) {
    while (pair >= routing.token_offsets[token + 1]) {
      ++token;
    }
    const std::int64_t column = routing.expert_ids[static_cast<std::size_t>(pair)] - chunk.first;
    if (column < 0 || column >= chunk.width) {
      continue;
    }
    const std::int64_t place = token * chunk.lead + column;
    const auto of_pair = [&](std::uint64_t array, AccessKind kind) {
      add(offset_by(array, pair * 4), 4, kind);
    };
    if (gradients) {
      if (context.saves_scores()) {
        of_pair(context.at.z, AccessKind::kReadCached);
      } else {
        add(offset_by(chunk.s, place * 4), 4, AccessKind::kReadCached);
      }
      add(offset_by(chunk.u, place * 4), 4, AccessKind::kReadCached);
      of_pair(context.map.gates, AccessKind::kReadCached);
      for (const std::uint64_t array : {context.at.gate_gradients, context.at.p, context.at.q}) {
        of_pair(array, AccessKind::kWrite);
      }
    } else {
      of_pair(context.at.p, AccessKind::kReadCached);
      of_pair(context.at.q, AccessKind::kReadCached);
      add(offset_by(chunk.p, place * e), e, AccessKind::kWrite);
    }
    add(offset_by(chunk.q, place * e), e, AccessKind::kWrite);
  }
  unit.dependent_steps = 3;
  unit.instructions = 40 * static_cast<double>(ceil_div(count, 32));
}

void add_pair_kernel(std::vector<KernelLaunch>& launches, const BackwardContext& context, Stage stage,
                     const char* name, const DenseChunk& chunk, bool gradients) {
  constexpr std::int64_t kBlocksPerSm = 8;
  launches.push_back({stage, name, ceil_div(context.routing->num_pairs(), kPairsOfUnit), kBlocksPerSm,
                      [context, chunk, gradients](std::int64_t index, WorkUnit& unit) {
                        fill_pairs(context, chunk, gradients, index, unit);
                      },
                      kDensePairCodeBytes});
}

}  // namespace

void add_dense_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const Stage stage = Stage::kExpertsDgrad;
  const LayerShape& shape = context.shape;
  const std::int64_t e = context.element_bytes;
  const std::int64_t lead = chunk_of(shape, 8 + e);
  const std::int64_t matrix = shape.num_tokens * lead;
  DenseChunk chunk{.lead = lead,
                   .s = context.at.scratch,
                   .u = offset_by(context.at.scratch, matrix * 4),
                   .q = offset_by(context.at.scratch, matrix * 8)};
  for (chunk.first = 0; chunk.first < shape.num_experts(); chunk.first += lead) {
    chunk.width = std::min(lead, shape.num_experts() - chunk.first);
    Product scores{
        .m = shape.num_tokens, .n = chunk.width, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
    if (!context.saves_scores()) {
      scores.a = {context.map.x, context.row_bytes, e};
      scores.b = {context.w_row(chunk.first), context.row_bytes, e};
      scores.d = {chunk.s, lead * 4, 4};
      add_product(launches, stage, "scores", scores, context);
    }
    scores.a = {context.at.dy, context.row_bytes, e};
    scores.b = {context.v_row(chunk.first), context.row_bytes, e};
    scores.d = {chunk.u, lead * 4, 4};
    add_product(launches, stage, "gradients of p", scores, context);
    add_pass(launches, stage, "clear q", {{chunk.q, matrix * e, AccessKind::kWrite}}, 0);
    add_pair_kernel(launches, context, stage, "gradients of pairs", chunk, true);
    add_product(launches, stage, "dX",
                {.m = shape.num_tokens,
                 .n = shape.hidden_size,
                 .k = chunk.width,
                 .transpose_b = false,
                 .add = chunk.first > 0 || context.dx_holds(),
                 .a = {chunk.q, lead * e, e},
                 .b = {context.w_row(chunk.first), context.row_bytes, e},
                 .d = {context.at.dx_sums, shape.hidden_size * 4, 4}},
                context);
  }
}

void add_dense_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const Stage stage = Stage::kExpertsWgrad;
  const LayerShape& shape = context.shape;
  const std::int64_t e = context.element_bytes;
  const std::int64_t lead = chunk_of(shape, 2 * e);
  const std::int64_t matrix_bytes = shape.num_tokens * lead * e;
  DenseChunk chunk{.lead = lead, .p = context.at.scratch, .q = offset_by(context.at.scratch, matrix_bytes)};
  for (chunk.first = 0; chunk.first < shape.num_experts(); chunk.first += lead) {
    chunk.width = std::min(lead, shape.num_experts() - chunk.first);
    add_pass(launches, stage, "clear p and q", {{chunk.p, 2 * matrix_bytes, AccessKind::kWrite}}, 0);
    add_pair_kernel(launches, context, stage, "scatter p and q", chunk, false);
    const auto product = [&](const char* name, std::uint64_t pairs, std::uint64_t rows,
                             std::uint64_t gradient) {
      add_product(launches, stage, name,
                  {.m = chunk.width,
                   .n = shape.hidden_size,
                   .k = shape.num_tokens,
                   .transpose_a = true,
                   .transpose_b = false,
                   .a = {pairs, lead * e, e},
                   .b = {rows, context.row_bytes, e},
                   .d = {offset_by(gradient, chunk.first * context.gradient_row_bytes()),
                         context.gradient_row_bytes(), context.gradient_bytes()}},
                  context);
    };
    product("dW", chunk.q, context.map.x, context.at.w_in_gradient);
    product("dV", chunk.p, context.at.dy, context.at.w_out_gradient);
  }
  const std::int64_t loads = shape.num_experts() * 4;
  add_pass(launches, stage, "clear loads", {{context.at.scratch, loads, AccessKind::kWrite}}, 0);
  add_pass(launches, stage, "count loads",
           {{context.map.expert_ids, context.routing->num_pairs() * 4, AccessKind::kRead},
            {context.at.scratch, loads, AccessKind::kReduce}},
           0, kCountCodeBytes);
  add_touched(launches, context, context.at.scratch);
}

}  // namespace moescope::detail
