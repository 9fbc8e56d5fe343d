#pragma once

#include "kernels/backward/strips_dgrad_consumer.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/experts/experts_staircase_frame.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

/// The backward's two passes in the staircase kernel's frame, and their launch; strips_dgrad_*.cu and
/// strips_scores.cu instantiate them.
namespace moescope::cuda {

template <class Tiles, class Consumer>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    strips_dgrad_kernel(const __grid_constant__ StaircaseMaps maps,
                        const __grid_constant__ StripsDgradArguments args) {
  run_on_strips<Tiles, Consumer>(maps, args.strips, args, [] {
    release_successor();
    wait_for_predecessor();
  });
}

/// `first`, `second`: the matrices of the first and the second product.
template <class Tiles, class Consumer>
void launch_strips_dgrad_kernel(const LayerShape& shape, const void* first, const void* second,
                                StripsDgradArguments args, std::int64_t max_tiles, cudaStream_t stream) {
  const auto kernel = strips_dgrad_kernel<Tiles, Consumer>;
  const StaircaseMaps maps = staircase_maps<Tiles>(shape, first, second);
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kSharedBytes));
  const std::int64_t blocks = std::min(current_gpu().num_sms, max_tiles * args.strips.segments);
  launch_dependent(kernel,
                   {.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(Tiles::kThreads),
                    .shared_bytes = Tiles::kSharedBytes},
                   stream, maps, args);
}

template <StaircaseSums kSums>
void launch_strips_dgrad_sums(const LayerShape& shape, const DeviceWeights& weights,
                              const StripsDgradArguments& args, std::int64_t max_tiles, cudaStream_t stream) {
  with_strip_tiles<kSums, StaircasePass::kDgrad>(shape, [&]<class Tiles>(std::type_identity<Tiles>) {
    with_activation(shape.activation, [&]<Activation kActivation>() {
      launch_strips_dgrad_kernel<Tiles, StripsDgradConsumer<Tiles, kActivation>>(
          shape, weights.w_out, weights.w_in, args, max_tiles, stream);
    });
  });
}

extern template void launch_strips_dgrad_sums<StaircaseSums::kFp16>(const LayerShape&, const DeviceWeights&,
                                                                    const StripsDgradArguments&, std::int64_t,
                                                                    cudaStream_t);
extern template void launch_strips_dgrad_sums<StaircaseSums::kFixedPoint>(const LayerShape&,
                                                                          const DeviceWeights&,
                                                                          const StripsDgradArguments&,
                                                                          std::int64_t, cudaStream_t);

/// Arguments that both passes have.
StripsDgradArguments strips_dgrad_arguments(const LayerShape& shape, const void* gathered,
                                            DeviceStrips strips, const StripsPairs& pairs);

}  // namespace moescope::cuda
