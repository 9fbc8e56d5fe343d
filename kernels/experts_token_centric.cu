// experts, schedule token_centric (PEER-style; the paper's "w/o ECS"): y_t = sum_k g_k sigma(x_t . w_in[I_k])
// w_out[I_k] (eq. 7 without the shared MLP), scores and sums fused: each pair reads one row of W [N,d] and
// one of V [N,d] once. y [L,d] fp32.
#include "kernels/nvtx.hpp"
#include "kernels/token_pairs.cuh"

namespace moescope::cuda {

void launch_experts_token_centric(const LayerShape& shape, const void* hidden_states,
                                  const DeviceWeights& weights, DeviceRouting routing, float* y,
                                  cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  TokenPairsArgs args;
  args.x = hidden_states;
  args.w_in = weights.w_in;
  args.w_out = weights.w_out;
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.y = y;
  launch_token_pairs<true, true>(shape, args, stream);
}

}  // namespace moescope::cuda
