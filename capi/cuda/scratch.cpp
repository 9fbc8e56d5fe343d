#include "capi/cuda/scratch.hpp"

#include <string>

#include "capi/base/failure.hpp"
#include "capi/cuda/pairs.hpp"
#include "core/cost/shape_schedule.hpp"
#include "core/tiling/strip_tiles.hpp"
#include "core/tiling/token_split.hpp"
#include "kernels/router/strip_plan.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::capi::gpu {
namespace {

[[noreturn]] void no_kernel(const std::string& name, const std::string& value, const std::string& why) {
  throw Failure(MOESCOPE_ERROR_UNSUPPORTED, name + ": " + value + " " + why + " on CUDA");
}

bool selects(moescope_operation operation) {
  return operation == MOESCOPE_SELECT_FORWARD || operation == MOESCOPE_LAYER_FORWARD;
}
bool has_experts(moescope_operation operation) {
  return operation == MOESCOPE_EXPERTS_FORWARD || operation == MOESCOPE_LAYER_FORWARD;
}

void take_selection(Arena& arena, const LayerShape& shape, const GpuTraits& gpu, SelectionScratch& scratch) {
  scratch.logits = arena.take<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols));
  scratch.bad_logit = arena.take<std::int64_t>(1);
  scratch.selected = arena.take<std::int32_t>(shape.num_pairs());
  scratch.selected_gates = arena.take<float>(shape.num_pairs());
  scratch.workspace = arena.take<std::byte>(cuda::router_select_workspace_bytes(shape, gpu));
  const std::int64_t keys = order_pairs_bytes(shape.num_tokens, shape.top_k, gpu) / 8;
  scratch.sort_space = keys > 0 ? arena.take<std::uint64_t>(keys) : nullptr;
}

void take_pairs(Arena& arena, const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                PairsScratch& scratch) {
  const bool pair_form = call.operation == MOESCOPE_EXPERTS_FORWARD;
  scratch.ids = pair_form || call.problem.wide_ids ? arena.take<std::int32_t>(shape.num_pairs()) : nullptr;
  // The layer's own where the caller wants none.
  scratch.gates = arena.take<float>(shape.num_pairs());
  if (!pair_form && scratch.ids == nullptr) {
    scratch.ids = arena.take<std::int32_t>(shape.num_pairs());
  }
  const std::int64_t bytes = cuda::token_centric_workspace_bytes(shape, gpu);
  if (bytes > 0) {
    scratch.workspace = arena.take<std::byte>(bytes);
    scratch.arrivals = reinterpret_cast<unsigned*>(scratch.workspace);
    scratch.arrivals_count = shape.num_tokens * TokenSplit::kMaxClusterBlocks;
  }
}

void take_strips(Arena& arena, const LayerShape& shape, const ScheduleOptions& options, const GpuTraits& gpu,
                 StripsScratch& scratch) {
  const cuda::StripCapacity capacity =
      cuda::strip_capacity(shape, options.strip_rule, options.tile_tokens, gpu);
  const std::int64_t tokens = shape.num_tokens;
  scratch.strips = {.row_log_probs = arena.take<float>(tokens * shape.grid_rows),
                    .col_log_probs = arena.take<float>(tokens * shape.grid_cols),
                    .uncovered_rows = arena.take<float>(tokens * shape.grid_rows),
                    .threshold = arena.take<float>(tokens),
                    .tie_limit = arena.take<std::int32_t>(tokens),
                    .gate_shift = arena.take<float>(tokens),
                    .cover_sizes = arena.take<std::int32_t>(tokens),
                    .cover = arena.take<std::int32_t>(capacity.max_entries),
                    .strip_offsets = arena.take<std::int32_t>(shape.grid_rows + shape.grid_cols + 1),
                    .strip_tokens = arena.take<std::int32_t>(capacity.max_entries),
                    .tiles = arena.take<cuda::StripTile>(capacity.max_tiles),
                    .counts = arena.take<std::int32_t>(4),
                    .scratch = arena.take<std::byte>(capacity.scratch_bytes)};
  scratch.zeroed_bytes = cuda::strip_scratch(shape, capacity.max_cover, gpu).cover_ranks;
  scratch.bound = arena.take<float>(1);
  const auto kind =
      strips_sum_in_fp16(shape, options) ? cuda::StaircaseSums::kFp16 : cuda::StaircaseSums::kFixedPoint;
  scratch.sums = {
      .kind = kind,
      .sums = arena.take<std::byte>(cuda::staircase_sums_bytes(shape, kind)),
      .exponents = arena.take<std::int32_t>(tokens),
      .log_scales = shape.gate_mode == GateMode::kProbability ? scratch.strips.gate_shift : nullptr};
}

