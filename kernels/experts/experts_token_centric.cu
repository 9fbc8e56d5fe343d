// experts, schedule token_centric (PEER-style; the paper's "w/o ECS"): y_t = sum_k g_k sigma(x_t . w_in[I_k])
// w_out[I_k] (eq. 7 without the shared MLP), scores and sums fused: each pair reads one row of W [N,d] and
// one of V [N,d] once.
#include "kernels/experts/token_pairs.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

std::int64_t token_centric_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu) {
  const TokenSplit split =
      TokenSplit::choose(gpu, shape.num_tokens, shape.top_k, shape.hidden_size * dtype_bytes(shape.dtype),
                         TokenSplit::kMaxClusterBlocks, TokenSplit::kMaxClusters);
  const std::int64_t sums = split.clusters * shape.num_tokens * shape.hidden_size;
  return split.clusters == 1
             ? 0
             : arrivals_bytes(shape.num_tokens) + sums * static_cast<std::int64_t>(sizeof(float));
}

void launch_experts_token_centric(const LayerShape& shape, const void* hidden_states,
                                  const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                  ExpertOutput output, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  TokenPairsArgs args;
  args.x = hidden_states;
  args.w_in = weights.w_in;
  args.w_out = weights.w_out;
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.output = SumOutput(output);
  launch_token_pairs<true>(shape, args, workspace, stream);
}

}  // namespace moescope::cuda
