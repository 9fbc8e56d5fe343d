#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/buffers/schedule_buffers.hpp"
#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/experts/sparse_library.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/layer/layer_plan.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// An OmniMoE layer on the GPU. In the overlapped graph the shared MLP runs beside the router and the
/// experts.
class CudaLayer final : public GraphedLayer {
 public:
  /// `inputs` must outlive the layer. `options.kind` is not kAuto; `explanation` says why it is what it is,
  /// when auto chose it. Throws InvalidArgument, CudaError.
  CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
            const LayerInputs& inputs, const ScheduleOptions& options, std::string explanation);

  HostTensor output() override;
  Routing routing() override;
  std::vector<StageMemory> memory() const override { return plan_.stages; }
  ScheduleOptions schedule_options() const override { return design_.options; }
  std::string explanation() const override { return explanation_; }
  bool deterministic() const override;
  void enqueue(Stage stage) override;

 private:
  CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
            const LayerInputs& inputs, const LayerDesign& design, std::string explanation);

  void enqueue(Stage stage, cudaStream_t stream);
  void enqueue_experts(Stage stage, cudaStream_t stream);
  /// What has to be done for the experts' kernel that needs no routing.
  void prepare_experts(cudaStream_t stream);
  StaircaseOutput staircase_output() const { return {design_.sums(), working_.get(), exponents_.get()}; }
  /// What is left to do after the experts' kernel: the shared MLP's result added, rounding.
  void finish(cudaStream_t stream);
  void enqueue_overlapped() override;
  void check_logits() override;
  float* logits() const { return static_cast<float*>(static_cast<void*>(working_.get())); }
  float* y() const { return logits(); }  ///< takes the place of the logits

  std::shared_ptr<const ExpertBuffers> experts_;
  const LayerInputs& inputs_;
  LayerDesign design_;
  std::string explanation_;
  LayerMemoryPlan plan_;
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
};

}  // namespace moescope::cuda
