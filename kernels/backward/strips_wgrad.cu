// Stage experts_wgrad on strips, for sm_90a: dW = q^T X and dV = p^T dY, strip by strip, with no atomics.
// Every expert lies in one row strip and one column strip. The rows' launch stores what its strips' tokens
// give (or adds it to what is there), and zeros where they have none; the columns' launch, after it, adds.
// One block per multiprocessor takes work items in turn: its producer warpgroup fills a ring with 32 tokens'
// p or q and rows of X or dY, its consumers keep 320 experts by 128 columns of the sum in registers. Two
// blocks make a pair that works on neighbouring columns: each loads half of p or q for both.
//
// Rows past a strip's end in the last slot are the next strip's (launch_strips_backward_prepare sees to it
// that they are finite) against zeros in X's or dY's place.
#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/backward/strips_wgrad_consumer.cuh"
#include "kernels/backward/strips_wgrad_producer.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"
#include "kernels/runtime/tensor_map.hpp"

namespace moescope::cuda {
namespace {

template <class Tiles, class Gradient>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    strips_wgrad(const __grid_constant__ WgradMaps maps, const __grid_constant__ WgradArguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  const WgradShared<Tiles> shared(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and known to be
  if (threadIdx.x == 0) {
    shared.init_barriers();
    prefetch_map(&maps.p);
    prefetch_map(&maps.q);
    prefetch_map(&maps.w_in);
    prefetch_map(&maps.w_out);
  }
  release_successor();
  __syncthreads();
  pair_arrive();
  wait_for_predecessor();
  pair_wait();
  if (warp < 4) {
    shrink_registers<Tiles::kProducerRegisters>();
    produce_wgrad<Tiles>(args, maps, shared, warp, lane);
  } else {
    grow_registers<Tiles::kConsumerRegisters>();
    WgradConsumer<Tiles, Gradient> consumer(args, maps, shared, warp / 4 - 1, warp % 4, lane);
    consumer.run();
  }
  pair_arrive();  // the other block may still fill this one's memory
  pair_wait();
#endif
}

/// A row's places in boxes of 64 by 16 entries by all of a work item's experts: one copy for a group.
template <class Tiles>
CUtensorMap make_pairs_map(const void* rows, const StripsPairsLayout& layout) {
  return make_box_map({.memory = rows,
                       .dtype = Dtype::kBF16,
                       .extents = {64, layout.entries, layout.pitch / 64},
                       .strides = {layout.pitch * 2, 128},
                       .box = {64, Tiles::kGroupTokens, Tiles::kMTiles}});
}

template <class Gradient>
void launch_kind(const LayerShape& shape, StripKind kind, WgradArguments args, const StripsPairs& pairs,
                 const StripsWeightGradients& gradients, cudaStream_t stream) {
  using Tiles = WgradTiles<Gradient>;
  const auto kernel = strips_wgrad<Tiles, Gradient>;
  const bool rows = kind == StripKind::kRow;
  const std::int64_t strips = rows ? shape.grid_rows : shape.grid_cols;
  const std::int64_t length = rows ? shape.grid_cols : shape.grid_rows;
  args.first_strip = static_cast<std::int32_t>(rows ? 0 : shape.grid_rows);
  args.length = static_cast<std::int32_t>(length);
  args.is_col = rows ? 0 : 1;
  args.adds = !rows || gradients.adds ? 1 : 0;
  args.chunks = static_cast<std::int32_t>(ceil_div(shape.hidden_size, std::int64_t{2 * Tiles::kColumns}));
  args.segments = static_cast<std::int32_t>(ceil_div(length, std::int64_t{Tiles::kExperts}));
  const std::int64_t items = strips * args.segments * 2 * args.chunks;
  if (items >= std::int64_t{1} << 31U) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "too many parts of the weights' gradients");
  }
  args.items = static_cast<std::int32_t>(items);
  const auto target = [&](const void* matrix) {
    return make_strip_map(matrix, shape.grid_rows, shape.grid_cols, shape.hidden_size, kind, 16,
                          gradients.dtype);
  };
  const WgradMaps maps{.p = make_pairs_map<Tiles>(pairs.p, pairs.layout),
                       .q = make_pairs_map<Tiles>(pairs.q, pairs.layout),
                       .w_in = target(gradients.w_in),
                       .w_out = target(gradients.w_out)};
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kSharedBytes));
  const std::int64_t blocks = std::min(current_gpu().num_sms / 2 * 2, 2 * items);
  launch_dependent(kernel,
                   {.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(Tiles::kThreads),
                    .shared_bytes = Tiles::kSharedBytes,
                    .cluster_blocks = 2},
                   stream, maps, args);
}

}  // namespace

void launch_strips_wgrad(const LayerShape& shape, StripRule rule, const void* hidden_states, const void* dy,
                         DeviceStrips strips, StripsPairs pairs, StripsWeightGradients gradients,
                         cudaStream_t stream) {
  shape.validate();
  if (shape.dtype != Dtype::kBF16) {
    throw InvalidArgument("dtype", to_string(shape.dtype), "the backward on strips takes bf16");
  }
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const StageRange range(Stage::kExpertsWgrad);
  const WgradArguments args{.hidden_states = static_cast<const __nv_bfloat16*>(hidden_states),
                            .dy = static_cast<const __nv_bfloat16*>(dy),
                            .strip_offsets = strips.strip_offsets,
                            .strip_tokens = strips.strip_tokens,
                            .hidden_size = static_cast<std::int32_t>(shape.hidden_size)};
  const auto launch = [&](StripKind kind) {
    if (gradients.dtype == Dtype::kBF16) {
      launch_kind<__nv_bfloat16>(shape, kind, args, pairs, gradients, stream);
    } else {
      launch_kind<float>(shape, kind, args, pairs, gradients, stream);
    }
  };
  launch(StripKind::kRow);
  if (rule != StripRule::kRowsOnly) {
    launch(StripKind::kCol);
  }
}

}  // namespace moescope::cuda
