// z = x . w_in of every pair on strips, for the backward: the first product of the forward's kernel alone.
// Belongs to stage experts_dgrad where the forward kept no z.
#include "kernels/backward/strips_dgrad_kernel.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

void launch_strips_scores(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                          DeviceStrips strips, StripsPairs pairs, cudaStream_t stream) {
  const StripsDgradArguments args = strips_dgrad_arguments(shape, hidden_states, strips, pairs);
  const StageRange range(Stage::kExpertsDgrad);
  with_strip_tiles<StaircaseSums::kFp16, StaircasePass::kScores>(
      shape, [&]<class Tiles>(std::type_identity<Tiles>) {
        launch_strips_dgrad_kernel<Tiles, StripsScoresConsumer<Tiles>>(shape, weights.w_in, weights.w_in,
                                                                       args, pairs.layout.tiles, stream);
      });
}

}  // namespace moescope::cuda
