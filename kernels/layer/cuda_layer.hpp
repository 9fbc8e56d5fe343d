#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/layer/expert_path.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/layer/layer_plan.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// An OmniMoE layer on the GPU: router, shared MLP and the path that its schedule takes. In the overlapped
/// graph the shared MLP runs beside the router and the experts.
class CudaLayer final : public GraphedLayer {
 public:
  /// `inputs` must outlive the layer; `path` is made for them and not prepared yet. `explanation` says why
  /// the schedule is what it is, when auto chose it. Throws InvalidArgument, CudaError.
  CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
            const LayerInputs& inputs, std::unique_ptr<ExpertPath> path, std::string explanation);

  HostTensor output() override;
  Routing routing() override { return path_->routing(stream()); }
  std::vector<StageMemory> memory() const override { return plan_.stages; }
  ScheduleOptions schedule_options() const override { return path_->design().options; }
  std::string explanation() const override { return explanation_; }
  bool deterministic() const override { return path_->deterministic(); }
  void enqueue(Stage stage) override;
  std::string kernels(Stage stage) const override;
  StageData run_alone(Stage stage, const StageData& given) override;

 private:
  void enqueue(Stage stage, cudaStream_t stream);
  void enqueue_overlapped() override;
  void check_logits() override;
  /// Flat index of the first logit that is not finite, or -1; -1 again afterwards.
  std::int64_t take_bad_logit();
  /// Puts in place what `stage` reads, running the path's stages between that and it. The kernels of these.
  std::string bring_up(Stage stage, const StageData& given);
  float* logits() const { return static_cast<float*>(static_cast<void*>(working_.get())); }
  float* y() const { return logits(); }  ///< takes the place of the logits

  std::shared_ptr<const ExpertBuffers> experts_;
  const LayerInputs& inputs_;
  std::unique_ptr<ExpertPath> path_;
  std::string explanation_;
  LayerMemoryPlan plan_;
  CublasLt blas_;
  CublasLt shared_blas_;
  Bytes hidden_states_;
  RouterBuffers router_;
  DeviceBuffer<std::int64_t> bad_logit_;
  Bytes working_;
  Bytes output_;
  DeviceBuffer<float> shared_result_;
  Bytes shared_scratch_;
  Bytes scratch_;
  DeviceWeights weights_;
};

}  // namespace moescope::cuda
