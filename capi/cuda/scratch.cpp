#include "capi/cuda/scratch.hpp"

#include <algorithm>
#include <initializer_list>
#include <string>

#include "capi/base/failure.hpp"
#include "capi/checks.hpp"
#include "capi/cuda/pairs.hpp"
#include "capi/cuda/select_backward.hpp"
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

bool one_of(moescope_operation operation, std::initializer_list<moescope_operation> these) {
  return std::ranges::find(these, operation) != these.end();
}
bool selects(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_SELECT_FORWARD, MOESCOPE_LAYER_FORWARD, MOESCOPE_LAYER_BACKWARD});
}
bool has_experts(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_EXPERTS_FORWARD, MOESCOPE_LAYER_FORWARD, MOESCOPE_EXPERTS_BACKWARD,
                            MOESCOPE_LAYER_BACKWARD});
}
bool of_selection_alone(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_SELECT_FORWARD, MOESCOPE_SELECT_BACKWARD});
}
bool of_mlp_alone(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_MLP_FORWARD, MOESCOPE_MLP_BACKWARD});
}
bool is_layer(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_LAYER_FORWARD, MOESCOPE_LAYER_BACKWARD});
}

/// `pairs`: it lists them.
void take_selection(Arena& arena, const LayerShape& shape, const GpuTraits& gpu, bool pairs,
                    SelectionScratch& scratch) {
  scratch.logits = arena.take<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols));
  scratch.bad_logit = arena.take<std::int64_t>(1);
  if (!pairs) {
    return;
  }
  scratch.selected = arena.take<std::int32_t>(shape.num_pairs());
  scratch.selected_gates = arena.take<float>(shape.num_pairs());
  scratch.workspace = arena.take<std::byte>(cuda::router_select_workspace_bytes(shape, gpu));
  const std::int64_t keys = order_pairs_bytes(shape.num_tokens, shape.top_k, gpu) / 8;
  scratch.sort_space = keys > 0 ? arena.take<std::uint64_t>(keys) : nullptr;
}

void take_pairs(Arena& arena, const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                PairsScratch& scratch) {
  if (call.operation != MOESCOPE_EXPERTS_FORWARD) {  // the layer's own, where the caller wants none
    scratch.ids = arena.take<std::int32_t>(shape.num_pairs());
    scratch.gates = arena.take<float>(shape.num_pairs());
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

template <class Mlp>
void take_blas(Arena& arena, const LayerShape& shape, Mlp& scratch) {
  scratch.blas_bytes = cuda::CublasLt::workspace_bytes(shape.num_tokens);
  if (scratch.blas_bytes > 0) {
    // cuBLASLt takes nothing else than what is aligned so.
    constexpr std::uintptr_t kAlignment = 256;
    auto* const begin = arena.take<std::byte>(scratch.blas_bytes + std::int64_t{kAlignment});
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    scratch.blas = begin == nullptr ? nullptr : begin + (kAlignment - address % kAlignment) % kAlignment;
  }
}

void take_mlp(Arena& arena, const LayerShape& shape, bool alone, MlpScratch& scratch) {
  const bool in_place = alone && shape.dtype == Dtype::kF32;
  scratch.y = in_place ? nullptr : arena.take<float>(shape.num_tokens * shape.hidden_size);
  scratch.units = arena.take<std::byte>(cuda::shared_mlp_workspace_bytes(shape));
  take_blas(arena, shape, scratch);
}

void take_pairs_backward(Arena& arena, const LayerShape& shape, const GpuTraits& gpu,
                         PairsBackwardScratch& scratch) {
  const std::int64_t pairs = shape.num_pairs();
  const std::int64_t experts = shape.num_experts();
  scratch.ids = arena.take<std::int32_t>(pairs);
  scratch.gates = arena.take<float>(pairs);
  scratch.gradients = {
      .gates = arena.take<float>(pairs), .p = arena.take<float>(pairs), .q = arena.take<float>(pairs)};
  scratch.sorted = {.offsets = arena.take<std::int32_t>(experts + 1),
                    .pairs = arena.take<std::int32_t>(pairs),
                    .touched = arena.take<std::int32_t>(experts),
                    .touched_count = arena.take<std::int32_t>(1)};
  scratch.sort_space = arena.take<std::byte>(cuda::pairs_by_expert_workspace_bytes(shape));
  const std::int64_t bytes = cuda::experts_dgrad_workspace_bytes(shape, gpu);
  if (bytes > 0) {
    scratch.workspace = arena.take<std::byte>(bytes);
    scratch.arrivals = reinterpret_cast<unsigned*>(scratch.workspace);
    scratch.arrivals_count = shape.num_tokens * TokenSplit::kMaxClusterBlocks;
  }
}

void take_side_sums(Arena& arena, const LayerShape& shape, PairsBackwardScratch& scratch) {
  const std::int64_t bytes = select_backward_bytes(shape.num_tokens, shape.grid_rows, shape.grid_cols);
  scratch.side_sums =
      bytes > 0 ? arena.take<float>(bytes / static_cast<std::int64_t>(sizeof(float))) : nullptr;
}

/// For all that a batch of this shape can select, unless the caller knows what it did select: the device
/// alone does otherwise.
void take_strips_backward(Arena& arena, const Call& call, const LayerShape& shape,
                          const ScheduleOptions& options, const GpuTraits& gpu,
                          StripsBackwardScratch& scratch) {
  const cuda::StripCapacity capacity =
      cuda::strip_capacity(shape, options.strip_rule, options.tile_tokens, gpu);
  std::int64_t entries = capacity.max_entries;
  std::int64_t tiles = capacity.max_tiles;
  const moescope_execution& execution = call.execution;
  if (execution.struct_bytes >= kStripsBytes && execution.strip_entries > 0 && execution.strip_tiles > 0) {
    entries = std::min(entries, execution.strip_entries);
    tiles = std::min(tiles, execution.strip_tiles);
    scratch.exceeded = arena.take<std::int32_t>(1);
  }
  const cuda::StripsPairsLayout layout = cuda::strips_pairs_layout(shape, entries, tiles);
  scratch.order = {.strip_tokens = arena.take<std::int32_t>(capacity.max_entries),
                   .entries = arena.take<std::int32_t>(capacity.max_entries)};
  scratch.pairs = {.layout = layout,
                   .z = arena.take<std::byte>(layout.z_bytes),
                   .p = arena.take<std::byte>(layout.row_bytes),
                   .q = arena.take<std::byte>(layout.row_bytes),
                   .h = arena.take<std::byte>(layout.row_bytes),
                   .h_sums = arena.take<float>(layout.sum_bytes / 4),
                   .gate_sums = arena.take<float>(layout.sum_bytes / 4)};
  scratch.logits_gradient = arena.take<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols));
  scratch.workspace = arena.take<std::byte>(cuda::strips_router_select_backward_workspace_bytes(shape));
}

