#include "kernels/layer/pairs_path.hpp"

namespace moescope::cuda {
namespace {

class TokenCentricPath final : public PairsPath {
 public:
  using PairsPath::PairsPath;

  bool deterministic() const override { return true; }
  bool finishes_alone() const override { return true; }
  PathMemory memory() const override {
    PathMemory memory = PairsPath::memory();
    memory.extra = token_centric_workspace_bytes(shape(), gpu());
    return memory;
  }
  void prepare(const PathData& data, cudaStream_t stream) override {
    PairsPath::prepare(data, stream);
    workspace_ = Bytes(token_centric_workspace_bytes(shape(), gpu()));
    if (workspace_.bytes() > 0) {
      MOESCOPE_CUDA_CHECK(
          cudaMemsetAsync(workspace_.get(), 0, static_cast<std::size_t>(workspace_.bytes()), stream));
    }
  }
  void finish(cudaStream_t /*stream*/) override {}
  std::string kernels(Stage stage) const override {
    return stage == Stage::kExperts ? expert_kernels() : PairsPath::kernels(stage);
  }

 private:
  std::string expert_kernels() const override { return "experts_token_centric"; }
  void enqueue_experts(cudaStream_t stream) override {
    const bool bf16 = shape().dtype == Dtype::kBF16;
    const ExpertOutput output{
        .y = bf16 ? nullptr : data_.y(), .addend = data_.shared_result, .rounded = data_.rounded};
    launch_experts_token_centric(shape(), data_.hidden_states, weights(), pairs(), workspace_.get(), output,
                                 stream);
  }

  Bytes workspace_;
};

}  // namespace

std::unique_ptr<ExpertPath> make_token_centric_path(const LayerDesign& design) {
  return std::make_unique<TokenCentricPath>(design);
}

}  // namespace moescope::cuda
