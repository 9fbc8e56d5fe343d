#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/systems/system_cost.hpp"
#include "kernels/buffers/system_buffers.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/systems/ffn_experts.hpp"
#include "kernels/systems/system_plan.hpp"

namespace moescope::cuda {

/// A baseline layer on the GPU (DESIGN section 5). In the overlapped graph the shared expert runs beside the
/// router. Bit-repeatable: no stage adds with atomics.
class CudaSystemLayer final : public GraphedLayer {
 public:
  /// `design` is that of `inputs`, which are copied. Throws InvalidArgument, CudaError.
  CudaSystemLayer(std::shared_ptr<DeviceContext> context, const SystemInputs& inputs,
                  const SystemDesign& design);

  HostTensor output() override;
  Routing routing() override;
  std::vector<StageMemory> memory() const override { return plan_.stages; }
  ScheduleOptions schedule_options() const override;
  const TokenAssignment* assignment() const override;
  std::string explanation() const override { return design_.explanation; }
  bool deterministic() const override { return true; }
  void enqueue(Stage stage) override { enqueue(stage, stream()); }

 private:
  void enqueue(Stage stage, cudaStream_t stream);
  void project(cudaStream_t stream);
  void select(cudaStream_t stream);
  void run_masked_experts(cudaStream_t stream);
  void run_mlp(cudaStream_t stream);
  void enqueue_overlapped() override;
  void check_logits() override;

  const SystemShape& shape() const { return design_.shape; }
  /// The row and column logits, or scores, of the last projection.
  RouterLogits download_scores();
  float* logits() const { return reinterpret_cast<float*>(working_.get() + plan_.logits_offset); }
  /// Where a kernel that sums and rounds leaves the layer's output.
  ExpertOutput expert_output() const;

  SystemDesign design_;
  SystemMemoryPlan plan_;
  CublasLt blas_;
  CublasLt mlp_blas_;
  Bytes hidden_states_;
  SystemBuffers weights_;
  std::optional<RoutingBuffers> routing_;
  DeviceBuffer<std::int64_t> bad_logit_;
  Bytes output_;
  Bytes working_;
  std::optional<FfnExperts> ffn_;
  mutable std::optional<TokenAssignment> assignment_;  ///< of the last run, once it was asked for
  DenseTiles mlp_tiles_;
  Bytes mlp_scratch_;
  DeviceBuffer<float> mlp_result_;
  Bytes token_workspace_;
};

}  // namespace moescope::cuda
