// experts of pairs that a caller chose, token by token: experts_token_centric.cu without a pass over the ids
// before it. A call of few tokens takes as long as its launches do.
#include "kernels/contract/given_pairs.hpp"
#include "kernels/experts/token_pairs.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

void launch_experts_given_pairs(const LayerShape& shape, const void* hidden_states,
                                const DeviceWeights& weights, const GivenPairs& pairs, void* workspace,
                                ExpertOutput output, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  if (workspace != nullptr) {  // the counters of clusters that have arrived
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(workspace, 0, static_cast<std::size_t>(arrivals_bytes(shape.num_tokens)), stream));
  }
  GivenPairsArgs args;
  args.x = hidden_states;
  args.w_in = weights.w_in;
  args.w_out = weights.w_out;
  args.expert_ids = pairs.ids;
  args.wide_ids = pairs.wide_ids;
  args.num_experts = shape.num_experts();
  args.gates = pairs.gates;
  args.output = SumOutput(output);
  launch_token_pairs<true>(shape, args, workspace, stream);
}

}  // namespace moescope::cuda
