#include "profiler/simulator/streams/access_backward.hpp"

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace detail {
namespace {

/// As compiled for sm_90a: gate_backward_kernel, round_operands_kernel, round_output, log_softmax_kernel.
constexpr std::int64_t kGateCodeBytes = 4'224;
constexpr std::int64_t kOperandsCodeBytes = 2'688;
constexpr std::int64_t kRoundDxCodeBytes = 5'632;
constexpr std::int64_t kLogSoftmaxCodeBytes = 7'040;

/// Rows of operands are padded to 16 bytes.
constexpr std::int64_t kOperandMultiple = 8;

/// kernels/backward/shared_mlp_backward.cu: five products over the whole batch, one kernel between them.
void add_shared_mlp_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const Stage stage = Stage::kSharedMlpBackward;
  const LayerShape& shape = context.shape;
  const std::int64_t tokens = shape.num_tokens;
  const std::int64_t d = shape.hidden_size;
  const std::int64_t h = shape.shared_size;
  const std::int64_t e = context.element_bytes;
  const std::int64_t hidden_row = round_up(h, kOperandMultiple) * e;
  const std::int64_t both_row = round_up(2 * h, kOperandMultiple) * e;
  const std::uint64_t gate_up = context.at.scratch;
  const std::uint64_t dhidden = offset_by(gate_up, tokens * 2 * h * 4);
  const std::uint64_t hidden = offset_by(dhidden, tokens * h * 4);
  const std::uint64_t both = offset_by(hidden, tokens * hidden_row);
  const std::uint64_t down = offset_by(context.map.shared, 2 * h * context.row_bytes);
  const auto product = [&](const char* name, const Product& one) {
    add_product(launches, stage, name, one, context);
  };
  product("gate and up", {.m = tokens,
                          .n = 2 * h,
                          .k = d,
                          .a = {context.map.x, context.row_bytes, e},
                          .b = {context.map.shared, context.row_bytes, e},
                          .d = {gate_up, 2 * h * 4, 4}});
  product("dhidden", {.m = tokens,
                      .n = h,
                      .k = d,
                      .transpose_b = false,
                      .a = {context.at.dy, context.row_bytes, e},
                      .b = {down, h * e, e},
                      .d = {dhidden, h * 4, 4}});
  add_pass(launches, stage, "gate backward",
           {{gate_up, tokens * 2 * h * 4, AccessKind::kRead},
            {dhidden, tokens * h * 4, AccessKind::kRead},
            {hidden, tokens * hidden_row, AccessKind::kWrite},
            {both, tokens * both_row, AccessKind::kWrite}},
           0, kGateCodeBytes);
  product("dX of the shared MLP", {.m = tokens,
                                   .n = d,
                                   .k = 2 * h,
                                   .transpose_b = false,
                                   .a = {both, both_row, e},
                                   .b = {context.map.shared, context.row_bytes, e},
                                   .d = {context.at.dx_sums, d * 4, 4}});
  const std::int64_t g = context.gradient_bytes();
  product("gradients of gate and up", {.m = 2 * h,
                                       .n = d,
                                       .k = tokens,
                                       .transpose_a = true,
                                       .transpose_b = false,
                                       .a = {both, both_row, e},
                                       .b = {context.map.x, context.row_bytes, e},
                                       .d = {context.at.shared_gradient, d * g, g}});
  product("gradient of down", {.m = d,
                               .n = h,
                               .k = tokens,
                               .transpose_a = true,
                               .transpose_b = false,
                               .a = {context.at.dy, context.row_bytes, e},
                               .b = {hidden, hidden_row, e},
                               .d = {offset_by(context.at.shared_gradient, 2 * h * d * g), h * g, g}});
}

/// kernels/backward/router_project_backward.cu.
void add_router_project_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const Stage stage = Stage::kRouterProjectBackward;
  const LayerShape& shape = context.shape;
  const std::int64_t tokens = shape.num_tokens;
  const std::int64_t d = shape.hidden_size;
  const std::int64_t sides = context.sides();
  const std::int64_t e = context.element_bytes;
  Operand operands{context.at.logits_gradient, sides * 4, 4};
  if (shape.dtype == Dtype::kBF16) {
    operands = {context.at.scratch, round_up(sides, kOperandMultiple) * e, e};
    add_pass(launches, stage, "round operands",
             {{context.at.logits_gradient, tokens * sides * 4, AccessKind::kRead},
              {operands.address, tokens * operands.pitch_bytes, AccessKind::kWrite}},
             0, kOperandsCodeBytes);
  }
  const std::int64_t g = context.gradient_bytes();
  add_product(launches, stage, "gradient of the router",
              {.m = sides,
               .n = d,
               .k = tokens,
               .transpose_a = true,
               .transpose_b = false,
               .a = operands,
               .b = {context.map.x, context.row_bytes, e},
               .d = {context.at.router_gradient, d * g, g}},
              context);
  add_product(launches, stage, "dX of the router",
              {.m = tokens,
               .n = d,
               .k = sides,
               .transpose_b = false,
               .add = true,
               .a = operands,
               .b = {context.map.router, context.row_bytes, e},
               .d = {context.at.dx_sums, d * 4, 4}},
              context);
}

/// The forward up to the selection, again.
void add_selection(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  add_router(launches, context);
  if (context.on_strips()) {
    add_strip_schedule(launches, context);
    add_strips_order(launches, context);
    return;
  }
  const std::int64_t logits = context.shape.num_tokens * context.sides() * 4;
  add_pass(
      launches, Stage::kRouterSelect, "log softmax",
      {{context.map.working, logits, AccessKind::kRead}, {context.map.working, logits, AccessKind::kWrite}},
      0, kLogSoftmaxCodeBytes);
}

