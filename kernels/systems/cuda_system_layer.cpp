#include "kernels/systems/cuda_system_layer.hpp"

#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

CudaSystemLayer::CudaSystemLayer(std::shared_ptr<DeviceContext> context, const SystemInputs& inputs,
                                 const SystemDesign& design)
    : GraphedLayer(std::move(context),
                   system_layer_stages(design.shape.system, design.fixed_routing, design.ffn_kind)),
      design_(design),
      plan_(plan_system_memory(design)),
      blas_(plan_.library),
      mlp_blas_(plan_.mlp_library),
      hidden_states_(upload(inputs.hidden_states, stream())),
      weights_(design.shape, *inputs.weights, stream()),
      output_(make_filled<std::byte>(plan_.output, stream())),
      working_(make_filled<std::byte>(plan_.working, stream())),
      mlp_scratch_(make_filled<std::byte>(plan_.mlp_scratch, stream())),
      mlp_result_(make_filled<float>(plan_.mlp_result / static_cast<std::int64_t>(sizeof(float)), stream())),
      token_workspace_(plan_.token_workspace) {
  if (shape().has_routing()) {
    // K per token in all: of product keys, the heads' one after the other.
    routing_.emplace(shape().row_shape());
    bad_logit_ = make_filled<std::int64_t>(1, stream());  // -1: none
    if (inputs.fixed_routing) {
      routing_->upload(*inputs.fixed_routing, stream());
    }
  }
  if (shape().has_ffn_experts()) {
    ffn_.emplace(design_.ffn(), stream());
  }
  if (design_.fused_mlp) {
    mlp_tiles_ = DenseTiles(shape().num_tokens, stream());
  }
  if (token_workspace_.bytes() > 0) {
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(token_workspace_.get(), 0,
                                        static_cast<std::size_t>(token_workspace_.bytes()), stream()));
  }
  capture();
}

ScheduleOptions CudaSystemLayer::schedule_options() const {
  ScheduleOptions options = system_schedule(shape().system);
  if (shape().has_ffn_experts()) {
    options.kind = design_.ffn_kind;
    options.tokens = design_.tokens;
  } else if (design_.masked) {
    options.kind = ScheduleKind::kDenseMasked;
  }
  return options;
}

const TokenAssignment* CudaSystemLayer::assignment() const {
  if (!ffn_ || !design_.ffn().ruled()) {
    return nullptr;
  }
  assignment_ = ffn_->assignment(routing_->download(shape().row_shape(), stream()), stream());
  return &*assignment_;
}

ExpertOutput CudaSystemLayer::expert_output() const {
  const bool bf16 = shape().dtype == Dtype::kBF16;
  return {.y = bf16 ? nullptr : reinterpret_cast<float*>(output_.get()),
          .addend = mlp_result_.get(),
          .rounded = bf16 ? output_.get() : nullptr};
}

void CudaSystemLayer::enqueue_overlapped() {
  const bool beside = has(Stage::kSharedMlp) && has(Stage::kRouterProject);
  for (const Stage stage : stages_) {
    if (stage == Stage::kSharedMlp && beside) {
      continue;
    }
    if (stage == stages_.back() && beside) {
      join();
    }
    enqueue(stage, stream());
    if (stage == Stage::kRouterProject && beside) {  // behind it: see CudaLayer::enqueue_overlapped
      fork();
      enqueue(Stage::kSharedMlp, side_stream());
    }
  }
}

void CudaSystemLayer::enqueue(Stage stage, cudaStream_t stream) {
  switch (stage) {
    case Stage::kRouterProject:
      project(stream);
      break;
    case Stage::kRouterSelect:
      select(stream);
      break;
    case Stage::kSchedule:
      ffn_->enqueue_schedule(routing_->view(), logits(), stream);
      break;
    case Stage::kExperts:
      if (shape().has_ffn_experts()) {
        ffn_->enqueue_experts(hidden_states_.get(), {weights_.gate_up(), weights_.down()}, routing_->view(),
                              working_.get(), expert_output(), stream);
      } else if (design_.masked) {
        run_masked_experts(stream);
      } else {
        launch_experts_token_centric(shape().row_shape(), hidden_states_.get(), weights_.describe(),
                                     routing_->view(), token_workspace_.get(), expert_output(), stream);
      }
      break;
    case Stage::kExpertCombine: {
      if (design_.masked) {
        run_masked_experts(stream);
        break;
      }
      const StageRange range(stage);
      launch_row_sums(shape().row_shape(), weights_.describe().w_out, routing_->view().expert_ids,
                      routing_->view().gates, expert_output(), stream);
      break;
    }
    case Stage::kSharedMlp:
      run_mlp(stream);
      break;
    default:
      throw InternalError("baselines have no such stage");
  }
}

