#include "kernels/layer/layer_plan.hpp"

#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/sparse_library.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);

bool combines_apart(const LayerDesign& design) {
  return design.options.kind == ScheduleKind::kStaircase && design.options.deterministic && !design.on_strips;
}
std::int64_t scores_bytes(const LayerShape& shape) { return shape.num_pairs() * kFloatBytes; }
/// Of a buffer that follows another in one allocation; cuBLASLt and 16-byte loads like it aligned.
constexpr std::int64_t align_up(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

/// Sums of the experts: none where a kernel rounds its own.
std::int64_t sums_bytes(const LayerDesign& design) {
  if (design.on_strips) {
    return staircase_sums_bytes(design.shape, design.sums());
  }
  const bool none = finishes_layer(design) && design.shape.dtype == Dtype::kBF16;
  return none ? 0 : design.shape.num_tokens * design.shape.hidden_size * kFloatBytes;
}

}  // namespace

LayerDesign design_layer(const LayerShape& shape, const ScheduleOptions& options, bool fixed_routing,
                         std::int64_t compute_capability) {
  if (options.kind == ScheduleKind::kStaircase) {
    validate_tile_tokens(options.tile_tokens);
  }
  const auto major = static_cast<int>(compute_capability / 10);
  const auto minor = static_cast<int>(compute_capability % 10);
  const bool on_strips = options.kind == ScheduleKind::kStaircase && !fixed_routing &&
                         experts_staircase_supported(shape, major, minor);
  return {shape, options, fixed_routing, on_strips};
}

bool groups_pairs(const LayerDesign& design) {
  return design.options.kind == ScheduleKind::kExpertCentric ||
         (design.options.kind == ScheduleKind::kStaircase && !design.on_strips);
}

bool finishes_layer(const LayerDesign& design) { return design.options.kind == ScheduleKind::kTokenCentric; }

std::vector<Stage> layer_stages(const LayerDesign& design) {
  std::vector<Stage> stages;
  if (!design.fixed_routing) {
    stages = {Stage::kRouterProject, Stage::kRouterSelect};
  }
  if (groups_pairs(design) || design.on_strips) {
    stages.push_back(Stage::kSchedule);
  }
  if (design.shape.shared_size > 0) {
    stages.push_back(Stage::kSharedMlp);
  }
  if (combines_apart(design)) {
    stages.push_back(Stage::kExpertScores);
    stages.push_back(Stage::kExpertCombine);
  } else {
    stages.push_back(Stage::kExperts);
  }
  return stages;
}

std::int64_t LayerMemoryPlan::total_bytes() const {
  return hidden_states + router + experts + routing + output + working + shared_result + shared_scratch +
         schedule + exponents + scratch + token_workspace + library + shared_library;
}

LayerMemoryPlan plan_layer_memory(const LayerDesign& design) {
  const LayerShape& shape = design.shape;
  const ScheduleKind kind = design.options.kind;
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  const bool bf16 = shape.dtype == Dtype::kBF16;
  const bool dense = kind == ScheduleKind::kDenseMasked;
  LayerMemoryPlan plan;
  plan.hidden_states = outputs * dtype_bytes(shape.dtype);
  plan.router = design.fixed_routing ? 0 : RouterBuffers::required_bytes(shape);
  plan.experts = ExpertBuffers::required_bytes(shape);
  plan.routing = design.on_strips ? 0 : RoutingBuffers::required_bytes(shape);
  plan.output = bf16 ? outputs * dtype_bytes(shape.dtype) : 0;
  const std::int64_t logits =
      design.fixed_routing ? 0 : shape.num_tokens * (shape.grid_rows + shape.grid_cols) * kFloatBytes;
  plan.select_workspace_offset = align_up(logits);
  std::int64_t selection = logits;
  if (!design.fixed_routing && !design.on_strips) {
    selection = plan.select_workspace_offset + router_select_workspace_bytes(shape);
  }
  const std::int64_t sums = sums_bytes(design);
  plan.working = std::max(selection, sums);
  plan.library = dense ? CublasLt::kWorkspaceBytes : CublasLt::workspace_bytes(shape.num_tokens);
  if (shape.shared_size > 0) {
    plan.shared_result = outputs * kFloatBytes;
    plan.shared_scratch = shared_mlp_workspace_bytes(shape);
    plan.shared_library = CublasLt::workspace_bytes(shape.num_tokens);
  }
  ScheduleCapacity capacity;
  if (design.on_strips) {
    plan.schedule = strip_capacity(shape, design.options.strip_rule, design.options.tile_tokens).bytes;
    plan.exponents = shape.num_tokens * static_cast<std::int64_t>(sizeof(std::int32_t));
  } else if (groups_pairs(design)) {
    capacity = schedule_capacity(shape, design.options);
    plan.schedule = capacity.array_bytes;
  } else if (kind == ScheduleKind::kSparseLibrary) {
    plan.schedule = SparseLibrary::memory_bytes(shape);
  } else if (kind == ScheduleKind::kTokenCentric) {
    plan.token_workspace = token_centric_workspace_bytes(shape);
  }

  for (const Stage stage : layer_stages(design)) {
    std::int64_t scratch = 0;  // of this stage, in the buffer that stages use in turn
    std::int64_t other = 0;
    switch (stage) {
      case Stage::kRouterProject:
        other = logits + plan.library;
        break;
      case Stage::kRouterSelect:
        other = selection + (design.on_strips ? plan.schedule : 0);
        break;
      case Stage::kSchedule:
        scratch = capacity.workspace_bytes;
        other = plan.schedule;
        break;
      case Stage::kExpertScores:
        scratch = scores_bytes(shape);
        other = plan.schedule;
        break;
      case Stage::kExpertCombine:
        scratch = scores_bytes(shape);
        other = sums;
        break;
      case Stage::kExperts:
        scratch = dense ? dense_masked_workspace_bytes(shape) : 0;
        other = sums + plan.exponents + plan.schedule + plan.token_workspace + (dense ? plan.library : 0);
        break;
      case Stage::kSharedMlp:
        other = plan.shared_result + plan.shared_scratch + plan.shared_library;
        break;
      case Stage::kLayer:
        throw InternalError("the layer is no stage of its own");
    }
    plan.scratch = std::max(plan.scratch, scratch);
    plan.stages.push_back({stage, scratch + other});
  }
  // With fp32 storage the working buffer ends as the output: that part is not extra.
  const std::int64_t extra_working = plan.working - (bf16 ? 0 : outputs * kFloatBytes);
  plan.stages.push_back({Stage::kLayer, extra_working + plan.shared_result + plan.shared_scratch +
                                            plan.schedule + plan.exponents + plan.scratch +
                                            plan.token_workspace + plan.library + plan.shared_library});
  return plan;
}

}  // namespace moescope::cuda
