#include "reference/reference_execution.hpp"

#include <omp.h>

#include <chrono>

#include "core/auto_schedule.hpp"
#include "core/error.hpp"
#include "core/host_memory.hpp"
#include "reference/cpu_rates.hpp"
#include "reference/dense_masked.hpp"
#include "reference/stages.hpp"

namespace moescope::reference {
namespace {

constexpr std::size_t kFlushBytes = std::size_t{64}
                                    << 20;  // above the last-level cache share of today's CPUs

/// Workspace of every stage, from the shape alone: upper bounds, so that prepare() can refuse before it
/// allocates.
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

void require_memory(const LayerInputs& inputs, ScheduleKind kind) {
  const auto& shape = inputs.shape;
  std::int64_t need = shape.num_pairs() * 8 + shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype);
  for (const auto& stage : workspace_bounds(inputs, kind)) {
    need += stage.workspace_bytes;
  }
  const auto have = available_host_memory_bytes();
  if (static_cast<std::uint64_t>(need) > have) {
    throw OutOfMemory("the layer on the CPU", static_cast<std::uint64_t>(need), have);
  }
}

/// Runs `body` and records its time as `stage`.
template <class Body>
void timed(std::vector<StageTime>& times, Stage stage, const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  times.push_back({stage, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
}

void add_in_place(HostTensor& sum, const HostTensor& term) {
  const auto to = sum.f32();
  const auto from = term.f32();
#pragma omp parallel for
  for (std::int64_t i = 0; i < to.size(); ++i) {
    to.data[i] += from.data[i];
  }
}

}  // namespace

ReferenceExecution::ReferenceExecution(const LayerInputs& inputs, const ScheduleOptions& options)
    : inputs_(inputs), options_(options) {
  inputs.validate();
  std::string why;
  if (!supports_schedule(options.kind, why)) {
    throw InvalidArgument("schedule", to_string(options.kind), why);
  }
  require_memory(inputs, options.kind);
  if (options.kind == ScheduleKind::kAuto) {
    if (!inputs.fixed_routing) {
      routing_ = router_select(inputs.shape, router_project(inputs));
    }
    options_.kind =
        choose_schedule(inputs.shape, current_routing(), options, cpu_rates(omp_get_max_threads())).kind;
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

std::vector<StageTime> ReferenceExecution::run(L2State l2) {
  if (l2 == L2State::kCold) {
    empty_cache();
  }
  std::vector<StageTime> times;
  std::vector<StageTime> layer;
  timed(layer, Stage::kLayer, [&] {
    for (const Stage stage : stages_) {
      timed(times, stage, [&] { enqueue(stage); });
    }
  });
  times.push_back(layer.front());
  return times;
}

void ReferenceExecution::empty_cache() {
  const std::vector<std::byte> flush(kFlushBytes, std::byte{1});  // given back before the layer runs
}

void ReferenceExecution::enqueue(Stage stage) {
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
      finish(stage);
      break;
    case Stage::kExperts:
      y_ = experts(inputs_, current_routing(), schedule_);
      finish(stage);
      break;
    case Stage::kSharedMlp:
      add_in_place(y_, shared_mlp(inputs_));
      finish(stage);
      break;
    case Stage::kLayer:
      throw InternalError("the layer is no stage of its own");
  }
}

/// The stage that ends the layer also rounds its output to storage, once.
void ReferenceExecution::finish(Stage stage) {
  if (stage == stages_.back()) {
    output_ = y_.to(inputs_.shape.dtype);
    y_ = {};
  }
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
