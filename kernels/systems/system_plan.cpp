#include "kernels/systems/system_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "core/base/error.hpp"
#include "core/systems/system_cost.hpp"
#include "core/tiling/tile_config.hpp"
#include "core/tiling/token_split.hpp"
#include "kernels/buffers/system_buffers.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/systems/product_key_form.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);
constexpr std::int64_t kIdBytes = sizeof(std::int32_t);

constexpr std::int64_t align_up(std::int64_t bytes) { return round_up(bytes, 256); }

void require(bool holds, std::string_view field, std::int64_t value, const std::string& requirement) {
  if (!holds) {
    throw InvalidArgument(field, fmt::to_string(value), requirement);
  }
}

void require_gpu_system(const SystemShape& shape, const FfnForm& ffn, const GpuTraits& gpu) {
  constexpr std::int64_t kMultiple = 8;  // 16-byte loads
  require(shape.hidden_size % kMultiple == 0, "hidden_size", shape.hidden_size,
          "must be a multiple of 8 on the GPU");
  if (shape.has_routing()) {
    const std::int64_t longest = TokenSplit::max_row_bytes() / dtype_bytes(shape.dtype);
    require(shape.hidden_size <= longest, "hidden_size", shape.hidden_size,
            fmt::format("at most {} in {} on the GPU", longest, to_string(shape.dtype)));
  }
  if (!shape.has_ffn_experts()) {
    return;
  }
  require(shape.expert_size % kMultiple == 0, "expert_size", shape.expert_size,
          "must be a multiple of 8 on the GPU");
  require(shape.num_experts <= kMaxFfnExperts, "num_experts", shape.num_experts,
          fmt::format("at most {} on the GPU", kMaxFfnExperts));
  require(shape.num_tokens * shape.top_k <= std::numeric_limits<std::int32_t>::max(), "num_tokens * top_k",
          shape.num_tokens * shape.top_k, "must be below 2^31 on the GPU");
  if (ffn.rows() > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("schedule", to_string(ScheduleOptions{.kind = ffn.kind, .tokens = ffn.tokens}),
                          fmt::format("makes {} rows, must be below 2^31 on the GPU", ffn.rows()));
  }
  if (ffn.grouped() && !grouped_gemm_supported(shape.dtype, gpu)) {
    throw InvalidArgument("dtype", to_string(shape.dtype),
                          fmt::format("{} in bf16 needs a GPU of compute capability 9.0 and a build for it",
                                      to_string(shape.system)));
  }
}

/// Both buffers of the dense branch; the caller's is the fused form's output.
struct MlpBuffers {
  std::int64_t scratch = 0;
  std::int64_t result = 0;
};
MlpBuffers mlp_buffers(const SystemDesign& design) {
  const SystemShape& shape = design.shape;
  const std::int64_t result = shape.num_tokens * shape.hidden_size * kFloatBytes;
  const bool writes_output =
      !shape.has_routing() && (design.fused_mlp || shape.dtype == Dtype::kF32);  // nothing to add or round
  return {.scratch = design.fused_mlp ? shape.num_tokens * shape.shared_size * dtype_bytes(shape.dtype)
                                      : shared_mlp_workspace_bytes(shape.row_shape()),
          .result = writes_output ? 0 : result};
}

}  // namespace

SystemDesign design_system(const SystemInputs& inputs, const GpuTraits& gpu,
                           const std::optional<ProductKeyRates>& rates) {
  const SystemShape& shape = inputs.shape;
  inputs.validate();
  const ScheduleKind asked = inputs.schedule;
  const ScheduleKind ffn_kind =
      shape.has_ffn_experts() ? inputs.schedule_options().kind : ScheduleKind::kExpertCentric;
  require_gpu_system(shape, {.shape = shape, .kind = ffn_kind, .tokens = inputs.tokens}, gpu);
  if (inputs.fixed_routing && needs_probabilities(inputs.tokens)) {
    (void)assign_tokens(*inputs.fixed_routing, inputs.tokens, nullptr);  // says what is missing
  }
  std::optional<ProductKeyForms> form;
  if (shape.has_product_keys() && asked == ScheduleKind::kAuto) {
    if (!rates) {
      throw InternalError("auto among the forms of product keys needs rates");
    }
    form = choose_product_key_form(shape, *rates);
  }
  return {.shape = shape,
          .has_norm = inputs.weights->keys.has_value() && !inputs.weights->keys->norm_weight.empty(),
          .fused_mlp = shape.shared_size > 0 && shape.shared_size % 8 == 0 && shape.dtype == Dtype::kBF16 &&
                       grouped_gemm_supported(shape.dtype, gpu),
          .masked = form ? form->masked() : asked == ScheduleKind::kDenseMasked && shape.has_product_keys(),
          .ffn_kind = ffn_kind,
          .tokens = inputs.tokens,
          .fixed_routing = inputs.fixed_routing.has_value(),
          .explanation = form ? form->explanation : std::string(),
          .gpu = gpu};
}

