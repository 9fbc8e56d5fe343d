#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/moe_backend.hpp"
#include "kernels/cublas_lt.hpp"
#include "kernels/cuda_raii.hpp"
#include "kernels/device_info.hpp"
#include "kernels/layer_buffers.hpp"
#include "kernels/nvml.hpp"
#include "kernels/schedule_buffers.hpp"
#include "kernels/sparse_library.hpp"

namespace moescope::cuda {

/// What the layers of one backend share: the device, its clocks, and the buffer that empties the L2 cache.
struct DeviceContext {
  DeviceContext();

  DeviceInfo info;
  Nvml nvml;
  Bytes flush;  ///< twice the L2 cache; written before a cold run
};

/// Device memory of one layer in bytes, from the shape alone, before anything is allocated.
struct LayerMemoryPlan {
  std::int64_t hidden_states = 0;
  std::int64_t router = 0;
  std::int64_t experts = 0;  ///< W, V and the shared MLP
  std::int64_t routing = 0;
  std::int64_t output = 0;          ///< [L,d] in storage dtype
  std::int64_t accumulators = 0;    ///< y [L,d] fp32; 0 with fp32 storage, where y is the output
  std::int64_t schedule = 0;        ///< arrays of the device schedule, or cuSPARSE's copies and buffers
  std::int64_t scratch = 0;         ///< one buffer that the stages use in turn
  std::int64_t library = 0;         ///< cuBLASLt's workspace
  std::vector<StageMemory> stages;  ///< the extra memory that each stage uses; kLayer: all of it, held

  std::int64_t total_bytes() const;
};
/// `options.kind` is not kAuto. `fixed_routing`: no router stages.
LayerMemoryPlan plan_layer_memory(const LayerShape& shape, const ScheduleOptions& options,
                                  bool fixed_routing);

/// The stages of a layer in order, without kLayer. A fused kernel reports kExperts: all schedules but the
/// deterministic staircase, which combines apart from the scores.
std::vector<Stage> layer_stages(const LayerShape& shape, const ScheduleOptions& options, bool fixed_routing);

/// A layer on the GPU. The constructor uploads it, runs it once as plain launches (NVTX ranges, library
/// warm-up) and captures it as a CUDA graph: a capture fails if anything between the first and the last
/// kernel synchronises with the host or allocates. run() replays the graph. Events between the stages are
/// nodes of the same graph, so stage times and the layer's time come from one replay, free of launch gaps.
class CudaLayer final : public LayerExecution {
 public:
  /// `inputs` must outlive the layer. Throws InvalidArgument, OutOfMemory (before allocating), CudaError.
  CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
            const LayerInputs& inputs, const ScheduleOptions& options);

  std::vector<StageTime> run(L2State l2) override;
  HostTensor output() override;
  Routing routing() override;
  std::vector<StageMemory> memory() const override { return plan_.stages; }
  ClockSample clocks() const override { return context_->nvml.sample(); }
  ScheduleKind schedule_kind() const override { return options_.kind; }
  bool deterministic() const override;

  std::span<const Stage> stages() const override { return stages_; }
  /// Plain launches on stream(), in an NVTX range with the stage's name.
  void enqueue(Stage stage) override;
  void synchronize() override { stream_.synchronize(); }
  void empty_cache() override;
  cudaStream_t stream() const { return stream_.get(); }

 private:
  struct GraphDelete {
    void operator()(cudaGraphExec_t graph) const noexcept { (void)cudaGraphExecDestroy(graph); }
  };

  void enqueue_experts(Stage stage);
  void capture();
  void check_logits();

  std::shared_ptr<DeviceContext> context_;
  std::shared_ptr<const ExpertBuffers> experts_;
  const LayerInputs& inputs_;
  ScheduleOptions options_;
  LayerMemoryPlan plan_;
  std::vector<Stage> stages_;
  Stream stream_;
  CublasLt blas_;
  Bytes hidden_states_;
  RouterBuffers router_;
  std::optional<RoutingBuffers> routing_;
  ScheduleBuffers schedule_;
  DeviceBuffer<std::int64_t> bad_logit_;
  DeviceBuffer<float> y_;
  Bytes output_;
  Bytes scratch_;
  std::optional<SparseLibrary> sparse_;
  DeviceWeights weights_;
  std::vector<Event> events_;  ///< before the first stage, then after each
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphDelete> graph_;
};

}  // namespace moescope::cuda
