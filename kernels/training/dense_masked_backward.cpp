#include <algorithm>

#include "kernels/training/lists_backward.hpp"

namespace moescope::cuda {
namespace {

class DenseMaskedBackward final : public ListsBackward {
 public:
  using ListsBackward::ListsBackward;

  std::int64_t scratch_bytes(Stage stage) const override {
    switch (stage) {
      case Stage::kExpertsDgrad:
        return dense_masked_dgrad_workspace_bytes(shape());
      case Stage::kExpertsWgrad:
        return std::max(dense_masked_wgrad_workspace_bytes(shape()),
                        loads_bytes() + touched_experts_workspace_bytes(shape()));
      default:
        return ListsBackward::scratch_bytes(stage);
    }
  }

 private:
  /// Rounded up, so that what follows lies aligned.
  std::int64_t loads_bytes() const { return (shape().num_experts() * 4 + 255) / 256 * 256; }
  std::string expert_kernels(Stage stage) const override {
    return stage == Stage::kExpertsDgrad ? "experts_dgrad<dense_masked>"
                                         : "experts_wgrad<dense_masked> + touched_experts";
  }
  void enqueue_dgrad(const DgradInputs& inputs, cudaStream_t stream) override {
    launch_experts_dgrad_dense_masked(*data_.blas, shape(), inputs, *data_.weights, pairs(), pair_gradients(),
                                      data_.scratch, data_.dx_holds, data_.dx, stream);
  }
  void enqueue_wgrad(cudaStream_t stream) override {
    launch_experts_wgrad_dense_masked(*data_.blas, shape(), data_.hidden_states, data_.dy, pairs(),
                                      pair_gradients(), data_.scratch, wgrad_output(), stream);
    auto* const loads = static_cast<std::int32_t*>(static_cast<void*>(data_.scratch));
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(loads, 0, static_cast<std::size_t>(loads_bytes()), stream));
    enqueue_loads(loads, stream);
    launch_touched_experts(shape(), loads, touched_list(), touched_size(), data_.scratch + loads_bytes(), stream);
  }
};

}  // namespace

std::unique_ptr<BackwardPath> make_dense_masked_backward(const BackwardDesign& design) {
  return std::make_unique<DenseMaskedBackward>(design);
}

}  // namespace moescope::cuda
