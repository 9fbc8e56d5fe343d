#include "reference/backend/reference_training.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/cost/auto_schedule.hpp"
#include "core/cost/memory_plan.hpp"
#include "reference/backend/cpu_rates.hpp"
#include "reference/stages/cpu_execution.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/host_needs.hpp"

namespace moescope::reference {
namespace {

/// log-sum-exp of every row, from a logit and its log-probability.
std::vector<float> row_lse(const HostTensor& logits, const HostTensor& log_p) {
  std::vector<float> lse;
  for (std::int64_t t = 0; t < logits.rows(); ++t) {
    lse.push_back(logits.f32().row(t)[0] - log_p.f32().row(t)[0]);
  }
  return lse;
}

/// The logits behind log-probabilities.
HostTensor logits_of(const HostTensor& log_p, const std::vector<float>& lse) {
  HostTensor logits = log_p.clone();
  for (std::int64_t t = 0; t < logits.rows(); ++t) {
    for (float& a : logits.f32().row_span(t)) {
      a += lse[static_cast<std::size_t>(t)];
    }
  }
  return logits;
}

std::int64_t vector_bytes(const auto& values) {
  return std::ssize(values) * static_cast<std::int64_t>(sizeof(values[0]));
}

/// The state, and W and V that it steps.
double optimizer_bytes(const LayerShape& shape, OptimizerForm optimizer) {
  if (optimizer == OptimizerForm::kNone) {
    return 0;
  }
  const std::int64_t elements = 2 * shape.num_experts() * shape.hidden_size;
  return static_cast<double>(optimizer_state_bytes(shape) + elements * dtype_bytes(shape.dtype));
}

RunningNorm fresh_norm(std::int64_t n) {
  return {std::vector<double>(static_cast<std::size_t>(n), 0.0),
          std::vector<double>(static_cast<std::size_t>(n), 1.0)};
}

}  // namespace

ReferenceTraining::ReferenceTraining(const LayerInputs& inputs, const HostTensor& dy,
                                     const ScheduleOptions& options, const TrainingOptions& training)
    : inputs_(inputs), dy_(dy), options_(options), training_(training) {
  inputs.validate();
  validate_training(inputs, dy, training);
  std::string why;
  if (!supports_schedule(options.kind, why)) {
    throw InvalidArgument("schedule", to_string(options.kind), why);
  }
  require_host_memory("the training step on the CPU",
                      cpu_training_bytes(inputs.shape, inputs.fixed_routing.has_value(), options,
                                         training.gradient_dtype(inputs.shape.dtype)) +
                          optimizer_bytes(inputs.shape, training.optimizer));
  if (training.batch_norm) {
    row_norm_ = fresh_norm(inputs.shape.grid_rows);
    col_norm_ = fresh_norm(inputs.shape.grid_cols);
  }
  stages_ =
      backward_stages(inputs.shape, inputs.fixed_routing.has_value(), training.save, training.optimizer);
  if (training.optimizer != OptimizerForm::kNone) {
    stepped_ = {inputs.experts->w_in.clone(), inputs.experts->w_out.clone()};
    w_in_optimizer_.emplace(stepped_.w_in, training.adamw);
    w_out_optimizer_.emplace(stepped_.w_out, training.adamw);
  }
  forward();
}

void ReferenceTraining::project() {
  log_p_ = router_project(inputs_);
  if (training_.batch_norm) {
    row_.statistics = normalise_logits(log_p_.row, training_.batch_norm->eps);
    col_.statistics = normalise_logits(log_p_.col, training_.batch_norm->eps);
  }
}

/// Selection from the logits, which become log-probabilities.
void ReferenceTraining::select() {
  routing_ = router_select(inputs_.shape, log_p_);
  RouterLogits logits;
  if (keeps_lse()) {
    logits = {log_p_.row.clone(), log_p_.col.clone()};
  }
  log_softmax_rows(log_p_.row);
  log_softmax_rows(log_p_.col);
  if (keeps_lse()) {
    row_.lse = row_lse(logits.row, log_p_.row);
    col_.lse = row_lse(logits.col, log_p_.col);
  }
}

void ReferenceTraining::forward() {
  if (!inputs_.fixed_routing) {
    project();
    if (training_.batch_norm) {
      const auto momentum = training_.batch_norm->momentum;
      row_norm_ = updated_norm(row_norm_, row_.statistics, inputs_.shape.num_tokens, momentum);
      col_norm_ = updated_norm(col_norm_, col_.statistics, inputs_.shape.num_tokens, momentum);
    }
    select();
  }
  if (options_.kind == ScheduleKind::kAuto) {
    options_ = choose_schedule(inputs_.shape, current_routing(), options_, cpu_rates(omp_get_max_threads()))
                   .schedule;
  }
  schedule_ = build(current_routing(), options_);
  HostTensor y = experts(inputs_, current_routing(), schedule_);
  if (inputs_.experts->shared) {
    add_in_place(y, shared_mlp(inputs_));
  }
  output_ = y.to(inputs_.shape.dtype);
  if (training_.save == SaveMode::kScores) {
    scores_ = saved_scores(inputs_, current_routing(), schedule_);
  }
  drop_recomputed();
}

/// Of a forward that keeps next to nothing: what the backward computes again.
void ReferenceTraining::drop_recomputed() {
  if (!inputs_.fixed_routing && training_.save == SaveMode::kMinimal) {
    log_p_ = {};
    row_ = {};
    col_ = {};
    schedule_ = {};
  }
}

std::vector<StageTime> ReferenceTraining::run(L2State l2) {
  if (l2 == L2State::kCold) {
    empty_cache();
  }
  const auto seconds_of = [](const auto& body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<StageTime> times;
  const double whole = seconds_of([&] {
    for (const Stage stage : stages_) {
      times.push_back({stage, seconds_of([&] { enqueue(stage); })});
    }
  });
  times.push_back({Stage::kLayer, whole});
  return times;
}

void ReferenceTraining::enqueue(Stage stage) {
  const auto& shape = inputs_.shape;
  if (stage == stages_.front()) {
    start_gradients();
    dx_ = HostTensor::zeros(Dtype::kF32, shape.num_tokens, shape.hidden_size);
  }
  switch (stage) {
    case Stage::kSharedMlpBackward: {
      SharedMlpWeights made =
          gated_mlp_backward(inputs_.hidden_states, dy_, *inputs_.experts->shared, shape.activation, dx_);
      if (!gradients_.shared) {
        gradients_.shared.emplace();
      }
      settle(gradients_.shared->gate, std::move(made.gate));
      settle(gradients_.shared->up, std::move(made.up));
      settle(gradients_.shared->down, std::move(made.down));
      break;
    }
    case Stage::kRouterProject:
      project();
      break;
    case Stage::kRouterSelect:
      select();
      break;
    case Stage::kSchedule:
      schedule_ = build(current_routing(), options_);
      break;
    case Stage::kExpertsDgrad:
      dgrad_ = experts_dgrad(inputs_, dy_, current_routing(), schedule_, scores_, dx_);
      gradients_.gates = std::move(dgrad_.gates);
      break;
    case Stage::kExpertsWgrad: {
      ExpertsWgrad made = experts_wgrad(inputs_, dy_, current_routing(), schedule_, dgrad_.p, dgrad_.q);
      dgrad_ = {};
      settle(gradients_.w_in, std::move(made.w_in));
      settle(gradients_.w_out, std::move(made.w_out));
      gradients_.touched_experts = touched_experts(current_routing());
      break;
    }
    case Stage::kRouterSelectBackward: {
      auto made = router_select_backward(shape, log_p_, routing_, gradients_.gates, training_.losses,
                                         row_.lse, col_.lse);
      gradients_.logits = std::move(made.logits);
      gradients_.balance_loss = made.balance_loss;
      gradients_.z_loss = made.z_loss;
      break;
    }
    case Stage::kRouterProjectBackward:
      project_backward();
      break;
    case Stage::kExpertsOptimizer:
      step_experts();
      break;
    default:
      throw InternalError(fmt::format("{} is no stage of a layer's backward", to_string(stage)));
  }
  if (stage == stages_.back()) {
    gradients_.hidden_states = dx_.to(shape.dtype);
    dx_ = {};
    drop_recomputed();
  }
}

void ReferenceTraining::project_backward() {
  RouterLogits before{gradients_.logits.row.clone(), gradients_.logits.col.clone()};
  if (training_.batch_norm) {
    const double eps = training_.batch_norm->eps;
    normalise_logits_backward(before.row, logits_of(log_p_.row, row_.lse), row_.statistics, eps);
    normalise_logits_backward(before.col, logits_of(log_p_.col, col_.lse), col_.statistics, eps);
  }
  RouterProjectBackward made = router_project_backward(inputs_, before, dx_);
  settle(gradients_.router_row, std::move(made.row));
  settle(gradients_.router_col, std::move(made.col));
  if (!inputs_.router.row_bias.empty()) {
    settle(gradients_.row_bias, std::move(made.row_bias));
  }
  if (!inputs_.router.col_bias.empty()) {
    settle(gradients_.col_bias, std::move(made.col_bias));
  }
}

MemoryPlan ReferenceTraining::plan() const {
  const bool has_bias = !inputs_.router.row_bias.empty();
  // What is computed again has the same size each time; where it is gone, it is built for its size.
  return schedule_.items.empty()
             ? training_memory_plan(inputs_.shape, current_routing(), build(current_routing(), options_),
                                    inputs_.fixed_routing.has_value(), has_bias, training_, kMirrorLayout)
             : training_memory_plan(inputs_.shape, current_routing(), schedule_,
                                    inputs_.fixed_routing.has_value(), has_bias, training_, kMirrorLayout);
}

std::vector<StageMemory> ReferenceTraining::memory() const {
  const MemoryPlan whole = plan();
  std::vector<StageMemory> memory;
  for (const Stage stage : stages_) {
    memory.push_back({stage, whole.working_bytes(stage)});
  }
  return memory;
}

std::int64_t ReferenceTraining::saved_bytes() const {
  std::int64_t bytes = vector_bytes(scores_);
  if (!schedule_.items.empty()) {
    bytes += schedule_.bytes();
  }
  if (inputs_.fixed_routing || training_.save == SaveMode::kMinimal) {
    return bytes;  // the routing is an input, or kept for those who ask for it alone
  }
  bytes += log_p_.row.bytes() + log_p_.col.bytes() + vector_bytes(routing_.expert_ids) +
           vector_bytes(routing_.gates) + vector_bytes(routing_.token_offsets);
  for (const Side* side : {&row_, &col_}) {
    bytes += vector_bytes(side->lse) + vector_bytes(side->statistics.mean) +
             vector_bytes(side->statistics.variance);
  }
  return bytes;
}

void ReferenceTraining::empty_cache() { const std::vector<std::byte> flush(kFlushBytes, std::byte{1}); }

std::string ReferenceTraining::kernels(Stage stage) const {
  return cpu_kernels(stage, stages_, options_.kind);
}

}  // namespace moescope::reference