void CudaSystemLayer::project(cudaStream_t stream) {
  if (shape().has_product_keys()) {
    launch_product_key_scores(blas_, shape(), hidden_states_.get(), weights_.keys(), working_.get(), logits(),
                              stream);
    return;
  }
  const StageRange range(Stage::kRouterProject);
  Gemm gemm;
  gemm.m = shape().num_tokens;
  gemm.n = shape().num_experts;
  gemm.k = shape().hidden_size;
  gemm.in = shape().dtype;
  gemm.a = hidden_states_.get();
  gemm.b = weights_.router();
  gemm.d = logits();
  blas_.run(gemm, stream);
}

void CudaSystemLayer::select(cudaStream_t stream) {
  if (shape().has_product_keys()) {
    launch_router_select(query_shape(shape()), logits(), routing_->view(), bad_logit_.get(),
                         working_.get() + plan_.select_offset, stream, SelectMarginals::kAsGiven);
  } else {
    launch_ffn_select(shape(), logits(), routing_->view(), bad_logit_.get(), stream);
  }
}

void CudaSystemLayer::run_masked_experts(cudaStream_t stream) {
  launch_masked_product_keys(blas_, shape(), hidden_states_.get(), weights_.describe(), routing_->view(),
                             working_.get(), output_.get(), stream);
}

void CudaSystemLayer::run_mlp(cudaStream_t stream) {
  const LayerShape row = shape().row_shape();
  const DeviceWeights weights = weights_.describe();
  const bool to_output = mlp_result_.get() == nullptr;
  if (!design_.fused_mlp) {
    auto* const y = to_output ? reinterpret_cast<float*>(output_.get()) : mlp_result_.get();
    launch_shared_mlp(mlp_blas_, row, hidden_states_.get(), weights, mlp_scratch_.get(), y, stream);
    if (!to_output && !shape().has_routing()) {
      const StageRange range(Stage::kSharedMlp);
      launch_round_output(row, y, nullptr, output_.get(), stream);
    }
    return;
  }
  const StageRange range(Stage::kSharedMlp);
  GroupedGemm up;
  up.dtype = shape().dtype;
  up.num_experts = 1;
  up.rows = shape().num_tokens;
  up.n = shape().shared_size;
  up.k = shape().hidden_size;
  up.a = hidden_states_.get();
  up.weights = weights.shared_gate_up;
  up.out = mlp_scratch_.get();
  up.tiles = mlp_tiles_.tiles();
  up.num_tiles = mlp_tiles_.num_tiles();
  launch_grouped_gated(up, shape().activation, stream);

  Gemm down;
  down.m = shape().num_tokens;
  down.n = shape().hidden_size;
  down.k = shape().shared_size;
  down.in = shape().dtype;
  down.out = to_output ? shape().dtype : Dtype::kF32;
  down.a = mlp_scratch_.get();
  down.b = weights.shared_down;
  down.d = to_output ? static_cast<void*>(output_.get()) : mlp_result_.get();
  mlp_blas_.run(down, stream);
}

RouterLogits CudaSystemLayer::download_scores() {
  if (shape().has_product_keys()) {
    return download_logits(query_shape(shape()), logits(), stream());
  }
  return {HostTensor::zeros(Dtype::kF32, shape().num_tokens, 1),
          download(Dtype::kF32, shape().num_tokens, shape().num_experts, logits(), stream())};
}

void CudaSystemLayer::check_logits() {
  if (!has(Stage::kRouterSelect)) {
    return;
  }
  std::int64_t bad = 0;
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(&bad, bad_logit_.get(), sizeof bad, cudaMemcpyDeviceToHost, stream()));
  synchronize();
  if (bad >= 0) {
    enqueue(Stage::kRouterProject);  // the experts may have taken the place of the logits
    throw_bad_logit(download_scores());
  }
}

HostTensor CudaSystemLayer::output() {
  return download(shape().dtype, shape().num_tokens, shape().hidden_size, output_.get(), stream());
}

Routing CudaSystemLayer::routing() {
  LayerShape queries = shape().has_product_keys() ? query_shape(shape()) : shape().row_shape();
  if (routing_.has_value()) {
    return routing_->download(queries, stream());
  }
  Routing none;  // as the reference has it
  none.num_tokens = queries.num_tokens;
  none.grid_rows = queries.grid_rows;
  none.grid_cols = queries.grid_cols;
  none.token_offsets.assign(static_cast<std::size_t>(none.num_tokens) + 1, 0);
  return none;
}

}  // namespace moescope::cuda
