#pragma once

#include <algorithm>
#include <type_traits>

#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/experts_staircase_consumer.cuh"
#include "kernels/experts/experts_staircase_producer.cuh"
#include "kernels/runtime/tensor_map.hpp"

/// What the kernels on strips share, forward (experts_staircase_kernel.cuh) and backward
/// (kernels/backward/strips_dgrad_kernel.cuh): a producer warpgroup and consumers, matrices by TMA, and tiles
/// by the grid.
namespace moescope::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma needs the architecture 90a, not 90"
#endif

/// The whole of such a kernel. `between` comes after the barriers are set up and before anybody waits at
/// them.
template <class Tiles, class Consumer, class Arguments, class Between>
__device__ __forceinline__ void run_on_strips(const StaircaseMaps& maps, const StaircaseArguments& strips,
                                              const Arguments& args, const Between& between) {
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
  between();
  __syncthreads();
  if (warp < 4) {
    shrink_registers<Tiles::kProducerRegisters>();
    produce<Tiles>(strips, maps, shared, warp, lane);
  } else {
    grow_registers<Tiles::kConsumerRegisters>();
    Consumer consumer(args, shared, warp / 4 - 1, warp % 4, lane);
    consumer.run();
  }
#endif
}

/// `first`, `second`: the matrices [N, d] of the first and the second product.
template <class Tiles>
StaircaseMaps staircase_maps(const LayerShape& shape, const void* first, const void* second) {
  const auto map = [&](const void* matrix, StripKind kind) {
    return make_strip_map(matrix, shape.grid_rows, shape.grid_cols, shape.hidden_size, kind, Tiles::kN);
  };
  return {.w_row = map(first, StripKind::kRow),
          .w_col = map(first, StripKind::kCol),
          .v_row = map(second, StripKind::kRow),
          .v_col = map(second, StripKind::kCol)};
}

/// The same of W and V as a layer has them.
template <class Tiles>
StaircaseMaps staircase_maps(const LayerShape& shape, const DeviceWeights& weights) {
  if (weights.w_in_cols == nullptr) {
    return staircase_maps<Tiles>(shape, weights.w_in, weights.w_out);
  }
  // Boxes are asked for as (columns of the matrix, grid column, grid row). Of the columns stored apart,
  // neighbours in a grid column lie next to each other.
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(shape.dtype);
  const auto rows = [&](const void* matrix) {
    return make_strip_map(matrix, std::max<std::int64_t>(weights.strip_rows, 1), shape.grid_cols,
                          shape.hidden_size, StripKind::kRow, Tiles::kN);
  };
  const auto cols = [&](const void* matrix) {
    return make_box_map(
        {.memory = matrix,
         .dtype = shape.dtype,
         .extents = {shape.hidden_size, std::max<std::int64_t>(weights.strip_cols, 1), shape.grid_rows},
         .strides = {row_bytes * shape.grid_rows, row_bytes},
         .box = {128 / dtype_bytes(shape.dtype), 1, Tiles::kN}});
  };
  return {.w_row = rows(weights.w_in),
          .w_col = cols(weights.w_in_cols),
          .v_row = rows(weights.w_out),
          .v_col = cols(weights.w_out_cols)};
}

/// launch(std::type_identity<Tiles>) with the tiles of the shape's grid.
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

/// launch.template operator()<kActivation>().
template <class Launch>
void with_activation(Activation activation, const Launch& launch) {
  switch (activation) {
    case Activation::kSilu:
      return launch.template operator()<Activation::kSilu>();
    case Activation::kGelu:
      return launch.template operator()<Activation::kGelu>();
    case Activation::kRelu:
      return launch.template operator()<Activation::kRelu>();
  }
}

}  // namespace moescope::cuda
