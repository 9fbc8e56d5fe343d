#include "kernels/cuda_backend.hpp"

#include "kernels/gpu_rates.hpp"
#include "kernels/layer/cuda_layer.hpp"
#include "kernels/systems/cuda_system_layer.hpp"

namespace moescope {
namespace {

using namespace cuda;

class CudaBackend final : public MoeBackend {
 public:
  CudaBackend() : context_(std::make_shared<DeviceContext>()) {}

  std::string_view name() const override { return "cuda"; }
  std::string device() const override { return context_->info.name; }
  bool supports(ScheduleKind /*kind*/, std::string& /*why*/) const override { return true; }
  bool supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                      std::string& why) const override;

  RouterLogits router_project(const LayerInputs& inputs) override;
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override;
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override;
  std::vector<float> expert_scores(const LayerInputs& inputs, const Routing& routing,
                                   const Schedule& schedule) override;
  HostTensor expert_combine(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule,
                            std::span<const float> scores) override;
  HostTensor experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) override;
  HostTensor shared_mlp(const LayerInputs& inputs) override;
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs, const ScheduleOptions& options) override;
  bool supports_system(System system, std::string& why) const override;
  std::unique_ptr<LayerExecution> prepare_system(const SystemInputs& inputs) override;

 private:
  cudaStream_t stream() const { return stream_.get(); }
  /// Weights on the device; those of the last layer stay, so that stages and schedules of one layer share
  /// them.
  std::shared_ptr<const ExpertBuffers> expert_buffers(const LayerInputs& inputs);
  DeviceWeights expert_weights(const LayerInputs& inputs);
  /// Throws OutOfMemory when `layer` needs more device memory than is free.
  void require_memory(const std::string& layer, std::int64_t need) const;
  /// Device schedule built from `routing`; equal to what core's builder makes of the same options.
  ScheduleBuffers build_schedule(const LayerShape& shape, const ScheduleOptions& options,
                                 const RoutingBuffers& routing);
  HostTensor download_y(const LayerShape& shape, const DeviceBuffer<float>& y) {
    return download(Dtype::kF32, shape.num_tokens, shape.hidden_size, y.get(), stream());
  }

  std::shared_ptr<DeviceContext> context_;
  Stream stream_;
  CublasLt blas_;
  std::weak_ptr<const ExpertWeights> cached_host_;
  std::shared_ptr<const ExpertBuffers> cached_device_;
};

bool is_grouped(ScheduleKind kind) {
  return kind == ScheduleKind::kExpertCentric || kind == ScheduleKind::kStaircase;
}

/// Validated shape of a stage call on `routing`.
LayerShape stage_shape(const LayerInputs& inputs, const Routing& routing, ScheduleKind kind) {
  inputs.validate();
  const LayerShape shape = shape_of(inputs.shape, routing);
  if (shape.num_tokens != inputs.shape.num_tokens || shape.grid_rows != inputs.shape.grid_rows ||
      shape.grid_cols != inputs.shape.grid_cols) {
    throw InvalidArgument("routing", shape.label(),
                          fmt::format("must fit the layer {}", inputs.shape.label()));
  }
  require_gpu_shape(shape, kind);
  return shape;
}

std::shared_ptr<const ExpertBuffers> CudaBackend::expert_buffers(const LayerInputs& inputs) {
  if (cached_device_ == nullptr || cached_host_.lock() != inputs.experts) {
    cached_device_.reset();
    cached_device_ = std::make_shared<const ExpertBuffers>(inputs.shape, *inputs.experts, stream());
    cached_host_ = inputs.experts;
  }
  return cached_device_;
}

DeviceWeights CudaBackend::expert_weights(const LayerInputs& inputs) {
  DeviceWeights weights;
  expert_buffers(inputs)->describe(weights);
  return weights;
}

ScheduleBuffers CudaBackend::build_schedule(const LayerShape& shape, const ScheduleOptions& options,
                                            const RoutingBuffers& routing) {
  ScheduleBuffers buffers(shape, options);
  const Bytes workspace(schedule_capacity(shape, options).workspace_bytes);
  launch_schedule(shape, options, routing.view(), buffers.view(), workspace.get(), stream());
  stream_.synchronize();
  return buffers;
}

