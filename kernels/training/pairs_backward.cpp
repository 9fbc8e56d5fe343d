#include "kernels/training/lists_backward.hpp"

namespace moescope::cuda {
namespace {

class PairsBackward final : public ListsBackward {
 public:
  using ListsBackward::ListsBackward;

  std::vector<MemoryTerm> memory() const override {
    auto terms = ListsBackward::memory();
    terms.push_back(
        working("pairs by expert", (list_offsets() * (shape().num_experts() + 1) + shape().num_pairs()) * 4));
    terms.push_back(working("sums of a token's clusters", experts_dgrad_workspace_bytes(shape(), gpu())));
    return terms;
  }
  std::int64_t scratch_bytes(Stage stage) const override {
    if (stage != Stage::kExpertsWgrad) {
      return ListsBackward::scratch_bytes(stage);
    }
    return pairs_are_few(shape()) ? few_pairs_by_expert_workspace_bytes(shape())
                                  : pairs_by_expert_workspace_bytes(shape());
  }
  void prepare(const BackwardData& data, cudaStream_t stream) override {
    ListsBackward::prepare(data, stream);
    offsets_ = make_filled<std::int32_t>(list_offsets() * (shape().num_experts() + 1), stream);
    sorted_ = make_filled<std::int32_t>(shape().num_pairs(), stream);
    clusters_ = Bytes(experts_dgrad_workspace_bytes(shape(), gpu()));
    if (clusters_.bytes() > 0) {
      MOESCOPE_CUDA_CHECK(
          cudaMemsetAsync(clusters_.get(), 0, static_cast<std::size_t>(clusters_.bytes()), stream));
    }
  }
  std::int64_t allocated_bytes() const override {
    return ListsBackward::allocated_bytes() + offsets_.bytes() + sorted_.bytes() + clusters_.bytes();
  }
  /// The sort needs nothing but the selection, and the data gradients leave the scratch alone.
  bool prepares_wgrad() const override { return true; }
  void prepare_wgrad(cudaStream_t stream) override {
    (pairs_are_few(shape()) ? launch_few_pairs_by_expert : launch_pairs_by_expert)(
        shape(), pairs(), by_expert(), data_.scratch, stream);
  }
  bool wgrad_stays_apart() const override { return true; }
  void enqueue_prepared_wgrad(cudaStream_t stream) override {
    launch_experts_wgrad(shape(), data_.hidden_states, data_.dy, pair_gradients(), by_expert(),
                         wgrad_output(), stream);
  }

 private:
  DevicePairsByExpert by_expert() const {
    return {.offsets = offsets_.get(),
            .pairs = sorted_.get(),
            .touched = touched_list(),
            .touched_count = touched_size(),
            .touched_offsets =
                list_offsets() == 2 ? offsets_.get() + shape().num_experts() + 1 : nullptr};
  }
  /// Where experts' pairs begin; then, unless all rows are stored, where those of touched ones do.
  std::int64_t list_offsets() const { return design_.form == GradientForm::kStored ? 1 : 2; }
  std::string expert_kernels(Stage stage) const override {
    if (stage == Stage::kExpertsDgrad) {
      return "experts_dgrad<pairs>";
    }
    return std::string(pairs_are_few(shape()) ? "few_pairs_by_expert" : "pairs_by_expert") +
           (design_.form == GradientForm::kStored    ? " + experts_wgrad<pairs>"
            : design_.form == GradientForm::kTouched ? " + experts_wgrad_touched<stored>"
                                                     : " + experts_wgrad_touched<added>");
  }
  void enqueue_dgrad(const DgradInputs& inputs, cudaStream_t stream) override {
    launch_experts_dgrad(shape(), inputs, *data_.weights, pairs(), pair_gradients(), clusters_.get(),
                         data_.dx_holds, data_.dx, stream);
  }
  void enqueue_wgrad(cudaStream_t stream) override {
    prepare_wgrad(stream);
    enqueue_prepared_wgrad(stream);
  }

  DeviceBuffer<std::int32_t> offsets_;
  DeviceBuffer<std::int32_t> sorted_;
  Bytes clusters_;
};

}  // namespace

std::unique_ptr<BackwardPath> make_pairs_backward(const BackwardDesign& design) {
  return std::make_unique<PairsBackward>(design);
}

}  // namespace moescope::cuda
