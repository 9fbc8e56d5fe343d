#include "kernels/experts/sparse_library.hpp"

#include <optional>

#include "kernels/layer/pairs_path.hpp"

namespace moescope::cuda {
namespace {

class SparseLibraryPath final : public PairsPath {
 public:
  using PairsPath::PairsPath;

  bool deterministic() const override { return false; }  // cuSPARSE promises nothing
  PathMemory memory() const override {
    PathMemory memory = PairsPath::memory();
    memory.schedule = SparseLibrary::memory_bytes(shape());
    return memory;
  }
  void prepare(const PathData& data, cudaStream_t stream) override {
    PairsPath::prepare(data, stream);
    library_.emplace(shape(), data.hidden_states, weights(), pairs(), data.y(), stream);
  }

 private:
  std::string expert_kernels() const override { return "experts_sparse_library"; }
  void enqueue_experts(cudaStream_t stream) override { library_->launch(stream); }

  std::optional<SparseLibrary> library_;
};

}  // namespace

std::unique_ptr<ExpertPath> make_sparse_library_path(const LayerDesign& design) {
  return std::make_unique<SparseLibraryPath>(design);
}

}  // namespace moescope::cuda