std::vector<Stage> system_layer_stages(System system, bool fixed_routing, ScheduleKind ffn_kind) {
  std::vector<Stage> stages = system_stages(system, fixed_routing);
  if (ffn_kind != ScheduleKind::kExpertCentric) {
    std::erase(stages, Stage::kSchedule);
  }
  const auto mlp = std::ranges::find(stages, Stage::kSharedMlp);
  const auto experts = std::ranges::find(stages, Stage::kExperts);
  if (mlp != stages.end() && experts != stages.end()) {
    std::iter_swap(mlp, experts);
  }
  return stages;
}

std::int64_t SystemMemoryPlan::total_bytes() const {
  return hidden_states + weights + routing + output + stages.back().workspace_bytes;
}

SystemMemoryPlan plan_system_memory(const SystemDesign& design) {
  const SystemShape& shape = design.shape;
  const std::int64_t element = dtype_bytes(shape.dtype);
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  const std::int64_t pairs = shape.has_routing() ? shape.num_tokens * shape.top_k : 0;
  SystemMemoryPlan plan;
  plan.hidden_states = outputs * element;
  plan.weights = SystemBuffers::required_bytes(shape, design.has_norm);
  plan.routing = pairs * (kIdBytes + kFloatBytes);
  plan.output = outputs * element;

  std::int64_t project = 0;  // what the router's stages use of the working buffer
  std::int64_t select = 0;
  std::int64_t experts = 0;
  if (shape.has_product_keys()) {
    const LayerShape queries = query_shape(shape);
    plan.logits_offset = align_up(product_key_workspace_bytes(shape, design.has_norm));
    project = plan.logits_offset + queries.num_tokens * (queries.grid_rows + queries.grid_cols) * kFloatBytes;
    plan.select_offset = align_up(project);
    select = plan.select_offset + router_select_workspace_bytes(queries, design.gpu) - plan.logits_offset;
    experts = design.masked ? masked_product_keys_workspace_bytes(shape, design.gpu) : 0;
    plan.working = std::max(plan.logits_offset + select, experts);
    if (shape.system == System::kPeer && !design.masked) {
      plan.token_workspace = token_centric_workspace_bytes(shape.row_shape(), design.gpu);
    }
  }
  if (shape.has_ffn_experts()) {
    project = select = shape.num_tokens * shape.num_experts * kFloatBytes;
    const FfnForm ffn = design.ffn();
    experts = ffn.working_bytes();
    plan.working = std::max(project, experts);
    plan.permutation = ffn.permutation_bytes();
    plan.schedule_scratch = ffn.scratch_bytes();
  }
  if (shape.shared_size > 0) {
    const MlpBuffers mlp = mlp_buffers(design);
    plan.mlp_scratch = mlp.scratch;
    plan.mlp_result = mlp.result;
    plan.mlp_library = CublasLt::kWorkspaceBytes;
    plan.mlp_tiles = design.fused_mlp ? max_grouped_tiles(shape.num_tokens, 1) *
                                                static_cast<std::int64_t>(sizeof(GroupedTile)) +
                                            kIdBytes
                                      : 0;
  }
  // Always: the router of FFN experts has few columns, so that its product is best split over k.
  plan.library = shape.has_routing() ? CublasLt::kWorkspaceBytes : 0;

  const std::int64_t permutation = plan.permutation;
  for (const Stage stage : system_layer_stages(shape.system, design.fixed_routing, design.ffn_kind)) {
    std::int64_t bytes = 0;
    switch (stage) {
      case Stage::kRouterProject:
        bytes = project + plan.library;
        break;
      case Stage::kRouterSelect:
        bytes = select;
        break;
      case Stage::kSchedule:
        bytes = permutation + plan.schedule_scratch;
        break;
      case Stage::kExperts:
      case Stage::kExpertCombine:
        bytes = experts + permutation + plan.token_workspace + (design.masked ? plan.library : 0);
        break;
      case Stage::kSharedMlp:
        bytes = plan.mlp_scratch + plan.mlp_result + plan.mlp_library + plan.mlp_tiles;
        break;
      default:
        throw InternalError("baselines have no such stage");
    }
    plan.stages.push_back({stage, bytes});
  }
  plan.stages.push_back({Stage::kLayer, plan.working + permutation + plan.schedule_scratch + plan.mlp_tiles +
                                            plan.mlp_scratch + plan.mlp_result + plan.token_workspace +
                                            plan.library + plan.mlp_library});
  return plan;
}

}  // namespace moescope::cuda