void take_mlp_backward(Arena& arena, const LayerShape& shape, MlpBackwardScratch& scratch) {
  const std::int64_t matrix = shape.shared_size * shape.hidden_size * dtype_bytes(shape.dtype);
  scratch.gate_up = arena.take<std::byte>(2 * matrix);
  scratch.gate_up_gradient = arena.take<std::byte>(2 * matrix);
  scratch.down_gradient = arena.take<std::byte>(matrix);
  scratch.units = arena.take<std::byte>(cuda::shared_mlp_backward_workspace_bytes(shape));
  take_blas(arena, shape, scratch);
}

/// A layer's backward over pairs or on strips.
void take_layer_backward(Arena& arena, const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                         Scratch& scratch) {
  const ScheduleOptions options = layer_schedule(call, shape, gpu, false);
  if (options.kind == ScheduleKind::kStaircase) {
    take_strips(arena, shape, options, gpu, scratch.strips);
    take_strips_backward(arena, call, shape, options, gpu, scratch.strips_backward);
  } else {
    take_pairs_backward(arena, shape, gpu, scratch.pairs_backward);
    take_side_sums(arena, shape, scratch.pairs_backward);
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
  shape.hidden_size = of_selection_alone(call.operation) ? 8 : problem.hidden;
  const bool pairs = !of_mlp_alone(call.operation);
  shape.grid_rows = pairs ? problem.grid_rows : 1;
  shape.grid_cols = pairs ? problem.grid_cols : 1;
  shape.top_k = pairs ? problem.top_k : 1;
  shape.shared_size = of_mlp_alone(call.operation) || is_layer(call.operation) ? problem.shared : 0;
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
    const bool on_strips = call.operation == MOESCOPE_LAYER_BACKWARD &&
                           layer_schedule(call, shape, gpu, false).kind == ScheduleKind::kStaircase;
    take_selection(arena, shape, gpu, !on_strips, scratch.selection);
  }
  switch (call.operation) {
    case MOESCOPE_EXPERTS_FORWARD:
      take_pairs(arena, call, shape, gpu, scratch.pairs);
      break;
    case MOESCOPE_MLP_FORWARD:
      take_mlp(arena, shape, true, scratch.mlp);
      break;
    case MOESCOPE_LAYER_FORWARD: {
      take_pairs(arena, call, shape, gpu, scratch.pairs);
      // Whether a caller wants the pairs shows when the layer runs; without them strips are taken sooner.
      const ScheduleOptions options = layer_schedule(call, shape, gpu, false);
      if (options.kind == ScheduleKind::kStaircase) {
        take_strips(arena, shape, options, gpu, scratch.strips);
      }
      if (shape.shared_size > 0) {
        take_mlp(arena, shape, false, scratch.mlp);
      }
      break;
    }
    case MOESCOPE_SELECT_BACKWARD:
      take_side_sums(arena, shape, scratch.pairs_backward);
      break;
    case MOESCOPE_EXPERTS_BACKWARD:
      scratch.dx = arena.take<float>(shape.num_tokens * shape.hidden_size);
      take_pairs_backward(arena, shape, gpu, scratch.pairs_backward);
      break;
    case MOESCOPE_MLP_BACKWARD:
      scratch.dx = arena.take<float>(shape.num_tokens * shape.hidden_size);
      take_mlp_backward(arena, shape, scratch.mlp_backward);
      break;
    case MOESCOPE_LAYER_BACKWARD:
      scratch.dx = arena.take<float>(shape.num_tokens * shape.hidden_size);
      if (shape.shared_size > 0) {
        take_mlp_backward(arena, shape, scratch.mlp_backward);
      }
      take_layer_backward(arena, call, shape, gpu, scratch);
      break;
    default:
      break;
  }
}

}  // namespace moescope::capi::gpu
