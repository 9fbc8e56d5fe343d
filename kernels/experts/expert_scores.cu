// expert_scores, token by token: p[pair] = gate * sigma(x_t . w_in[expert]) (the inner part of eq. 7) for
// every pair of the routing: a product of X [L,d] and W^T [d,N] sampled at the pairs. p [L*K] fp32 in CSR
// order.
#include "kernels/experts/token_pairs.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

void launch_expert_scores(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                          DeviceRouting routing, float* scores, cudaStream_t stream) {
  const StageRange range(Stage::kExpertScores);
  TokenPairsArgs args;
  args.x = hidden_states;
  args.w_in = weights.w_in;
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.scores_out = scores;
  launch_token_pairs<true, false>(shape, args, nullptr, stream);
}

}  // namespace moescope::cuda
