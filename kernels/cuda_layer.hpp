#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/moe_backend.hpp"
#include "kernels/cublas_lt.hpp"
#include "kernels/cuda_graph.hpp"
#include "kernels/cuda_raii.hpp"
#include "kernels/device_info.hpp"
#include "kernels/layer_buffers.hpp"
#include "kernels/layer_plan.hpp"
#include "kernels/nvml.hpp"
#include "kernels/schedule_buffers.hpp"
#include "kernels/sparse_library.hpp"
#include "kernels/strip_buffers.hpp"

namespace moescope::cuda {

/// What the layers of one backend share: the device, its clocks, and the buffer that empties the L2 cache.
struct DeviceContext {
  DeviceContext();

  DeviceInfo info;
  Nvml nvml;
  Bytes flush;  ///< twice the L2 cache; written before a cold run
};

/// A layer on the GPU. The constructor uploads it, runs it once as plain launches (NVTX ranges, library
/// warm-up) and captures it as two CUDA graphs: a capture fails if anything between the first and the last
/// kernel synchronises with the host or allocates. run() replays both:
/// * all stages one after another with events between them: the stage times;
/// * what a user would run, with an event at either end only: the layer's time. The shared MLP runs beside
/// the
///   router and the experts, and kernels may be launched before the one they depend on has finished, which
///   events in between would forbid. So the layer takes less time than its stages together.
class CudaLayer final : public LayerExecution {
 public:
  /// `inputs` must outlive the layer. `options.kind` is not kAuto; `explanation` says why it is what it is,
  /// when auto chose it. Throws InvalidArgument, CudaError.
  CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
            const LayerInputs& inputs, const ScheduleOptions& options, std::string explanation);

  std::vector<StageTime> run(L2State l2) override;
  HostTensor output() override;
  Routing routing() override;
  std::vector<StageMemory> memory() const override { return plan_.stages; }
  ClockSample clocks() const override { return context_->nvml.sample(); }
  ScheduleKind schedule_kind() const override { return design_.options.kind; }
  std::string explanation() const override { return explanation_; }
  bool deterministic() const override;

  std::span<const Stage> stages() const override { return stages_; }
  /// Plain launches on stream(), in an NVTX range with the stage's name.
  void enqueue(Stage stage) override;
  void synchronize() override { stream_.synchronize(); }
  void empty_cache() override;
  cudaStream_t stream() const { return stream_.get(); }

 private:
  void enqueue(Stage stage, cudaStream_t stream);
  void enqueue_experts(Stage stage, cudaStream_t stream);
  /// What has to be done for the experts' kernel that needs no routing.
  void prepare_experts(cudaStream_t stream);
  StaircaseOutput staircase_output() const { return {design_.sums(), working_.get(), exponents_.get()}; }
  /// What is left to do after the experts' kernel: the shared MLP's result added, rounding.
  void finish(cudaStream_t stream);
  void enqueue_overlapped();
  void capture();
  void flush_if(L2State l2);
  void check_logits();
  float* logits() const { return static_cast<float*>(static_cast<void*>(working_.get())); }
  float* y() const { return logits(); }  ///< takes the place of the logits
  bool has(Stage stage) const;

  std::shared_ptr<DeviceContext> context_;
  std::shared_ptr<const ExpertBuffers> experts_;
  const LayerInputs& inputs_;
  LayerDesign design_;
  std::string explanation_;
  LayerMemoryPlan plan_;
  std::vector<Stage> stages_;
  Stream stream_;
  Stream side_stream_;  ///< in the overlapped graph, of what does not need the routing
  CublasLt blas_;
  CublasLt shared_blas_;
  Bytes hidden_states_;
  RouterBuffers router_;
  std::optional<RoutingBuffers> routing_;
  ScheduleBuffers schedule_;
  StripBuffers strips_;
  DeviceBuffer<std::int32_t> exponents_;
  DeviceBuffer<std::int64_t> bad_logit_;
  Bytes working_;
  Bytes output_;
  DeviceBuffer<float> shared_result_;
  Bytes shared_scratch_;
  Bytes scratch_;
  Bytes token_workspace_;
  std::optional<SparseLibrary> sparse_;
  DeviceWeights weights_;
  std::vector<Event> stage_events_;  ///< before the first stage, then after each
  std::array<Event, 2> layer_events_;
  Event fork_;
  Event join_;
  CudaGraphExec stage_graph_;
  CudaGraphExec layer_graph_;
};

}  // namespace moescope::cuda
