#include "kernels/layer/pairs_path.hpp"

#include <fmt/format.h>

#include "core/base/error.hpp"

namespace moescope::cuda {

PathMemory PairsPath::memory() const {
  PathMemory memory;
  memory.routing = RoutingBuffers::required_bytes(shape());
  memory.select_workspace = design_.fixed_routing ? 0 : router_select_workspace_bytes(shape(), gpu());
  const bool rounds_at_once = finishes_alone() && shape().dtype == Dtype::kBF16;
  memory.sums = rounds_at_once ? 0 : shape().num_tokens * shape().hidden_size * dtype_bytes(Dtype::kF32);
  return memory;
}

std::string PairsPath::kernels(Stage stage) const {
  return stage == Stage::kRouterSelect ? "router_select" : expert_kernels() + finish_name();
}

void PairsPath::prepare(const PathData& data, cudaStream_t /*stream*/) {
  data_ = data;
  routing_.emplace(shape());
}

void PairsPath::enqueue(Stage stage, cudaStream_t stream) {
  if (stage == Stage::kRouterSelect) {
    launch_router_select(shape(), data_.logits(), pairs(), data_.bad_logit, data_.select_workspace, stream);
  } else if (stage == Stage::kExperts) {
    enqueue_experts(stream);
  } else {
    throw InternalError(fmt::format("no stage {} under {}", to_string(stage), to_string(options())));
  }
}

Routing PairsPath::routing(cudaStream_t stream) const { return routing_->download(shape(), stream); }

void PairsPath::set_routing(const Routing& routing, cudaStream_t stream) {
  require_routing_of(shape(), routing);
  routing_->upload(routing, stream);
}

}  // namespace moescope::cuda
