#pragma once

#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/experts_staircase_consumer.cuh"
#include "kernels/experts/experts_staircase_producer.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/tensor_map.hpp"

/// The staircase kernel and its launch; experts_staircase_*.cu instantiate it, one file per kind of sums.
namespace moescope::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma needs the architecture 90a, not 90"
#endif

template <class Tiles, Activation kActivation>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    experts_staircase_kernel(const __grid_constant__ StaircaseMaps maps,
                             const __grid_constant__ StaircaseArguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  const StaircaseShared<Tiles> shared(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and known to be
  if (threadIdx.x == 0) {
    shared.init_barriers();
    prefetch_map(&maps.w_row);
    prefetch_map(&maps.w_col);
    prefetch_map(&maps.v_row);
    prefetch_map(&maps.v_col);
  }
  __syncthreads();
  if (warp < 4) {
    shrink_registers<Tiles::kProducerRegisters>();
    produce<Tiles>(args, maps, shared, warp, lane);
  } else {
    grow_registers<Tiles::kConsumerRegisters>();
    StaircaseConsumer<Tiles, kActivation> consumer(args, shared, warp / 4 - 1, warp % 4, lane);
    consumer.run();
  }
#endif
}

template <class Tiles, Activation kActivation>
void launch_staircase_kernel(const LayerShape& shape, const DeviceWeights& weights, StaircaseArguments args,
                             std::int64_t max_tiles, cudaStream_t stream) {
  const auto kernel = experts_staircase_kernel<Tiles, kActivation>;
  const auto map = [&](const void* matrix, StripKind kind) {
    return make_strip_map(matrix, shape.grid_rows, shape.grid_cols, shape.hidden_size, kind, Tiles::kN);
  };
  const StaircaseMaps maps{.w_row = map(weights.w_in, StripKind::kRow),
                           .w_col = map(weights.w_in, StripKind::kCol),
                           .v_row = map(weights.w_out, StripKind::kRow),
                           .v_col = map(weights.w_out, StripKind::kCol)};
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kSharedBytes));
  args.segments =
      static_cast<std::int32_t>(ceil_div(std::max(shape.grid_rows, shape.grid_cols), Tiles::kExperts));
  const std::int64_t blocks = std::min(current_gpu().num_sms, max_tiles * args.segments);
  kernel<<<static_cast<unsigned>(blocks), Tiles::kThreads, Tiles::kSharedBytes, stream>>>(maps, args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

template <class Tiles>
void launch_staircase_tiles(const LayerShape& shape, const DeviceWeights& weights,
                            const StaircaseArguments& args, std::int64_t max_tiles, cudaStream_t stream) {
  switch (shape.activation) {
    case Activation::kSilu:
      return launch_staircase_kernel<Tiles, Activation::kSilu>(shape, weights, args, max_tiles, stream);
    case Activation::kGelu:
      return launch_staircase_kernel<Tiles, Activation::kGelu>(shape, weights, args, max_tiles, stream);
    case Activation::kRelu:
      return launch_staircase_kernel<Tiles, Activation::kRelu>(shape, weights, args, max_tiles, stream);
  }
}

template <StaircaseSums kSums>
void launch_staircase(const LayerShape& shape, const DeviceWeights& weights, const StaircaseArguments& args,
                      std::int64_t max_tiles, cudaStream_t stream) {
  switch (strip_segment_experts(shape.grid_rows, shape.grid_cols)) {
    case 64:
      return launch_staircase_tiles<StaircaseTiles<64, 1, kSums>>(shape, weights, args, max_tiles, stream);
    case 160:
      return launch_staircase_tiles<StaircaseTiles<160, 1, kSums>>(shape, weights, args, max_tiles, stream);
    case 256:
      return launch_staircase_tiles<StaircaseTiles<128, 2, kSums>>(shape, weights, args, max_tiles, stream);
    default:
      return launch_staircase_tiles<StaircaseTiles<160, 2, kSums>>(shape, weights, args, max_tiles, stream);
  }
}

extern template void launch_staircase<StaircaseSums::kFp16>(const LayerShape&, const DeviceWeights&,
                                                            const StaircaseArguments&, std::int64_t,
                                                            cudaStream_t);
extern template void launch_staircase<StaircaseSums::kFixedPoint>(const LayerShape&, const DeviceWeights&,
                                                                  const StaircaseArguments&, std::int64_t,
                                                                  cudaStream_t);

}  // namespace moescope::cuda
