#include "kernels/layer/cuda_layer.hpp"

#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

CudaLayer::CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
                     const LayerInputs& inputs, std::unique_ptr<ExpertPath> path, std::string explanation)
    : GraphedLayer(std::move(context), layer_stages(*path)),
      experts_(std::move(experts)),
      inputs_(inputs),
      path_(std::move(path)),
      explanation_(std::move(explanation)),
      plan_(plan_layer_memory(*path_)),
      blas_(plan_.library),
      shared_blas_(plan_.shared_library),
      hidden_states_(upload(inputs.hidden_states, stream())),
      working_(make_filled<std::byte>(plan_.working, stream())),
      output_(make_filled<std::byte>(plan_.output, stream())),
      shared_result_(
          make_filled<float>(plan_.shared_result / static_cast<std::int64_t>(sizeof(float)), stream())),
      shared_scratch_(make_filled<std::byte>(plan_.shared_scratch, stream())),
      scratch_(make_filled<std::byte>(plan_.scratch, stream())) {
  if (!inputs.fixed_routing.has_value()) {
    router_ = RouterBuffers(inputs.shape, inputs.router, stream());
    bad_logit_ = make_filled<std::int64_t>(1, stream());  // -1: none
  }
  experts_->describe(weights_);
  router_.describe(weights_);
  path_->prepare({.hidden_states = hidden_states_.get(),
                  .weights = &weights_,
                  .expert_bound = experts_->bound(),
                  .working = working_.get(),
                  .select_workspace = working_.get() + plan_.select_workspace_offset,
                  .scratch = scratch_.get(),
                  .bad_logit = bad_logit_.get(),
                  .shared_result = shared_result_.get(),
                  .rounded = output_.get(),
                  .blas = &blas_},
                 stream());
  if (inputs.fixed_routing.has_value()) {
    path_->set_routing(*inputs.fixed_routing, stream());
  }
  capture();
}

/// Beside the selection and what follows it run the shared MLP, which needs nothing but X, and the
/// preparation of the sums, which take the place of the logits. The shared MLP begins behind the router's
/// product: at its side it takes multiprocessors and HBM from what everything else waits for (L = 1, K = 512
/// 30.8 instead of 26.7 us, L = 64 84.9 instead of 79.4, measured).
void CudaLayer::enqueue_overlapped() {
  const bool beside = has(Stage::kSharedMlp) || path_->prepares_sums();
  const bool join_early = path_->finishes_alone() || path_->prepares_sums();
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
    if (stage == Stage::kRouterSelect && path_->prepares_sums()) {
      fork();
      path_->prepare_sums(side_stream());
    }
  }
  if (!join_early) {
    join_if_forked();
  }
  path_->finish(stream());
}

void CudaLayer::enqueue(Stage stage) {
  const bool last = stage == stages_.back();
  if (last && path_->prepares_sums()) {
    const StageRange range(stage);
    path_->prepare_sums(stream());
  }
  enqueue(stage, stream());
  if (last && !path_->finishes_alone()) {
    const StageRange range(stage);
    path_->finish(stream());
  }
}

void CudaLayer::enqueue(Stage stage, cudaStream_t stream) {
  const LayerShape& shape = inputs_.shape;
  if (stage == Stage::kRouterProject) {
    launch_router_project(blas_, shape, hidden_states_.get(), weights_, logits(), stream);
  } else if (stage == Stage::kSharedMlp) {
    launch_shared_mlp(shared_blas_, shape, hidden_states_.get(), weights_, shared_scratch_.get(),
                      shared_result_.get(), stream);
  } else {
    path_->enqueue(stage, stream);
  }
}

std::string CudaLayer::kernels(Stage stage) const {
  if (stage == Stage::kRouterProject || stage == Stage::kSharedMlp) {
    return std::string(to_string(stage));
  }
  if (stage != Stage::kLayer) {
    return path_->kernels(stage);
  }
  std::string all;
  for (const Stage own : stages_) {
    all += (all.empty() ? "" : " + ") + kernels(own);
  }
  return all;
}

