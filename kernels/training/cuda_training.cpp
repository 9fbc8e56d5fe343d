#include "kernels/training/cuda_training.hpp"

#include <fmt/format.h>

#include "kernels/runtime/host_copy.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

bool has_bias(const LayerInputs& inputs) {
  return !inputs.router.row_bias.empty() || !inputs.router.col_bias.empty();
}

/// One side's running averages after the first batch.
RunningNorm first_norm(const double* mean, const double* variance, std::int64_t count,
                       std::int64_t num_tokens, double momentum) {
  RunningNorm norm;
  const auto tokens = static_cast<double>(num_tokens);
  for (std::int64_t i = 0; i < count; ++i) {
    norm.mean.push_back(momentum * mean[i]);
    norm.variance.push_back(1 + momentum * (variance[i] * tokens / (tokens - 1) - 1));
  }
  return norm;
}

}  // namespace

CudaTraining::CudaTraining(std::shared_ptr<DeviceContext> context,
                           std::shared_ptr<const ExpertBuffers> experts, const LayerInputs& inputs,
                           const HostTensor& dy, const TrainingOptions& training,
                           std::unique_ptr<BackwardPath> path, const ForwardOutput& forward,
                           std::string explanation)
    : GraphedExecution(std::move(context), training_stages(*path, training)),
      experts_(std::move(experts)),
      inputs_(inputs),
      training_(training),
      path_(std::move(path)),
      explanation_(std::move(explanation)),
      sizes_(training_sizes(*path_, training, has_bias(inputs))),
      plan_(plan_training_memory(*path_, training, has_bias(inputs))),
      hidden_states_(upload(inputs.hidden_states, stream())),
      dy_(upload(dy, stream())),
      logits_(make_filled<float>(sizes_.logits, stream())),
      lse_(make_filled<float>(sizes_.lse, stream())),
      statistics_(make_filled<double>(sizes_.statistics, stream())),
      dx_sums_(make_filled<float>(sizes_.dx_sums, stream())),
      dx_(make_filled<std::byte>(sizes_.dx_bytes, stream())),
      w_in_gradient_(make_filled<std::byte>(sizes_.expert_gradient_bytes, stream())),
      w_out_gradient_(make_filled<std::byte>(sizes_.expert_gradient_bytes, stream())),
      logits_gradient_(make_filled<float>(sizes_.logits_gradient, stream())),
      before_norm_(make_filled<float>(sizes_.before_norm, stream())),
      router_gradient_(make_filled<std::byte>(sizes_.router_gradient_bytes, stream())),
      bias_gradient_(make_filled<float>(sizes_.bias_gradient, stream())),
      shared_gate_up_gradient_(make_filled<std::byte>(sizes_.shared_gate_up_bytes, stream())),
      shared_down_gradient_(make_filled<std::byte>(sizes_.shared_down_bytes, stream())),
      loads_(make_filled<std::int32_t>(sizes_.loads, stream())),
      losses_(make_filled<double>(sizes_.losses, stream())),
      scratch_(make_filled<std::byte>(sizes_.scratch_bytes, stream())),
      last_of_dx_(stages_.back() != Stage::kExpertsOptimizer ? stages_.back()
                                                             : stages_[stages_.size() - 2]) {
  if (has_router()) {
    router_ = RouterBuffers(shape(), inputs.router, stream());
    bad_logit_ = make_filled<std::int64_t>(1, stream());  // -1: none
  }
  experts_->describe(weights_);
  router_.describe(weights_);
  path_->prepare({.hidden_states = hidden_states_.get(),
                  .dy = dy_.get(),
                  .weights = &weights_,
                  .logits = logits_.get(),
                  .lse = lse_.get(),
                  .bad_logit = bad_logit_.get(),
                  .dx = dx_sums_.get(),
                  .dx_holds = shape().shared_size > 0,
                  .w_in_gradient = w_in_gradient_.get(),
                  .w_out_gradient = w_out_gradient_.get(),
                  .logits_gradient = logits_gradient_.get(),
                  .scratch = scratch_.get(),
                  .blas = &blas_},
                 stream());
  if (training_.optimizer != OptimizerForm::kNone) {
    optimizer_ = TrainingOptimizer(shape(), training_.adamw, weights_, path_->design().gradients,
                                   w_in_gradient_.get(), w_out_gradient_.get(), stream());
  }
  run_router();
  output_ = forward(path_->routing(stream()));
  clear_gradients();
  capture();
  // It has run every stage once.
  clear_gradients();
  optimizer_.restart(stream());
}

