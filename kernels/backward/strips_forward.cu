// The forward on strips (experts_staircase.cu) of a training step: z leaves by the way, 80 KB a tile of 128
// tokens by 320 experts, so that the backward need not read X and W again for it.
#include "kernels/backward/strips_dgrad_kernel.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

template <StaircaseSums kSums>
void launch_sums(const LayerShape& shape, const DeviceWeights& weights, const StripsDgradArguments& args,
                 std::int64_t max_tiles, cudaStream_t stream) {
  with_strip_tiles<kSums, StaircasePass::kForward>(shape, [&]<class Tiles>(std::type_identity<Tiles>) {
    with_activation(shape.activation, [&]<Activation kActivation>() {
      launch_strips_dgrad_kernel<Tiles, StripsForwardConsumer<Tiles, kActivation>>(
          shape, weights.w_in, weights.w_out, args, max_tiles, stream);
    });
  });
}

}  // namespace

void launch_strips_forward(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                           DeviceStrips strips, StripsPairs pairs, StaircaseOutput output,
                           cudaStream_t stream) {
  StripsDgradArguments args = strips_dgrad_arguments(shape, hidden_states, strips, pairs);
  const StageRange range(Stage::kExperts);
  args.strips.sums = output.sums;
  args.strips.exponents = output.exponents;
  if (output.kind == StaircaseSums::kFp16) {
    launch_sums<StaircaseSums::kFp16>(shape, weights, args, pairs.layout.tiles, stream);
  } else {
    launch_sums<StaircaseSums::kFixedPoint>(shape, weights, args, pairs.layout.tiles, stream);
  }
}

}  // namespace moescope::cuda
