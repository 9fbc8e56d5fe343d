// expert_combine, token by token: y_t = sum_k p_k w_out[I_k] (the outer sum of eq. 7): a product of the
// sparse [L,N] matrix of scores and V [N,d]. y [L,d] fp32.
#include "kernels/nvtx.hpp"
#include "kernels/token_pairs.cuh"

namespace moescope::cuda {

void launch_expert_combine(const LayerShape& shape, const DeviceWeights& weights, DeviceRouting routing,
                           const float* scores, float* y, cudaStream_t stream) {
  const StageRange range(Stage::kExpertCombine);
  TokenPairsArgs args;
  args.w_out = weights.w_out;
  args.expert_ids = routing.expert_ids;
  args.scores_in = scores;
  args.output = SumOutput(ExpertOutput{.y = y});
  launch_token_pairs<false, true>(shape, args, nullptr, stream);
}

}  // namespace moescope::cuda