std::string CudaLayer::bring_up(Stage stage, const StageData& given) {
  const bool from_logits = stage == Stage::kRouterSelect || path_->reads_logits();
  if (from_logits) {
    upload_logits(inputs_.shape, given.logits, logits(), stream());
  } else {
    path_->set_routing(given.routing, stream());
  }
  std::string ran;
  for (const Stage before : {Stage::kRouterSelect, Stage::kSchedule}) {
    if (before == stage) {
      break;
    }
    if (has(before) && (before != Stage::kRouterSelect || from_logits)) {
      enqueue(before);
      ran += kernels(before) + " + ";
    }
  }
  if (stage == Stage::kExpertCombine) {
    path_->set_scores(given.scores, stream());
  }
  return ran;
}

StageData CudaLayer::run_alone(Stage stage, const StageData& given) {
  if (!has(stage)) {
    throw InvalidArgument("stage", to_string(stage), "is none of this layer's");
  }
  StageData left;
  const bool of_path = stage != Stage::kRouterProject && stage != Stage::kSharedMlp;
  if (of_path) {
    if (has(Stage::kSharedMlp)) {  // nothing is added to the experts
      MOESCOPE_CUDA_CHECK(cudaMemsetAsync(shared_result_.get(), 0,
                                          static_cast<std::size_t>(shared_result_.bytes()), stream()));
    }
    left.kernels = bring_up(stage, given);
  }
  enqueue(stage);
  left.kernels += kernels(stage);
  if (stage == Stage::kRouterSelect && path_->reads_logits() && has(Stage::kSchedule)) {
    enqueue(Stage::kSchedule);  // takes what the selection has counted: the next one counts from zero
  }
  synchronize();
  if (of_path && !inputs_.fixed_routing.has_value() && take_bad_logit() >= 0) {
    throw_bad_logit(given.logits);
  }
  const LayerShape& shape = inputs_.shape;
  switch (stage) {
    case Stage::kRouterProject:
      left.logits = download_logits(shape, logits(), stream());
      return left;
    case Stage::kSharedMlp:
      left.y = download(Dtype::kF32, shape.num_tokens, shape.hidden_size, shared_result_.get(), stream());
      return left;
    case Stage::kSchedule:
      left.schedule = path_->schedule(stream());
      break;
    case Stage::kExpertScores:
      left.scores = path_->scores(stream());
      break;
    case Stage::kExpertCombine:
    case Stage::kExperts:
      left.y = output();
      break;
    default:
      break;
  }
  left.routing = path_->routing(stream());
  if (inputs_.fixed_routing.has_value()) {
    path_->set_routing(*inputs_.fixed_routing, stream());
  }
  return left;
}

std::int64_t CudaLayer::take_bad_logit() {
  std::int64_t bad = 0;
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(&bad, bad_logit_.get(), sizeof bad, cudaMemcpyDeviceToHost, stream()));
  synchronize();
  if (bad >= 0) {
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(bad_logit_.get(), 0xff, static_cast<std::size_t>(bad_logit_.bytes()), stream()));
  }
  return bad;
}

void CudaLayer::check_logits() {
  if (!inputs_.fixed_routing.has_value() && take_bad_logit() >= 0) {
    enqueue(Stage::kRouterProject);  // the experts' sums have taken the place of the logits
    throw_bad_logit(download_logits(inputs_.shape, logits(), stream()));
  }
}

HostTensor CudaLayer::output() {
  const LayerShape& shape = inputs_.shape;
  const void* const data = shape.dtype == Dtype::kF32 ? static_cast<const void*>(y()) : output_.get();
  return download(shape.dtype, shape.num_tokens, shape.hidden_size, data, stream());
}

}  // namespace moescope::cuda
