#include "kernels/training/training_plan.hpp"

#include <algorithm>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/training/training_optimizer.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);
constexpr std::int64_t kDoubleBytes = sizeof(double);

/// Scratch of a stage that every road runs alike.
std::int64_t common_scratch(const LayerShape& shape, const TrainingOptions& training, bool has_bias,
                            Stage stage) {
  const std::int64_t sums = training.batch_norm || has_bias ? column_sums_workspace_bytes(shape) : 0;
  switch (stage) {
    case Stage::kRouterProject:
      return training.batch_norm ? sums : 0;
    case Stage::kSharedMlpBackward:
      return shared_mlp_backward_workspace_bytes(shape);
    case Stage::kRouterSelectBackward:
      return router_losses_workspace_bytes(shape, training.losses);
    case Stage::kRouterProjectBackward:
      return std::max(sums, router_project_backward_workspace_bytes(shape));
    default:
      return 0;
  }
}

}  // namespace

std::vector<Stage> training_stages(const BackwardPath& path, const TrainingOptions& training) {
  const BackwardDesign& design = path.design();
  std::vector<Stage> stages =
      backward_stages(design.shape, design.fixed_routing, design.save, training.optimizer);
  if (!path.schedules()) {
    std::erase(stages, Stage::kSchedule);
  }
  return stages;
}

TrainingSizes training_sizes(const BackwardPath& path, const TrainingOptions& training, bool has_bias) {
  const BackwardDesign& design = path.design();
  const LayerShape& shape = design.shape;
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  const std::int64_t sides = shape.grid_rows + shape.grid_cols;
  const std::int64_t gradient = dtype_bytes(design.gradients);
  const bool router = !design.fixed_routing;
  TrainingSizes sizes;
  sizes.logits = router ? shape.num_tokens * sides : 0;
  sizes.lse = design.needs_lse ? 2 * shape.num_tokens : 0;
  sizes.statistics = training.batch_norm ? 2 * sides : 0;
  sizes.dx_sums = outputs;
  sizes.dx_bytes = shape.dtype == Dtype::kF32 ? 0 : outputs * dtype_bytes(shape.dtype);
  sizes.expert_gradient_bytes = shape.num_experts() * shape.hidden_size * gradient;
  sizes.logits_gradient = sizes.logits;
  sizes.before_norm = training.batch_norm ? sizes.logits : 0;
  sizes.router_gradient_bytes = router ? sides * shape.hidden_size * gradient : 0;
  sizes.bias_gradient = router && has_bias ? sides : 0;
  sizes.shared_gate_up_bytes = 2 * shape.shared_size * shape.hidden_size * gradient;
  sizes.shared_down_bytes = shape.shared_size * shape.hidden_size * gradient;
  sizes.loads = training.losses.balance > 0 ? shape.num_experts() : 0;
  sizes.losses = training.losses.any() ? 2 : 0;
  std::vector<Stage> all = training_stages(path, training);
  if (router) {  // of the forward, once
    all.insert(all.end(), {Stage::kRouterProject, Stage::kRouterSelect});
  }
  for (const Stage stage : all) {
    sizes.scratch_bytes = std::max(
        {sizes.scratch_bytes, path.scratch_bytes(stage), common_scratch(shape, training, has_bias, stage)});
  }
  return sizes;
}

MemoryPlan plan_training_memory(const BackwardPath& path, const TrainingOptions& training, bool has_bias) {
  const BackwardDesign& design = path.design();
  const LayerShape& shape = design.shape;
  const TrainingSizes sizes = training_sizes(path, training, has_bias);
  const std::int64_t inputs = shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype);
  const MemoryPart kept = design.selects_again() ? MemoryPart::kWorking : MemoryPart::kSaved;
  const bool fp32 = shape.dtype == Dtype::kF32;
  MemoryPlan plan;
  plan.stages = training_stages(path, training);
  const auto add = [&](MemoryPart part, std::string_view what, std::int64_t bytes) {
    if (bytes > 0) {
      plan.terms.push_back({part, what, bytes});
    }
  };
  add(MemoryPart::kInput, "X", inputs);
  add(MemoryPart::kInput, "dY", inputs);
  add(MemoryPart::kInput, "experts and shared MLP", ExpertBuffers::required_bytes(shape));
  if (!design.fixed_routing) {
    add(MemoryPart::kInput, "router", RouterBuffers::required_bytes(shape));
    add(MemoryPart::kWorking, "first logit that is not finite", sizeof(std::int64_t));
  }
  add(kept, "log-probabilities", sizes.logits * kFloatBytes);
  add(kept, "log-sum-exps", sizes.lse * kFloatBytes);
  add(kept, "batch statistics", sizes.statistics * kDoubleBytes);
  add(fp32 ? MemoryPart::kGradient : MemoryPart::kWorking, fp32 ? "dX" : "sums of dX",
      sizes.dx_sums * kFloatBytes);
  add(MemoryPart::kGradient, "dX", sizes.dx_bytes);
  add(MemoryPart::kGradient, "dW and dV", 2 * sizes.expert_gradient_bytes);
  add(MemoryPart::kWorking, "logits' gradients", (sizes.logits_gradient + sizes.before_norm) * kFloatBytes);
  add(MemoryPart::kGradient, "dWr and dWc", sizes.router_gradient_bytes);
  add(MemoryPart::kGradient, "biases' gradients", sizes.bias_gradient * kFloatBytes);
  add(MemoryPart::kGradient, "shared MLP's gradients", sizes.shared_gate_up_bytes + sizes.shared_down_bytes);
  add(MemoryPart::kWorking, "pairs of every expert",
      sizes.loads * static_cast<std::int64_t>(sizeof(std::int32_t)));
  add(MemoryPart::kWorking, "losses", sizes.losses * kDoubleBytes);
  if (training.optimizer != OptimizerForm::kNone) {
    add(MemoryPart::kInput, "optimizer's state", TrainingOptimizer::state_bytes(shape));
    add(MemoryPart::kGradient, "W and V after the step", TrainingOptimizer::weight_bytes(shape));
  }
  for (const MemoryTerm& term : path.memory()) {
    add(term.part, term.what, term.bytes);
  }
  add(MemoryPart::kWorking, "scratch that stages use in turn", sizes.scratch_bytes);
  add(MemoryPart::kWorking, "cuBLASLt's workspace", CublasLt::kWorkspaceBytes);
  for (MemoryTerm& term : plan.terms) {
    term.first = plan.stages.front();
    term.last = plan.stages.back();
  }
  return plan;
}

}  // namespace moescope::cuda
