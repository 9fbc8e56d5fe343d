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
                        touched_experts_workspace_bytes(shape()));
      default:
        return ListsBackward::scratch_bytes(stage);
    }
  }

 private:
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
    launch_touched_experts(shape(), pairs(), touched(), touched_count(), data_.scratch, stream);
  }
};

}  // namespace

std::unique_ptr<BackwardPath> make_dense_masked_backward(const BackwardDesign& design) {
  return std::make_unique<DenseMaskedBackward>(design);
}

}  // namespace moescope::cuda
