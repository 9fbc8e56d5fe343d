#pragma once

#include <optional>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/training/backward_path.hpp"

namespace moescope::cuda {

/// What the roads over lists of pairs have in common: K experts of every token with their gates, selected on
/// the device or recorded; p, q and the gates' gradients of every pair in fp32; the router's gates backward.
class ListsBackward : public BackwardPath {
 public:
  using BackwardPath::BackwardPath;

  std::vector<MemoryTerm> memory() const override;
  std::int64_t scratch_bytes(Stage stage) const override;
  bool deterministic() const override { return true; }
  std::string kernels(Stage stage) const override;

  void prepare(const BackwardData& data, cudaStream_t stream) override;
  std::int64_t allocated_bytes() const override;
  void enqueue(Stage stage, cudaStream_t stream) override;
  void save_scores(cudaStream_t stream) override;
  const std::int32_t* touched() const override { return touched_list(); }
  const std::int32_t* touched_count() const override { return touched_size(); }
  DeviceLogProbs log_probs() const override;
  void enqueue_loads(std::int32_t* loads, cudaStream_t stream) override;

  Routing routing(cudaStream_t stream) const override;
  void set_routing(const Routing& routing, cudaStream_t stream) override;
  std::vector<float> gate_gradients(cudaStream_t stream) const override;
  std::vector<std::int32_t> touched_experts(cudaStream_t stream) const override;

 protected:
  /// The expert stages' kernels. enqueue_dgrad() leaves z where `inputs` says.
  virtual void enqueue_dgrad(const DgradInputs& inputs, cudaStream_t stream) = 0;
  /// dW, dV and the list of touched experts.
  virtual void enqueue_wgrad(cudaStream_t stream) = 0;
  virtual std::string expert_kernels(Stage stage) const = 0;

  DeviceRouting pairs() const { return routing_->view(); }
  DevicePairGradients pair_gradients() const;
  WgradOutput wgrad_output() const;
  std::int32_t* touched_list() const { return touched_.get(); }
  std::int32_t* touched_size() const { return touched_.get() + shape().num_experts(); }
  /// kWorking from the first stage to the last: nothing is freed in between.
  static MemoryTerm working(std::string_view what, std::int64_t bytes) {
    return {MemoryPart::kWorking, what, bytes};
  }

 private:
  DgradInputs dgrad_inputs() const;

  std::optional<RoutingBuffers> routing_;
  DeviceBuffer<float> pair_gradients_;  ///< [3, M]: of the gates, p, q
  DeviceBuffer<float> scores_;          ///< [M] z; SaveMode::kScores alone
  DeviceBuffer<std::int32_t> touched_;  ///< [N + 1]: the list, and how many
};

}  // namespace moescope::cuda
