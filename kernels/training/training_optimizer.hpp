#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/backend/training_execution.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/optimizer.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// The optimizer of a step: its state on both tables, and copies of W and V that it steps. The backward goes on
/// reading the ones it was given.
class TrainingOptimizer {
 public:
  static std::int64_t state_bytes(const LayerShape& shape);
  static std::int64_t weight_bytes(const LayerShape& shape);  ///< of both copies

  TrainingOptimizer() = default;  ///< none: holds nothing
  /// `given`: W and V, which are copied; `gradients`: dW and dV, read by every step. Both stay where they are.
  TrainingOptimizer(const LayerShape& shape, const AdamWOptions& options, const DeviceWeights& given,
                    Dtype gradient_dtype, const void* w_in_gradient, const void* w_out_gradient,
                    cudaStream_t stream);

  /// Back to before the first step. Needs the W and V that were given.
  void restart(cudaStream_t stream) const;
  void enqueue(OptimizerRows rows, cudaStream_t stream) const;
  /// Blocks.
  ExpertStep download(cudaStream_t stream) const;
  std::int64_t allocated_bytes() const;

 private:
  AdamWClock clock() const { return {clock_.get(), factors_.get()}; }

  LayerShape shape_;
  AdamWOptions options_;
  AdamWTables tables_;
  const void* given_[2] = {nullptr, nullptr};
  DeviceBuffer<float> state_;  ///< [2, 3, N, d]: of W, of V: weights, first and second moments
  DeviceBuffer<std::int32_t> last_step_;
  DeviceBuffer<std::int32_t> clock_;
  DeviceBuffer<float> factors_;
  Bytes w_in_;
  Bytes w_out_;
};

}  // namespace moescope::cuda