RouterLogits CudaBackend::router_project(const LayerInputs& inputs) {
  inputs.validate();
  if (inputs.fixed_routing.has_value()) {
    throw InvalidArgument("router", "absent",
                          "this workload has recorded routing, there is nothing to project");
  }
  const LayerShape& shape = inputs.shape;
  require_gpu_shape(shape, ScheduleKind::kTokenCentric);
  const Bytes x = upload(inputs.hidden_states, stream());
  const RouterBuffers router(shape, inputs.router, stream());
  DeviceWeights weights;
  router.describe(weights);
  const DeviceBuffer<float> logits =
      make_filled<float>(shape.num_tokens * (shape.grid_rows + shape.grid_cols), stream());
  launch_router_project(blas_, shape, x.get(), weights, logits.get(), stream());
  return download_logits(shape, logits.get(), stream());
}

Routing CudaBackend::router_select(const LayerShape& shape, const RouterLogits& logits) {
  shape.validate();
  const auto require = [&](const HostTensor& side, std::string_view name, std::int64_t extent) {
    if (side.dtype() != Dtype::kF32 || side.rows() != shape.num_tokens || side.cols() != extent) {
      throw InvalidArgument(name,
                            fmt::format("[{}, {}] {}", side.rows(), side.cols(), to_string(side.dtype())),
                            fmt::format("must be [{}, {}] fp32", shape.num_tokens, extent));
    }
  };
  require(logits.row, "row_logits", shape.grid_rows);
  require(logits.col, "col_logits", shape.grid_cols);

  const std::int64_t width = shape.grid_rows + shape.grid_cols;
  const DeviceBuffer<float> device(shape.num_tokens * width);
  const auto copy = [&](const HostTensor& side, std::int64_t first) {
    const auto row_bytes = static_cast<std::size_t>(side.cols()) * sizeof(float);
    MOESCOPE_CUDA_CHECK(cudaMemcpy2DAsync(
        device.get() + first, static_cast<std::size_t>(width) * sizeof(float), side.data(), row_bytes,
        row_bytes, static_cast<std::size_t>(side.rows()), cudaMemcpyHostToDevice, stream()));
  };
  copy(logits.row, 0);
  copy(logits.col, shape.grid_rows);
  const RoutingBuffers routing(shape);
  const auto bad_logit = make_filled<std::int64_t>(1, stream());  // -1: none
  const Bytes workspace(router_select_workspace_bytes(shape));
  launch_router_select(shape, device.get(), routing.view(), bad_logit.get(), workspace.get(), stream());
  std::int64_t bad = 0;
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(&bad, bad_logit.get(), sizeof bad, cudaMemcpyDeviceToHost, stream()));
  stream_.synchronize();
  if (bad >= 0) {
    throw_bad_logit(logits);
  }
  return routing.download(shape, stream());
}

Schedule CudaBackend::schedule(const Routing& routing, const ScheduleOptions& options) {
  if (!is_grouped(options.kind)) {
    return moescope::build_schedule(routing,
                                    options);  // the routing's own order: nothing is built on the device
  }
  LayerShape shape;
  shape.hidden_size = 8;  // no schedule depends on it
  shape = shape_of(shape, routing);
  require_gpu_shape(shape, options.kind);
  const RoutingBuffers device(shape, routing, stream());
  if (options.strip_rule == StripRule::kRowsOnly) {
    return moescope::build_schedule(routing, options);  // the device lists the smallest cover
  }
  return build_schedule(shape, options, device).download(stream());
}

