#include "kernels/layer/cuda_stages.hpp"

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/layer/layer_plan.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {
namespace {

/// A path without a layer: buffers as the plan says, no weights.
class LonePath {
 public:
  LonePath(std::unique_ptr<ExpertPath> path, cudaStream_t stream)
      : path_(std::move(path)),
        plan_(plan_layer_memory(*path_)),
        working_(make_filled<std::byte>(plan_.working, stream)),
        scratch_(make_filled<std::byte>(plan_.scratch, stream)),
        bad_logit_(make_filled<std::int64_t>(1, stream)) {  // -1: none
    data_ = {.weights = &weights_,
             .working = working_.get(),
             .select_workspace = working_.get() + plan_.select_workspace_offset,
             .scratch = scratch_.get(),
             .bad_logit = bad_logit_.get()};
    path_->prepare(data_, stream);
  }

  ExpertPath& path() { return *path_; }
  float* logits() const { return data_.logits(); }
  bool saw_bad_logit(cudaStream_t stream) const {
    return copy_to_host(bad_logit_.get(), 1, stream).front() >= 0;
  }

 private:
  std::unique_ptr<ExpertPath> path_;
  LayerMemoryPlan plan_;
  Bytes working_;
  Bytes scratch_;
  DeviceBuffer<std::int64_t> bad_logit_;
  DeviceWeights weights_;
  PathData data_;
};

}  // namespace

RouterLogits project_router(CublasLt& blas, const LayerInputs& inputs, cudaStream_t stream) {
  inputs.validate();
  if (inputs.fixed_routing.has_value()) {
    throw InvalidArgument("router", "absent",
                          "this workload has recorded routing, there is nothing to project");
  }
  const LayerShape& shape = inputs.shape;
  require_gpu_shape(shape, ScheduleKind::kTokenCentric);
  const Bytes x = upload(inputs.hidden_states, stream);
  const RouterBuffers router(shape, inputs.router, stream);
  DeviceWeights weights;
  router.describe(weights);
  const DeviceBuffer<float> logits =
      make_filled<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols), stream);
  launch_router_project(blas, shape, x.get(), weights, logits.get(), stream);
  return download_logits(shape, logits.get(), stream);
}

Routing select_pairs(const LayerShape& shape, const RouterLogits& logits, cudaStream_t stream) {
  shape.validate();
  LayerShape bare = shape;  // the selection depends on neither, and so the path holds little beside it
  bare.hidden_size = 8;
  bare.shared_size = 0;
  LonePath lone(make_token_centric_path(
                    {.shape = bare, .options = {.kind = ScheduleKind::kTokenCentric}, .gpu = current_gpu()}),
                stream);
  upload_logits(shape, logits, lone.logits(), stream);
  lone.path().enqueue(Stage::kRouterSelect, stream);
  if (lone.saw_bad_logit(stream)) {
    throw_bad_logit(logits);
  }
  return lone.path().routing(stream);
}

Schedule group_pairs(const Routing& routing, const ScheduleOptions& options, cudaStream_t stream) {
  LayerDesign design{.shape = {}, .options = options, .fixed_routing = true, .gpu = current_gpu()};
  std::string why;
  // Rows alone are listed on the device only from the router's scores; of other schedules than those over
  // tiles nothing is built there.
  if (!has_expert_path(design, why) || !make_expert_path(design)->schedules()) {
    return build_schedule(routing, options);
  }
  design.shape.hidden_size = 8;  // no schedule depends on it
  design.shape = shape_of(design.shape, routing);
  require_gpu_shape(design.shape, options.kind);
  LonePath lone(make_expert_path(design), stream);
  lone.path().set_routing(routing, stream);
  lone.path().enqueue(Stage::kSchedule, stream);
  return lone.path().schedule(stream);
}

}  // namespace moescope::cuda
