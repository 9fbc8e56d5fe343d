#pragma once

#include <optional>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/layer/expert_path.hpp"

namespace moescope::cuda {

/// What the roads over a list of pairs have in common: K experts of every token with their gates, selected on
/// the device or recorded.
class PairsPath : public ExpertPath {
 public:
  using ExpertPath::ExpertPath;

  PathMemory memory() const override;
  std::string kernels(Stage stage) const override;
  void prepare(const PathData& data, cudaStream_t stream) override;
  void enqueue(Stage stage, cudaStream_t stream) override;
  Routing routing(cudaStream_t stream) const override;
  void set_routing(const Routing& routing, cudaStream_t stream) override;

 protected:
  DeviceRouting pairs() const { return routing_->view(); }
  const DeviceWeights& weights() const { return *data_.weights; }
  /// The kernels of kExperts and what stands for them.
  virtual void enqueue_experts(cudaStream_t stream) = 0;
  virtual std::string expert_kernels() const = 0;

 private:
  std::optional<RoutingBuffers> routing_;
};

}  // namespace moescope::cuda
