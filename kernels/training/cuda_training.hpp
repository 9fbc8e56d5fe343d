#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/backend/training_execution.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/training/backward_path.hpp"
#include "kernels/training/training_optimizer.hpp"
#include "kernels/training/training_plan.hpp"

namespace moescope::cuda {

/// The layer's output for a routing that is given: the forward, run once.
using ForwardOutput = std::function<HostTensor(const Routing&)>;

/// The backward of an OmniMoE layer on the GPU: stages captured in one graph with events between them, and in
/// one without (GraphedExecution). What the selection and the experts need is the path's.
class CudaTraining final : public GraphedExecution<TrainingExecution> {
 public:
  /// Runs the forward: the router as the backward runs it again, then `forward` for the output. `inputs` and
  /// `dy` must outlive the step; `path` is made for them and not prepared yet. Running averages of a batch
  /// norm begin at means of 0 and variances of 1. Throws InvalidArgument, CudaError.
  CudaTraining(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
               const LayerInputs& inputs, const HostTensor& dy, const TrainingOptions& training,
               std::unique_ptr<BackwardPath> path, const ForwardOutput& forward, std::string explanation);

  HostTensor output() override { return output_.clone(); }
  Routing routing() override { return path_->routing(stream()); }
  std::vector<StageMemory> memory() const override;
  ScheduleOptions schedule_options() const override { return path_->design().options; }
  std::string explanation() const override { return explanation_; }
  bool deterministic() const override { return path_->deterministic(); }
  void enqueue(Stage stage) override;
  std::string kernels(Stage stage) const override;

  /// Copied from the device when asked for.
  const LayerGradients& gradients() const override;
  void set_gradients(const LayerGradients& start) override;
  ExpertStep expert_step() const override { return optimizer_.download(stream()); }
  RunningNorm row_norm() const override { return row_norm_; }
  RunningNorm col_norm() const override { return col_norm_; }
  std::int64_t saved_bytes() const override { return plan_.bytes(MemoryPart::kSaved); }
  MemoryPlan plan() const override { return plan_; }
  /// Device memory held, as it was allocated: what plan() says, term by term.
  std::int64_t allocated_bytes() const;

 private:
  void enqueue(Stage stage, cudaStream_t stream);
  void enqueue_overlapped() override;
  void check_logits() override;
  void run_router();
  void project(cudaStream_t stream);
  void backward_of_selection(cudaStream_t stream);
  void backward_of_projection(cudaStream_t stream);
  void step_experts(cudaStream_t stream) const;
  void round_dx(cudaStream_t stream) const;
  void clear_gradients();
  bool adds() const { return training_.form == GradientForm::kAdded; }
  void update_norms();
  std::int64_t take_bad_logit();
  bool has_router() const { return !inputs_.fixed_routing.has_value(); }
  DeviceNorm norm() const;
  const LayerShape& shape() const { return inputs_.shape; }

  std::shared_ptr<const ExpertBuffers> experts_;
  const LayerInputs& inputs_;
  TrainingOptions training_;
  std::unique_ptr<BackwardPath> path_;
  std::string explanation_;
  TrainingSizes sizes_;
  MemoryPlan plan_;
  CublasLt blas_;
  Bytes hidden_states_;
  Bytes dy_;
  RouterBuffers router_;
  DeviceWeights weights_;
  DeviceBuffer<std::int64_t> bad_logit_;
  DeviceBuffer<float> logits_;
  DeviceBuffer<float> lse_;
  DeviceBuffer<double> statistics_;
  DeviceBuffer<float> dx_sums_;
  Bytes dx_;
  Bytes w_in_gradient_;
  Bytes w_out_gradient_;
  DeviceBuffer<float> logits_gradient_;
  DeviceBuffer<float> before_norm_;
  Bytes router_gradient_;
  DeviceBuffer<float> bias_gradient_;
  Bytes shared_gate_up_gradient_;
  Bytes shared_down_gradient_;
  DeviceBuffer<std::int32_t> loads_;
  DeviceBuffer<double> losses_;
  Bytes scratch_;
  TrainingOptimizer optimizer_;
  Stage last_of_dx_;  ///< behind it dX is rounded
  HostTensor output_;
  RunningNorm row_norm_;
  RunningNorm col_norm_;
  mutable LayerGradients gradients_;
  mutable bool stale_ = true;  ///< gradients_ are not those of the last run
};

}  // namespace moescope::cuda
