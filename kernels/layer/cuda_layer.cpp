#include "kernels/layer/cuda_layer.hpp"

#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

CudaLayer::CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
                     const LayerInputs& inputs, const ScheduleOptions& options, std::string explanation)
    : CudaLayer(context, std::move(experts), inputs,
                design_layer(inputs.shape, options, inputs.fixed_routing.has_value(),
                             context->info.compute_capability),
                std::move(explanation)) {}

CudaLayer::CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
                     const LayerInputs& inputs, const LayerDesign& design, std::string explanation)
    : GraphedLayer(std::move(context), layer_stages(design)),
      experts_(std::move(experts)),
      inputs_(inputs),
      design_(design),
      explanation_(std::move(explanation)),
      plan_(plan_layer_memory(design_)),
      blas_(plan_.library),
      shared_blas_(plan_.shared_library),
      hidden_states_(upload(inputs.hidden_states, stream())),
      working_(make_filled<std::byte>(plan_.working, stream())),
      output_(make_filled<std::byte>(plan_.output, stream())),
      shared_result_(
          make_filled<float>(plan_.shared_result / static_cast<std::int64_t>(sizeof(float)), stream())),
      shared_scratch_(make_filled<std::byte>(plan_.shared_scratch, stream())),
      scratch_(make_filled<std::byte>(plan_.scratch, stream())),
      token_workspace_(plan_.token_workspace) {
  const LayerShape& shape = inputs.shape;
  const ScheduleOptions& options = design_.options;
  if (inputs.fixed_routing.has_value()) {
    routing_.emplace(shape, *inputs.fixed_routing, stream());
  } else {
    router_ = RouterBuffers(shape, inputs.router, stream());
    if (!design_.on_strips) {
      routing_.emplace(shape);
    }
    bad_logit_ = make_filled<std::int64_t>(1, stream());  // -1: none
  }
  experts_->describe(weights_);
  router_.describe(weights_);
  if (token_workspace_.bytes() > 0) {
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(token_workspace_.get(), 0,
                                        static_cast<std::size_t>(token_workspace_.bytes()), stream()));
  }
  if (design_.on_strips) {
    strips_ = StripBuffers(shape, design_.options.strip_rule, design_.options.tile_tokens);
    exponents_ = DeviceBuffer<std::int32_t>(shape.num_tokens);
  } else if (groups_pairs(design_)) {
    schedule_ = ScheduleBuffers(shape, options);
  } else if (options.kind == ScheduleKind::kSparseLibrary) {
    sparse_.emplace(shape, hidden_states_.get(), weights_, routing_->view(), y(), stream());
  }
  capture();
}

/// Beside the selection and what follows it run the shared MLP, which needs nothing but X, and the
/// preparation of the sums, which take the place of the logits. The shared MLP begins behind the router's
/// product: at its side it takes multiprocessors and HBM from what everything else waits for (L = 1, K = 512
/// 30.8 instead of 26.7 us, L = 64 84.9 instead of 79.4; H100).
void CudaLayer::enqueue_overlapped() {
  const bool beside = has(Stage::kSharedMlp) || design_.on_strips;
  const bool join_early = finishes_layer(design_) || design_.on_strips;
  const auto join_if_forked = [&] {
    if (beside) {
      join();
    }
  };
  const auto start_shared_mlp = [&] {
    if (has(Stage::kSharedMlp)) {
      fork();
      enqueue(Stage::kSharedMlp, side_stream());
    }
  };
  if (!has(Stage::kRouterProject)) {
    start_shared_mlp();
  }
  for (const Stage stage : stages_) {
    if (stage == Stage::kSharedMlp) {
      continue;
    }
    if (stage == stages_.back() && join_early) {
      join_if_forked();
    }
    enqueue(stage, stream());
    if (stage == Stage::kRouterProject) {
      start_shared_mlp();
    }
    if (stage == Stage::kRouterSelect && design_.on_strips) {
      fork();
      prepare_experts(side_stream());
    }
  }
  if (!join_early) {
    join_if_forked();
  }
  if (!finishes_layer(design_)) {
    finish(stream());
  }
}

void CudaLayer::enqueue(Stage stage) {
  if (stage == stages_.back() && design_.on_strips) {
    const StageRange range(stage);
    prepare_experts(stream());
  }
  enqueue(stage, stream());
  if (stage == stages_.back() && !finishes_layer(design_)) {
    const StageRange range(stage);
    finish(stream());
  }
}

void CudaLayer::prepare_experts(cudaStream_t stream) {
  launch_staircase_prepare(design_.shape, hidden_states_.get(), experts_->bound(), strips_.view(),
                           staircase_output(), stream);
}

void CudaLayer::finish(cudaStream_t stream) {
  const LayerShape& shape = design_.shape;
  if (design_.on_strips) {
    launch_round_output(shape, staircase_output(), shared_result_.get(), output_.get(), stream);
  } else if (shape.dtype == Dtype::kBF16) {
    launch_round_output(shape, y(), shared_result_.get(), output_.get(), stream);
  } else if (shared_result_.get() != nullptr) {
    launch_round_output(shape, y(), shared_result_.get(), y(), stream);
  }
}

