#pragma once

#include "kernels/experts/experts_staircase_frame.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

/// The staircase kernel and its launch; experts_staircase_*.cu instantiate it, one file per kind of sums.
namespace moescope::cuda {

template <class Tiles, Activation kActivation>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    experts_staircase_kernel(const __grid_constant__ StaircaseMaps maps,
                             const __grid_constant__ StaircaseArguments args) {
  run_on_strips<Tiles, StaircaseConsumer<Tiles, kActivation>>(maps, args, args, [] {});
}

template <class Tiles, Activation kActivation>
void launch_staircase_kernel(const LayerShape& shape, const DeviceWeights& weights, StaircaseArguments args,
                             std::int64_t max_tiles, cudaStream_t stream) {
  const auto kernel = experts_staircase_kernel<Tiles, kActivation>;
  const StaircaseMaps maps = staircase_maps<Tiles>(shape, weights);
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kSharedBytes));
  args.segments =
      static_cast<std::int32_t>(ceil_div(std::max(shape.grid_rows, shape.grid_cols), Tiles::kExperts));
  const std::int64_t blocks = std::min(current_gpu().num_sms, max_tiles * args.segments);
  kernel<<<static_cast<unsigned>(blocks), Tiles::kThreads, Tiles::kSharedBytes, stream>>>(maps, args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

template <StaircaseSums kSums>
void launch_staircase(const LayerShape& shape, const DeviceWeights& weights, const StaircaseArguments& args,
                      std::int64_t max_tiles, cudaStream_t stream) {
  with_strip_tiles<kSums, StaircasePass::kForward>(shape, [&]<class Tiles>(std::type_identity<Tiles>) {
    with_activation(shape.activation, [&]<Activation kActivation>() {
      launch_staircase_kernel<Tiles, kActivation>(shape, weights, args, max_tiles, stream);
    });
  });
}

extern template void launch_staircase<StaircaseSums::kFp16>(const LayerShape&, const DeviceWeights&,
                                                            const StaircaseArguments&, std::int64_t,
                                                            cudaStream_t);
extern template void launch_staircase<StaircaseSums::kFixedPoint>(const LayerShape&, const DeviceWeights&,
                                                                  const StaircaseArguments&, std::int64_t,
                                                                  cudaStream_t);

}  // namespace moescope::cuda
