#include "reference/backend/reference_execution.hpp"

#include <fmt/format.h>
#include <omp.h>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/cost/auto_schedule.hpp"
#include "reference/backend/cpu_rates.hpp"
#include "reference/stages/dense_masked.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/host_needs.hpp"

namespace moescope::reference {
namespace {

/// Workspace of every stage, from the shape alone, as far as it is known before a run.
std::vector<StageMemory> workspace_bounds(const LayerInputs& inputs, ScheduleKind kind) {
  const auto& shape = inputs.shape;
  const auto f32 = dtype_bytes(Dtype::kF32);
  const auto pairs = shape.num_pairs();
  const auto output_bytes = shape.num_tokens * shape.hidden_size * f32;
  std::vector<StageMemory> memory;
  if (!inputs.fixed_routing) {
    memory.push_back({Stage::kRouterProject, shape.num_tokens * (shape.grid_rows + shape.grid_cols) * f32});
    memory.push_back(
        {Stage::kRouterSelect, omp_get_max_threads() * (shape.grid_rows + shape.grid_cols) * 5 * f32});
  }
  // sorted_pair_ids, and at most one (token, offset) per pair
  memory.push_back({Stage::kSchedule, pairs * (8 + 8 + 4)});
  if (is_fused(kind)) {
    memory.push_back({Stage::kExperts, output_bytes});
  } else {
    const auto blocks = dense_workspace_bytes(shape, omp_get_max_threads());
    memory.push_back({Stage::kExpertScores, blocks + pairs * f32});
    memory.push_back({Stage::kExpertCombine, blocks + output_bytes});
  }
  if (shape.shared_size > 0) {
    const auto hidden_bytes = shape.num_tokens * shape.shared_size * f32;
    memory.push_back({Stage::kSharedMlp, 2 * hidden_bytes + output_bytes});
  }
  return memory;
}

void require_memory(const LayerInputs& inputs, const ScheduleOptions& options) {
  const HostNeeds needs = cpu_execution_needs(inputs.shape, inputs.fixed_routing.has_value(), options);
  require_host_memory("the layer on the CPU", needs.kept + needs.passing);
}

}  // namespace

ReferenceExecution::ReferenceExecution(const LayerInputs& inputs, const ScheduleOptions& options,
                                       const Routing* known)
    : CpuExecution(inputs.shape.dtype), inputs_(inputs), options_(options) {
  inputs.validate();
  std::string why;
  if (!supports_schedule(options.kind, why)) {
    throw InvalidArgument("schedule", to_string(options.kind), why);
  }
  require_memory(inputs, options);
  if (options.kind == ScheduleKind::kAuto) {
    if (!inputs.fixed_routing && known == nullptr) {
      routing_ = router_select(inputs.shape, router_project(inputs));
    }
    const ScheduleChoice choice = choose_schedule(inputs.shape, known != nullptr ? *known : current_routing(),
                                                  options, cpu_rates(omp_get_max_threads()));
    options_ = choice.schedule;
    explanation_ = choice.explanation();
  }
  if (!inputs.fixed_routing) {
    stages_ = {Stage::kRouterProject, Stage::kRouterSelect};
  }
  stages_.push_back(Stage::kSchedule);
  if (is_fused(options_.kind)) {
    stages_.push_back(Stage::kExperts);
  } else {
    stages_.push_back(Stage::kExpertScores);
    stages_.push_back(Stage::kExpertCombine);
  }
  if (inputs.experts->shared.has_value()) {
    stages_.push_back(Stage::kSharedMlp);
  }
}

void ReferenceExecution::compute(Stage stage) {
  switch (stage) {
    case Stage::kRouterProject:
      routing_ = {};
      logits_ = router_project(inputs_);
      break;
    case Stage::kRouterSelect:
      routing_ = router_select(inputs_.shape, logits_);
      logits_ = {};
      break;
    case Stage::kSchedule:
      schedule_ = {};
      schedule_ = build(current_routing(), options_);
      break;
    case Stage::kExpertScores:
      scores_ = expert_scores(inputs_, current_routing(), schedule_);
      break;
    case Stage::kExpertCombine:
      y_ = expert_combine(inputs_, current_routing(), schedule_, scores_);
      scores_ = {};
      break;
    case Stage::kExperts:
      y_ = experts(inputs_, current_routing(), schedule_);
      break;
    case Stage::kSharedMlp:
      add_in_place(y_, shared_mlp(inputs_));
      break;
    default:
      throw InternalError(fmt::format("{} is no stage of a layer's forward", to_string(stage)));
  }
}

std::string ReferenceExecution::kernels(Stage stage) const {
  return cpu_kernels(stage, stages_, options_.kind);
}

StageData ReferenceExecution::run_alone(Stage stage, const StageData& given) {
  StageData left;
  left.kernels = kernels(stage);
  if (stage != Stage::kRouterProject && stage != Stage::kRouterSelect && stage != Stage::kSharedMlp) {
    given.routing.validate();
    left.routing = given.routing;
    left.schedule = build(given.routing, options_);
  }
  switch (stage) {
    case Stage::kRouterProject:
      left.logits = router_project(inputs_);
      break;
    case Stage::kRouterSelect:
      left.routing = router_select(inputs_.shape, given.logits);
      break;
    case Stage::kSchedule:
      break;
    case Stage::kExpertScores:
      left.scores = expert_scores(inputs_, left.routing, left.schedule);
      break;
    case Stage::kExpertCombine:
      left.y = expert_combine(inputs_, left.routing, left.schedule, given.scores);
      break;
    case Stage::kExperts:
      left.y = experts(inputs_, left.routing, left.schedule);
      break;
    case Stage::kSharedMlp:
      left.y = shared_mlp(inputs_);
      break;
    default:
      throw InternalError(fmt::format("{} is no stage of a layer's forward", to_string(stage)));
  }
  return left;
}

std::vector<StageMemory> ReferenceExecution::memory() const {
  auto memory = workspace_bounds(inputs_, options_.kind);
  for (auto& stage : memory) {
    if (stage.stage == Stage::kSchedule && !schedule_.items.empty()) {
      stage.workspace_bytes = schedule_.bytes();
    }
  }
  return memory;
}

}  // namespace moescope::reference