/// What every run adds to.
void CudaTraining::clear_gradients() {
  if (!adds()) {
    return;
  }
  const auto clear = [&](const auto& buffer) {
    if (buffer.count() > 0) {
      MOESCOPE_CUDA_CHECK(
          cudaMemsetAsync(buffer.get(), 0, static_cast<std::size_t>(buffer.bytes()), stream()));
    }
  };
  for (const Bytes* bytes : {&w_in_gradient_, &w_out_gradient_, &router_gradient_,
                             &shared_gate_up_gradient_, &shared_down_gradient_}) {
    clear(*bytes);
  }
  clear(bias_gradient_);
}

/// The forward up to the selection, and what it saves.
void CudaTraining::run_router() {
  if (has_router()) {
    project(stream());
    path_->enqueue(Stage::kRouterSelect, stream());
    check_logits();
    if (training_.batch_norm) {
      update_norms();
    }
  } else {
    path_->set_routing(*inputs_.fixed_routing, stream());
  }
  if (path_->schedules()) {
    path_->enqueue(Stage::kSchedule, stream());
  }
  path_->fit(stream());
  plan_ = plan_training_memory(*path_, training_, has_bias(inputs_));
  if (training_.save == SaveMode::kScores) {
    path_->save_scores(stream());
  }
  synchronize();
}

DeviceNorm CudaTraining::norm() const {
  return {.mean = statistics_.get(),
          .variance = statistics_.get() + shape().grid_rows + shape().grid_cols,
          .eps = training_.batch_norm->eps};
}

void CudaTraining::project(cudaStream_t stream) {
  launch_router_project(blas_, shape(), hidden_states_.get(), weights_, logits_.get(), stream);
  if (training_.batch_norm) {
    launch_router_norm(shape(), logits_.get(), norm(), scratch_.get(), stream);
  }
}

void CudaTraining::update_norms() {
  const auto statistics = copy_to_host(statistics_.get(), statistics_.count(), stream());
  const std::int64_t rows = shape().grid_rows;
  const std::int64_t cols = shape().grid_cols;
  const double* const mean = statistics.data();
  const double* const variance = mean + rows + cols;
  const double momentum = training_.batch_norm->momentum;
  row_norm_ = first_norm(mean, variance, rows, shape().num_tokens, momentum);
  col_norm_ = first_norm(mean + rows, variance + rows, cols, shape().num_tokens, momentum);
}

void CudaTraining::enqueue(Stage stage) { enqueue(stage, stream()); }

void CudaTraining::enqueue(Stage stage, cudaStream_t stream) {
  stale_ = true;
  const StageRange range(stage);  // around what several launchers do
  switch (stage) {
    case Stage::kSharedMlpBackward:
      launch_shared_mlp_backward(blas_, shape(), hidden_states_.get(), dy_.get(), weights_,
                                 {.dtype = path_->design().gradients,
                                  .gate_up = shared_gate_up_gradient_.get(),
                                  .down = shared_down_gradient_.get(),
                                  .adds = adds()},
                                 dx_sums_.get(), scratch_.get(), stream);
      break;
    case Stage::kRouterProject:
      project(stream);
      break;
    case Stage::kRouterSelectBackward:
      backward_of_selection(stream);
      break;
    case Stage::kRouterProjectBackward:
      backward_of_projection(stream);
      break;
    case Stage::kExpertsOptimizer:
      step_experts(stream);
      break;
    default:
      path_->enqueue(stage, stream);
  }
  if (stage == last_of_dx_) {
    round_dx(stream);
  }
}

void CudaTraining::round_dx(cudaStream_t stream) const {
  if (shape().dtype == Dtype::kBF16) {
    launch_round_output(shape(), dx_sums_.get(), nullptr, dx_.get(), stream);
  }
}

void CudaTraining::step_experts(cudaStream_t stream) const {
  const bool touched = training_.optimizer == OptimizerForm::kTouched;
  optimizer_.enqueue(
      touched ? OptimizerRows{path_->touched(), path_->touched_count()} : OptimizerRows{}, stream);
}

void CudaTraining::backward_of_selection(cudaStream_t stream) {
  path_->enqueue(Stage::kRouterSelectBackward, stream);
  if (!training_.losses.any()) {
    return;
  }
  if (training_.losses.balance > 0) {
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(loads_.get(), 0, static_cast<std::size_t>(loads_.bytes()), stream));
    path_->enqueue_loads(loads_.get(), stream);
  }
  launch_router_losses(blas_, shape(), training_.losses, path_->log_probs(), lse_.get(), loads_.get(),
                       logits_gradient_.get(), losses_.get(), scratch_.get(), stream);
}