void add_expert_gradients(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  switch (context.schedule->kind) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kExpertCentric:
      add_pairs_dgrad(launches, context);
      add_pairs_wgrad(launches, context);
      return;
    case ScheduleKind::kDenseMasked:
      add_dense_dgrad(launches, context);
      add_dense_wgrad(launches, context);
      return;
    case ScheduleKind::kStaircase:
      add_strips_dgrad(launches, context);
      add_strips_wgrad(launches, context);
      return;
    case ScheduleKind::kSparseLibrary:
    case ScheduleKind::kAuto:
      break;
  }
  throw InvalidArgument("schedule", to_string(context.schedule->kind),
                        "has no backward's access stream: sparse_library has no backward, auto must be "
                        "resolved first");
}

}  // namespace

BackwardContext::BackwardContext(StreamContext forward, const TrainingOptions& step)
    : StreamContext(std::move(forward)), training(step) {
  if (training.losses.any() || training.batch_norm) {
    throw InvalidArgument(training.batch_norm ? "batch_norm" : "losses", "given",
                          "has no access stream: the backward is modelled without");
  }
  if (training.form != GradientForm::kStored) {
    throw InvalidArgument("gradients", to_string(training.form),
                          "have no access stream: the backward is modelled with gradients written whole");
  }
  if (training.optimizer != OptimizerForm::kNone) {
    throw InvalidArgument("optimizer", to_string(training.optimizer), "has no access stream");
  }
  const bool strips = schedule->kind == ScheduleKind::kStaircase;
  if (strips && !on_strips()) {
    throw InvalidArgument("schedule", to_string(schedule->options),
                          "in the backward needs the router's scores and bf16");
  }
  std::uint64_t next = map.scratch;
  const auto put = [&next](std::uint64_t& tensor, std::int64_t bytes) {
    tensor = next;
    next += static_cast<std::uint64_t>(round_up(bytes, 4096));
  };
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  const std::int64_t pairs = routing->num_pairs();
  const std::int64_t experts = shape.num_experts();
  put(at.dy, shape.num_tokens * row_bytes);
  at.log_probs = map.working;
  if (strips) {
    const std::int64_t segment = strip_segment();
    at.segments = ceil_div(std::max(shape.grid_rows, shape.grid_cols), segment);
    at.pitch_bytes = round_up(at.segments * segment, 64) * 2;
    const auto entries = static_cast<std::int64_t>(schedule->tokens.size());
    std::int64_t tiles = 0;
    for (const WorkItem& item : schedule->items) {
      tiles += ceil_div(item.token_end - item.token_begin, schedule->options.tile_tokens);
    }
    put(at.z, tiles * at.segments * kStripTileTokens * segment * 2);
    put(at.p, entries * at.pitch_bytes);
    put(at.q, entries * at.pitch_bytes);
    put(at.h, entries * at.pitch_bytes);
    put(at.h_sums, 2 * entries * at.segments * 4);
    put(at.entry_tokens, entries * 4);
    put(at.entries, shape.num_tokens * max_strips_of_token(shape, schedule->options.strip_rule) * 4);
    at.sum_bytes = strip_sum_bytes();
    put(at.sums, outputs * at.sum_bytes);
    put(at.exponents, shape.num_tokens * 4);
  } else {
    put(at.gate_gradients, pairs * 4);
    put(at.p, pairs * 4);
    put(at.q, pairs * 4);
    put(at.z, pairs * 4);
    put(at.sorted_offsets, (experts + 1) * 4);
    put(at.sorted_pairs, pairs * 4);
    put(at.touched, (experts + 1) * 4);
  }
  put(at.dx_sums, outputs * 4);
  put(at.dx, outputs * element_bytes);
  put(at.w_in_gradient, experts * gradient_row_bytes());
  put(at.w_out_gradient, experts * gradient_row_bytes());
  put(at.logits_gradient, shape.num_tokens * sides() * 4);
  put(at.router_gradient, sides() * gradient_row_bytes());
  put(at.shared_gradient, 3 * shape.shared_size * gradient_row_bytes());
  put(at.scratch, 0);
}

}  // namespace detail

std::vector<KernelLaunch> training_stream(const LayerShape& shape, const Routing& routing,
                                          const Schedule& schedule, const TrainingOptions& training,
                                          const StreamOptions& options, bool fixed_routing) {
  const detail::BackwardContext context(
      detail::make_context(shape, routing, schedule, options, fixed_routing), training);
  std::vector<KernelLaunch> launches;
  if (shape.shared_size > 0) {
    detail::add_shared_mlp_backward(launches, context);
  }
  if (!fixed_routing && training.save == SaveMode::kMinimal) {
    detail::add_selection(launches, context);
  }
  detail::add_expert_gradients(launches, context);
  if (!fixed_routing) {
    if (context.on_strips()) {
      detail::add_strips_select_backward(launches, context);
    } else {
      detail::add_lists_select_backward(launches, context);
    }
    detail::add_router_project_backward(launches, context);
  }
  if (shape.dtype == Dtype::kBF16) {
    const std::int64_t values = shape.num_tokens * shape.hidden_size;
    detail::add_pass(launches, launches.back().stage, "round output",
                     {{context.at.dx_sums, values * 4, AccessKind::kRead},
                      {context.at.dx, values * 2, AccessKind::kWrite}},
                     0, detail::kRoundDxCodeBytes);
  }
  detail::charge_code_once(launches);
  return launches;
}

}  // namespace moescope