void CudaLayer::enqueue(Stage stage, cudaStream_t stream) {
  const LayerShape& shape = design_.shape;
  switch (stage) {
    case Stage::kRouterProject:
      launch_router_project(blas_, shape, hidden_states_.get(), weights_, logits(), stream);
      break;
    case Stage::kRouterSelect:
      if (design_.on_strips) {
        launch_router_select_strips(shape, design_.options.strip_rule, logits(), strips_.view(),
                                    bad_logit_.get(), stream);
        break;
      }
      launch_router_select(shape, logits(), routing_->view(), bad_logit_.get(),
                           working_.get() + plan_.select_workspace_offset, stream);
      break;
    case Stage::kSchedule:
      if (design_.on_strips) {
        launch_schedule_strips(shape, design_.options.strip_rule, design_.options.tile_tokens, strips_.view(),
                               stream);
        break;
      }
      launch_schedule(shape, design_.options, routing_->view(), schedule_.view(), scratch_.get(), stream);
      break;
    case Stage::kExpertScores:
    case Stage::kExpertCombine:
    case Stage::kExperts:
      enqueue_experts(stage, stream);
      break;
    case Stage::kSharedMlp:
      launch_shared_mlp(shared_blas_, shape, hidden_states_.get(), weights_, shared_scratch_.get(),
                        shared_result_.get(), stream);
      break;
    case Stage::kLayer:
      throw InternalError("the layer is no stage of its own");
  }
}

void CudaLayer::enqueue_experts(Stage stage, cudaStream_t stream) {
  const LayerShape& shape = design_.shape;
  const ScheduleOptions& options = design_.options;
  const void* const x = hidden_states_.get();
  auto* const scores = static_cast<float*>(static_cast<void*>(scratch_.get()));
  if (stage == Stage::kExpertScores) {
    launch_expert_scores_tiles(shape, options, x, weights_, routing_->view(), schedule_.view(), scores,
                               stream);
    return;
  }
  if (stage == Stage::kExpertCombine) {
    launch_expert_combine(shape, weights_, routing_->view(), scores, y(), stream);
    return;
  }
  switch (options.kind) {
    case ScheduleKind::kTokenCentric: {
      const bool bf16 = shape.dtype == Dtype::kBF16;
      const ExpertOutput output{.y = bf16 ? nullptr : y(),
                                .addend = shared_result_.get(),
                                .rounded = bf16 ? output_.get() : nullptr};
      launch_experts_token_centric(shape, x, weights_, routing_->view(), token_workspace_.get(), output,
                                   stream);
      break;
    }
    case ScheduleKind::kExpertCentric:
    case ScheduleKind::kStaircase:
      if (design_.on_strips) {
        launch_experts_staircase(shape, x, weights_, strips_.view(), staircase_output(), stream);
        break;
      }
      launch_experts_tiles(shape, options, x, weights_, routing_->view(), schedule_.view(), y(), stream);
      break;
    case ScheduleKind::kDenseMasked:
      launch_experts_dense_masked(blas_, shape, x, weights_, routing_->view(), scratch_.get(), y(), stream);
      break;
    case ScheduleKind::kSparseLibrary:
      sparse_->launch(stream);
      break;
    case ScheduleKind::kAuto:
      throw InternalError("schedule auto is resolved before a layer is prepared");
  }
}

void CudaLayer::check_logits() {
  if (inputs_.fixed_routing.has_value()) {
    return;
  }
  std::int64_t bad = 0;
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(&bad, bad_logit_.get(), sizeof bad, cudaMemcpyDeviceToHost, stream()));
  synchronize();
  if (bad >= 0) {
    enqueue(Stage::kRouterProject);  // the experts' sums have taken the place of the logits
    throw_bad_logit(download_logits(inputs_.shape, logits(), stream()));
  }
}

HostTensor CudaLayer::output() {
  const LayerShape& shape = inputs_.shape;
  const void* const data = shape.dtype == Dtype::kF32 ? static_cast<const void*>(y()) : output_.get();
  return download(shape.dtype, shape.num_tokens, shape.hidden_size, data, stream());
}

Routing CudaLayer::routing() {
  const LayerShape& shape = design_.shape;
  if (routing_.has_value()) {
    return routing_->download(shape, stream());
  }
  // On strips no pair is listed: the same selection from the same logits, as a list.
  // Filled first: what cuBLASLt stores through the bulk copy engine counts as never written to initcheck.
  const auto logits = make_filled<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols), stream());
  const Bytes workspace(router_select_workspace_bytes(shape));
  const auto bad_logit = make_filled<std::int64_t>(1, stream());
  const RoutingBuffers routing(shape);
  launch_router_project(blas_, shape, hidden_states_.get(), weights_, logits.get(), stream());
  launch_router_select(shape, logits.get(), routing.view(), bad_logit.get(), workspace.get(), stream());
  return routing.download(shape, stream());
}

bool CudaLayer::deterministic() const {
  switch (design_.options.kind) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kDenseMasked:
      return true;
    case ScheduleKind::kStaircase:
      return design_.options.deterministic;
    case ScheduleKind::kExpertCentric:  // the paper's scatter-add
    case ScheduleKind::kSparseLibrary:  // cuSPARSE promises nothing
    case ScheduleKind::kAuto:
      break;
  }
  return false;
}

}  // namespace moescope::cuda
