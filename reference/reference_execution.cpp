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
}

std::vector<StageTime> ReferenceExecution::run(L2State l2) {
  if (l2 == L2State::kCold) {
    const std::vector<std::byte> flush(kFlushBytes, std::byte{1});  // given back before the layer runs
  }
  std::vector<StageTime> times;
  std::vector<StageTime> layer;
  timed(layer, Stage::kLayer, [&] {
    if (!inputs_.fixed_routing) {
      RouterLogits logits;
      routing_ = {};
      timed(times, Stage::kRouterProject, [&] { logits = router_project(inputs_); });
      timed(times, Stage::kRouterSelect, [&] { routing_ = router_select(inputs_.shape, logits); });
    }
    schedule_ = {};
    timed(times, Stage::kSchedule, [&] { schedule_ = build(current_routing(), options_); });
    // The stage that ends the layer also rounds its output to storage, once.
    HostTensor y;
    const bool has_shared = inputs_.experts->shared.has_value();
    const auto finish_experts = [&] {
      if (!has_shared) {
        output_ = y.to(inputs_.shape.dtype);
      }
    };
    if (is_fused(options_.kind)) {
      timed(times, Stage::kExperts, [&] {
        y = experts(inputs_, current_routing(), schedule_);
        finish_experts();
      });
    } else {
      std::vector<float> scores;
      timed(times, Stage::kExpertScores,
            [&] { scores = expert_scores(inputs_, current_routing(), schedule_); });
      timed(times, Stage::kExpertCombine, [&] {
        y = expert_combine(inputs_, current_routing(), schedule_, scores);
        finish_experts();
      });
    }
    if (has_shared) {
      timed(times, Stage::kSharedMlp, [&] {
        add_in_place(y, shared_mlp(inputs_));
        output_ = y.to(inputs_.shape.dtype);
      });
    }
  });
  times.push_back(layer.front());
  return times;
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
