#include "kernels/layer/layer_plan.hpp"

#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);

/// Of a buffer that follows another in one allocation; cuBLASLt and 16-byte loads like it aligned.
constexpr std::int64_t align_up(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

std::vector<Stage> layer_stages(const ExpertPath& path) {
  std::vector<Stage> stages;
  if (!path.design().fixed_routing) {
    stages = {Stage::kRouterProject, Stage::kRouterSelect};
  }
  if (path.schedules()) {
    stages.push_back(Stage::kSchedule);
  }
  if (path.design().shape.shared_size > 0) {
    stages.push_back(Stage::kSharedMlp);
  }
  for (const Stage stage : path.expert_stages()) {
    stages.push_back(stage);
  }
  return stages;
}

std::int64_t LayerMemoryPlan::total_bytes() const {
  return hidden_states + router + experts + path.routing + output + working + shared_result + shared_scratch +
         path.schedule + path.extra + scratch + library + shared_library;
}

LayerMemoryPlan plan_layer_memory(const ExpertPath& path) {
  const LayerShape& shape = path.design().shape;
  const bool fixed_routing = path.design().fixed_routing;
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  const bool bf16 = shape.dtype == Dtype::kBF16;
  LayerMemoryPlan plan;
  plan.path = path.memory();
  plan.hidden_states = outputs * dtype_bytes(shape.dtype);
  plan.router = fixed_routing ? 0 : RouterBuffers::required_bytes(shape);
  plan.experts = ExpertBuffers::required_bytes(shape);
  plan.output = bf16 ? outputs * dtype_bytes(shape.dtype) : 0;
  const std::int64_t logits =
      fixed_routing ? 0 : shape.num_tokens * (shape.grid_rows + shape.grid_cols) * kFloatBytes;
  plan.select_workspace_offset = align_up(logits);
  const std::int64_t selection = fixed_routing || path.reads_logits()
                                     ? logits
                                     : plan.select_workspace_offset + plan.path.select_workspace;
  plan.working = std::max(selection, plan.path.sums);
  plan.library = std::max(plan.path.library, CublasLt::workspace_bytes(shape.num_tokens));
  if (shape.shared_size > 0) {
    plan.shared_result = outputs * kFloatBytes;
    plan.shared_scratch = shared_mlp_workspace_bytes(shape);
    plan.shared_library = CublasLt::workspace_bytes(shape.num_tokens);
  }
  for (const Stage stage : layer_stages(path)) {
    const std::int64_t scratch = path.scratch_bytes(stage);
    std::int64_t other = 0;
    switch (stage) {
      case Stage::kRouterProject:
        other = logits + plan.library;
        break;
      case Stage::kRouterSelect:
        other = selection + (path.reads_logits() ? plan.path.schedule : 0);
        break;
      case Stage::kSchedule:
      case Stage::kExpertScores:
        other = plan.path.schedule;
        break;
      case Stage::kExpertCombine:
        other = plan.path.sums;
        break;
      case Stage::kExperts:
        other = plan.path.sums + plan.path.extra + plan.path.schedule + plan.path.library;
        break;
      case Stage::kSharedMlp:
        other = plan.shared_result + plan.shared_scratch + plan.shared_library;
        break;
      default:
        throw InternalError("no stage of a layer's forward");
    }
    plan.scratch = std::max(plan.scratch, scratch);
    plan.stages.push_back({stage, scratch + other});
  }
  // With fp32 storage the working buffer ends as the output: that part is not extra.
  const std::int64_t extra_working = plan.working - (bf16 ? 0 : outputs * kFloatBytes);
  plan.stages.push_back({Stage::kLayer, extra_working + plan.shared_result + plan.shared_scratch +
                                            plan.path.schedule + plan.path.extra + plan.scratch +
                                            plan.library + plan.shared_library});
  return plan;
}

}  // namespace moescope::cuda