void take_mlp(Arena& arena, const LayerShape& shape, bool alone, MlpScratch& scratch) {
  const bool in_place = alone && shape.dtype == Dtype::kF32;
  scratch.y = in_place ? nullptr : arena.take<float>(shape.num_tokens * shape.hidden_size);
  scratch.units = arena.take<std::byte>(cuda::shared_mlp_workspace_bytes(shape));
  scratch.blas_bytes = cuda::CublasLt::workspace_bytes(shape.num_tokens);
  if (scratch.blas_bytes > 0) {
    // cuBLASLt takes nothing else than what is aligned so.
    constexpr std::uintptr_t kAlignment = 256;
    auto* const begin = arena.take<std::byte>(scratch.blas_bytes + std::int64_t{kAlignment});
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    scratch.blas = begin == nullptr ? nullptr : begin + (kAlignment - address % kAlignment) % kAlignment;
  }
}

}  // namespace

LayerShape device_shape(const Call& call) {
  const Problem& problem = call.problem;
  if (call.dtype == MOESCOPE_F64) {
    no_kernel("dtype", "float64", "has no kernel");
  }
  LayerShape shape;
  shape.num_tokens = problem.tokens;
  shape.hidden_size = call.operation == MOESCOPE_SELECT_FORWARD ? 8 : problem.hidden;
  const bool pairs = call.operation != MOESCOPE_MLP_FORWARD;
  shape.grid_rows = pairs ? problem.grid_rows : 1;
  shape.grid_cols = pairs ? problem.grid_cols : 1;
  shape.top_k = pairs ? problem.top_k : 1;
  shape.shared_size =
      call.operation == MOESCOPE_MLP_FORWARD || call.operation == MOESCOPE_LAYER_FORWARD ? problem.shared : 0;
  shape.dtype = call.dtype == MOESCOPE_BF16 ? Dtype::kBF16 : Dtype::kF32;
  shape.activation = problem.activation;
  shape.gate_mode =
      problem.gate_mode == MOESCOPE_GATES_PROBABILITY ? GateMode::kProbability : GateMode::kSoftmax;
  if (shape.hidden_size % 8 != 0) {
    no_kernel("hidden_size", std::to_string(shape.hidden_size), "must be a multiple of 8");
  }
  const std::int64_t most = TokenSplit::max_row_bytes() / dtype_bytes(shape.dtype);
  if (has_experts(call.operation) && shape.hidden_size > most) {
    no_kernel("hidden_size", std::to_string(shape.hidden_size), "must be at most " + std::to_string(most));
  }
  constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;  // blocks of a launch, several to a token
  if (shape.num_tokens > kMostTokens) {
    no_kernel("num_tokens", std::to_string(shape.num_tokens),
              "must be at most " + std::to_string(kMostTokens));
  }
  return shape;
}

ScheduleOptions layer_schedule(const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                               bool lists_pairs) {
  ScheduleOptions options{.kind = ScheduleKind::kTokenCentric,
                          .deterministic = call.execution.deterministic != 0};
  const Problem& problem = call.problem;
  const bool gates =
      problem.gate_mode == MOESCOPE_GATES_SOFTMAX || problem.gate_mode == MOESCOPE_GATES_PROBABILITY;
  if (problem.log_softmax && gates && cuda::experts_staircase_supported(shape, gpu) &&
      shape.num_tokens * max_strips_of_token(shape, options.strip_rule) < (std::int64_t{1} << 31)) {
    options.kind = schedule_of_shape(shape, gpu, lists_pairs);
  }
  return options;
}

void take_scratch(Arena& arena, const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                  Scratch& scratch) {
  if (shape.num_tokens == 0) {
    return;
  }
  if (selects(call.operation)) {
    take_selection(arena, shape, gpu, scratch.selection);
  }
  if (has_experts(call.operation)) {
    take_pairs(arena, call, shape, gpu, scratch.pairs);
  }
  if (call.operation == MOESCOPE_LAYER_FORWARD) {
    // Whether a caller wants the pairs shows when the layer runs; without them strips are taken sooner.
    const ScheduleOptions options = layer_schedule(call, shape, gpu, false);
    if (options.kind == ScheduleKind::kStaircase) {
      take_strips(arena, shape, options, gpu, scratch.strips);
    }
  }
  if (shape.shared_size > 0) {
    take_mlp(arena, shape, call.operation == MOESCOPE_MLP_FORWARD, scratch.mlp);
  }
}

}  // namespace moescope::capi::gpu
