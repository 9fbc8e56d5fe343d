#include "kernels/layer/pairs_path.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::cuda {
namespace {

class DenseMaskedPath final : public PairsPath {
 public:
  using PairsPath::PairsPath;

  bool deterministic() const override { return true; }
  PathMemory memory() const override {
    PathMemory memory = PairsPath::memory();
    memory.library = CublasLt::kWorkspaceBytes;
    return memory;
  }
  std::int64_t scratch_bytes(Stage stage) const override {
    return stage == Stage::kExperts ? dense_masked_workspace_bytes(shape()) : 0;
  }

 private:
  std::string expert_kernels() const override { return "experts_dense_masked"; }
  void enqueue_experts(cudaStream_t stream) override {
    launch_experts_dense_masked(*data_.blas, shape(), data_.hidden_states, weights(), pairs(), data_.scratch,
                                data_.y(), stream);
  }
};

}  // namespace

std::unique_ptr<ExpertPath> make_dense_masked_path(const LayerDesign& design) {
  return std::make_unique<DenseMaskedPath>(design);
}

}  // namespace moescope::cuda