std::vector<float> CudaBackend::expert_scores(const LayerInputs& inputs, const Routing& routing,
                                              const Schedule& schedule) {
  const LayerShape shape = stage_shape(inputs, routing, schedule.kind);
  const Bytes x = upload(inputs.hidden_states, stream());
  const DeviceWeights weights = expert_weights(inputs);
  const RoutingBuffers device(shape, routing, stream());
  const DeviceBuffer<float> scores(shape.num_pairs());
  if (is_grouped(schedule.kind)) {
    const ScheduleBuffers buffers = build_schedule(shape, schedule.options, device);
    launch_expert_scores_tiles(shape, schedule.options, x.get(), weights, device.view(), buffers.view(),
                               scores.get(), stream());
    stream_.synchronize();
  } else {
    launch_expert_scores(shape, x.get(), weights, device.view(), scores.get(), stream());
  }
  std::vector<float> result(static_cast<std::size_t>(shape.num_pairs()));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(result.data(), scores.get(), static_cast<std::size_t>(scores.bytes()),
                                      cudaMemcpyDeviceToHost, stream()));
  stream_.synchronize();
  return result;
}

HostTensor CudaBackend::expert_combine(const LayerInputs& inputs, const Routing& routing,
                                       const Schedule& schedule, std::span<const float> scores) {
  const LayerShape shape = stage_shape(inputs, routing, schedule.kind);
  if (std::ssize(scores) != shape.num_pairs()) {
    throw InvalidArgument("scores", std::to_string(scores.size()),
                          fmt::format("must be one per pair, {}", shape.num_pairs()));
  }
  const DeviceWeights weights = expert_weights(inputs);
  const RoutingBuffers device(shape, routing, stream());
  const DeviceBuffer<float> device_scores(shape.num_pairs());
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(device_scores.get(), scores.data(),
                                      static_cast<std::size_t>(device_scores.bytes()), cudaMemcpyHostToDevice,
                                      stream()));
  const DeviceBuffer<float> y = make_filled<float>(shape.num_tokens * shape.hidden_size, stream());
  launch_expert_combine(shape, weights, device.view(), device_scores.get(), y.get(), stream());
  return download_y(shape, y);
}

HostTensor CudaBackend::experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) {
  const LayerShape shape = stage_shape(inputs, routing, schedule.kind);
  if (schedule.kind == ScheduleKind::kStaircase && schedule.options.deterministic) {
    return expert_combine(inputs, routing, schedule, expert_scores(inputs, routing, schedule));
  }
  const Bytes x = upload(inputs.hidden_states, stream());
  const DeviceWeights weights = expert_weights(inputs);
  const RoutingBuffers device(shape, routing, stream());
  const DeviceBuffer<float> y = make_filled<float>(shape.num_tokens * shape.hidden_size, stream());
  switch (schedule.kind) {
    case ScheduleKind::kTokenCentric: {
      const Bytes workspace(token_centric_workspace_bytes(shape));
      if (workspace.bytes() > 0) {
        MOESCOPE_CUDA_CHECK(
            cudaMemsetAsync(workspace.get(), 0, static_cast<std::size_t>(workspace.bytes()), stream()));
      }
      launch_experts_token_centric(shape, x.get(), weights, device.view(), workspace.get(), {.y = y.get()},
                                   stream());
      return download_y(shape, y);
    }
    case ScheduleKind::kExpertCentric:
    case ScheduleKind::kStaircase: {
      const ScheduleBuffers buffers = build_schedule(shape, schedule.options, device);
      launch_experts_tiles(shape, schedule.options, x.get(), weights, device.view(), buffers.view(), y.get(),
                           stream());
      return download_y(shape, y);
    }
    case ScheduleKind::kDenseMasked: {
      const Bytes workspace = make_filled<std::byte>(dense_masked_workspace_bytes(shape), stream());
      launch_experts_dense_masked(blas_, shape, x.get(), weights, device.view(), workspace.get(), y.get(),
                                  stream());
      return download_y(shape, y);
    }
    case ScheduleKind::kSparseLibrary: {
      SparseLibrary library(shape, x.get(), weights, device.view(), y.get(), stream());
      library.launch(stream());
      return download_y(shape, y);
    }
    case ScheduleKind::kAuto:
      break;
  }
  throw InternalError("schedule auto is resolved before its stages run");
}

