#pragma once

#include <type_traits>

#include "core/base/error.hpp"
#include "kernels/backward/strips_dgrad_consumer.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/experts/experts_staircase_producer.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/tensor_map.hpp"

/// The backward's two passes in the staircase kernel's frame, and their launch; strips_dgrad_*.cu and
/// strips_scores.cu instantiate them.
namespace moescope::cuda {

template <class Tiles, class Consumer>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    strips_dgrad_kernel(const __grid_constant__ StaircaseMaps maps,
                        const __grid_constant__ StripsDgradArguments args) {
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
  release_successor();
  wait_for_predecessor();
  __syncthreads();
  if (warp < 4) {
    shrink_registers<Tiles::kProducerRegisters>();
    produce<Tiles>(args.strips, maps, shared, warp, lane);
  } else {
    grow_registers<Tiles::kConsumerRegisters>();
    Consumer consumer(args, shared, warp / 4 - 1, warp % 4, lane);
    consumer.run();
  }
#endif
}

/// `first`, `second`: the matrices of the first and the second product.
template <class Tiles, class Consumer>
void launch_strips_dgrad_kernel(const LayerShape& shape, const void* first, const void* second,
                                StripsDgradArguments args, std::int64_t max_tiles, cudaStream_t stream) {
  const auto kernel = strips_dgrad_kernel<Tiles, Consumer>;
  const auto map = [&](const void* matrix, StripKind kind) {
    return make_strip_map(matrix, shape.grid_rows, shape.grid_cols, shape.hidden_size, kind, Tiles::kN);
  };
  const StaircaseMaps maps{.w_row = map(first, StripKind::kRow),
                           .w_col = map(first, StripKind::kCol),
                           .v_row = map(second, StripKind::kRow),
                           .v_col = map(second, StripKind::kCol)};
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kSharedBytes));
  const std::int64_t blocks = std::min(current_gpu().num_sms, max_tiles * args.strips.segments);
  launch_dependent(kernel,
                   {.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(Tiles::kThreads),
                    .shared_bytes = Tiles::kSharedBytes},
                   stream, maps, args);
}

/// launch(Tiles) with the tiles of the shape's grid, those of the forward.
template <StaircaseSums kSums, StaircasePass kPass, class Launch>
void with_strip_tiles(const LayerShape& shape, const Launch& launch) {
  switch (strip_segment_experts(shape.grid_rows, shape.grid_cols)) {
    case 64:
      return launch(std::type_identity<StaircaseTiles<64, 1, kSums, kPass>>{});
    case 160:
      return launch(std::type_identity<StaircaseTiles<160, 1, kSums, kPass>>{});
    case 256:
      return launch(std::type_identity<StaircaseTiles<128, 2, kSums, kPass>>{});
    default:
      return launch(std::type_identity<StaircaseTiles<160, 2, kSums, kPass>>{});
  }
}

template <StaircaseSums kSums>
void launch_strips_dgrad_sums(const LayerShape& shape, const DeviceWeights& weights,
                              const StripsDgradArguments& args, std::int64_t max_tiles, cudaStream_t stream) {
  with_strip_tiles<kSums, StaircasePass::kDgrad>(shape, [&]<class Tiles>(std::type_identity<Tiles>) {
    const auto launch = [&]<Activation kActivation>() {
      launch_strips_dgrad_kernel<Tiles, StripsDgradConsumer<Tiles, kActivation>>(
          shape, weights.w_out, weights.w_in, args, max_tiles, stream);
    };
    switch (shape.activation) {
      case Activation::kSilu:
        return launch.template operator()<Activation::kSilu>();
      case Activation::kGelu:
        return launch.template operator()<Activation::kGelu>();
      case Activation::kRelu:
        return launch.template operator()<Activation::kRelu>();
    }
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
