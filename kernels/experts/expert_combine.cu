// expert_combine, token by token: y_t = sum_k p_k w_out[I_k] (the outer sum of eq. 7): a product of the
// sparse [L,N] matrix of scores and V [N,d]. y [L,d] fp32. The baselines sum rows the same way: PKM its
// values, FFN experts their results by pair.
#include "kernels/contract/system_launch.hpp"
#include "kernels/experts/token_pairs.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

void launch_row_sums(const LayerShape& shape, const void* rows, const std::int32_t* ids, const float* weights,
                     ExpertOutput output, cudaStream_t stream) {
  TokenPairsArgs args;
  args.w_out = rows;
  args.expert_ids = ids;
  args.scores_in = weights;
  args.output = SumOutput(output);
  launch_token_pairs<false>(shape, args, nullptr, stream);
}

void launch_expert_combine(const LayerShape& shape, const DeviceWeights& weights, DeviceRouting routing,
                           const float* scores, float* y, cudaStream_t stream) {
  const StageRange range(Stage::kExpertCombine);
  launch_row_sums(shape, weights.w_out, routing.expert_ids, scores, {.y = y}, stream);
}

}  // namespace moescope::cuda