HostTensor CudaBackend::shared_mlp(const LayerInputs& inputs) {
  inputs.validate();
  const LayerShape& shape = inputs.shape;
  require_gpu_shape(shape, ScheduleKind::kTokenCentric);
  if (shape.shared_size == 0) {
    throw InvalidArgument("shared_size", "0", "the layer has no shared MLP");
  }
  const Bytes x = upload(inputs.hidden_states, stream());
  const DeviceWeights weights = expert_weights(inputs);
  const Bytes workspace = make_filled<std::byte>(shared_mlp_workspace_bytes(shape), stream());
  const DeviceBuffer<float> y = make_filled<float>(shape.num_tokens * shape.hidden_size, stream());
  launch_shared_mlp(blas_, shape, x.get(), weights, workspace.get(), y.get(), stream());
  return download_y(shape, y);
}

bool CudaBackend::supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                                 std::string& why) const {
  const LayerDesign design = design_layer(inputs.shape, options, inputs.fixed_routing.has_value(),
                                          context_->info.compute_capability);
  if (options.strip_rule == StripRule::kRowsOnly && !design.on_strips) {
    why = "rows alone need the router's scores, bf16 and compute capability 9.0";
    return false;
  }
  return true;
}

std::unique_ptr<LayerExecution> CudaBackend::prepare(const LayerInputs& inputs,
                                                     const ScheduleOptions& asked) {
  ScheduleOptions options = asked;
  std::string explanation;
  if (asked.kind == ScheduleKind::kAuto) {
    const Routing routing = inputs.fixed_routing.has_value()
                                ? *inputs.fixed_routing
                                : router_select(inputs.shape, router_project(inputs));
    MachineRates rates = gpu_rates(context_->info);
    std::erase_if(rates.candidates, [&](const ScheduleRates& candidate) {
      std::string why;
      return !supports_layer(inputs, candidate_options(asked, candidate), why);
    });
    const ScheduleChoice choice = choose_schedule(inputs.shape, routing, asked, rates);
    options = choice.schedule;
    explanation = choice.explanation();
  }
  require_gpu_shape(inputs.shape, options.kind);
  inputs.validate();
  const bool cached = cached_device_ != nullptr && cached_host_.lock() == inputs.experts;
  if (!cached) {
    cached_device_.reset();
  }
  if (std::string why; !supports_layer(inputs, options, why)) {
    throw InvalidArgument("schedule", to_string(options), why);
  }
  const LayerDesign design = design_layer(inputs.shape, options, inputs.fixed_routing.has_value(),
                                          context_->info.compute_capability);
  const LayerMemoryPlan plan = plan_layer_memory(design);
  const std::int64_t need = plan.total_bytes() - (cached ? plan.experts : 0);
  require_memory(fmt::format("layer {} under {}", inputs.shape.label(), to_string(options.kind)), need);
  return std::make_unique<CudaLayer>(context_, expert_buffers(inputs), inputs, options,
                                     std::move(explanation));
}

void CudaBackend::require_memory(const std::string& layer, std::int64_t need) const {
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  if (static_cast<std::uint64_t>(need) > free_bytes) {
    throw OutOfMemory(fmt::format("{} on {}", layer, device()), static_cast<std::uint64_t>(need), free_bytes);
  }
}

bool CudaBackend::supports_system(System system, std::string& why) const {
  if (system == System::kOmniMoe) {
    why = "omnimoe is prepared from LayerInputs";
    return false;
  }
  return true;
}

std::unique_ptr<LayerExecution> CudaBackend::prepare_system(const SystemInputs& inputs) {
  const SystemDesign design = design_system(inputs, context_->info.compute_capability);
  require_memory(fmt::format("layer {}", inputs.shape.label()), plan_system_memory(design).total_bytes());
  return std::make_unique<CudaSystemLayer>(context_, inputs, design);
}

}  // namespace

std::unique_ptr<MoeBackend> make_cuda_backend() { return std::make_unique<CudaBackend>(); }

}  // namespace moescope