void CudaTraining::backward_of_projection(cudaStream_t stream) {
  const float* gradient = logits_gradient_.get();
  if (bias_gradient_.count() > 0) {
    launch_column_sums(shape(), gradient, bias_gradient_.get(), scratch_.get(), stream, adds());
  }
  if (training_.batch_norm) {
    launch_router_norm_backward(shape(), path_->log_probs(), lse_.get(), norm(), gradient, before_norm_.get(),
                                scratch_.get(), stream);
    gradient = before_norm_.get();
  }
  launch_router_project_backward(blas_, shape(), hidden_states_.get(), weights_, gradient,
                                 {.dtype = path_->design().gradients,
                                  .matrix = router_gradient_.get(),
                                  .adds = adds()},
                                 dx_sums_.get(), scratch_.get(), stream);
}

/// The sort of the pairs, which the weights' gradients need, runs beside the data gradients. Where these
/// leave the scratch alone, they and the optimizer's step run beside the router's backward.
void CudaTraining::enqueue_overlapped() {
  const bool beside = path_->prepares_wgrad();
  const bool apart = beside && path_->wgrad_stays_apart();
  for (const Stage stage : stages_) {
    if (beside && stage == Stage::kExpertsDgrad) {
      fork();
      path_->prepare_wgrad(side_stream());
    }
    if (beside && stage == Stage::kExpertsWgrad) {
      join();
      if (apart) {
        fork();
      }
      stale_ = true;
      path_->enqueue_prepared_wgrad(apart ? side_stream() : stream());
      if (stage == last_of_dx_) {
        round_dx(stream());
      }
    } else {
      enqueue(stage, apart && stage == Stage::kExpertsOptimizer ? side_stream() : stream());
    }
  }
  if (apart) {
    join();
  }
}

std::string CudaTraining::kernels(Stage stage) const {
  const std::string rounds = stage == last_of_dx_ && shape().dtype == Dtype::kBF16 ? " + round_output" : "";
  switch (stage) {
    case Stage::kLayer: {
      std::string all;
      for (const Stage own : stages_) {
        all += (all.empty() ? "" : " + ") + kernels(own);
      }
      return all;
    }
    case Stage::kSharedMlpBackward:
      return "shared_mlp_backward";
    case Stage::kRouterProject:
      return training_.batch_norm ? "router_project + router_norm" : "router_project";
    case Stage::kRouterSelectBackward:
      return path_->kernels(stage) + (training_.losses.any() ? " + router_losses" : "");
    case Stage::kRouterProjectBackward:
      return (training_.batch_norm ? "router_norm_backward + " : "") +
             std::string("router_project_backward") + rounds;
    case Stage::kExpertsOptimizer:
      return training_.optimizer == OptimizerForm::kTouched ? "experts_optimizer<touched>"
                                                            : "experts_optimizer<dense>";
    default:
      return path_->kernels(stage) + rounds;
  }
}

std::vector<StageMemory> CudaTraining::memory() const {
  std::vector<StageMemory> memory;
  for (const Stage stage : stages_) {
    memory.push_back({stage, plan_.working_bytes(stage)});
  }
  return memory;
}

std::int64_t CudaTraining::allocated_bytes() const {
  const std::int64_t weights =
      ExpertBuffers::required_bytes(shape()) + (has_router() ? RouterBuffers::required_bytes(shape()) : 0);
  return weights + hidden_states_.bytes() + dy_.bytes() + bad_logit_.bytes() + logits_.bytes() +
         lse_.bytes() + statistics_.bytes() + dx_sums_.bytes() + dx_.bytes() + w_in_gradient_.bytes() +
         w_out_gradient_.bytes() + logits_gradient_.bytes() + before_norm_.bytes() +
         router_gradient_.bytes() + bias_gradient_.bytes() + shared_gate_up_gradient_.bytes() +
         shared_down_gradient_.bytes() + loads_.bytes() + losses_.bytes() + scratch_.bytes() +
         optimizer_.allocated_bytes() +
         path_->allocated_bytes() + CublasLt::kWorkspaceBytes;
}

std::int64_t CudaTraining::take_bad_logit() {
  const std::int64_t bad = copy_to_host(bad_logit_.get(), 1, stream()).front();
  if (bad >= 0) {
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(bad_logit_.get(), 0xff, static_cast<std::size_t>(bad_logit_.bytes()), stream()));
  }
  return bad;
}

void CudaTraining::check_logits() {
  stale_ = true;
  if (has_router() && take_bad_logit() >= 0) {
    project(stream());  // log-probabilities have taken the place of the logits
    throw_bad_logit(download_logits(shape(), logits_.get(), stream()));
  }
}

}  // namespace moescope::cuda
