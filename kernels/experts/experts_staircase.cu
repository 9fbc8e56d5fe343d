// Stage experts of the staircase schedule, straight from strips, for sm_90a: wgmma, bulk tensor copies, warp
// specialisation.
//
// A work item is up to 128 tokens against a segment of one grid row or column (staircase_tiles.hpp):
//   S = X_tile W^T over d, P = gate * sigma(S) where the router's score passes the token's threshold and 0
//   elsewhere, rounded to bf16, sums[tokens] += P V over all d columns.
// No pair is ever listed: the epilogue tests S_r + S_c itself. P stays in registers, where the second product
// takes it from. One block per multiprocessor takes items from a counter on the device; its producer
// warpgroup runs ahead through shared-memory rings, so that the consumers' epilogue and additions are hidden
// behind loads. Experts of a segment whose weight is 0 are multiplied all the same: weights must be finite.
#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/experts_staircase_kernel.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

/// Strips of either rule that a batch can have, hence an upper bound of its tiles.
std::int64_t most_tiles(const LayerShape& shape) {
  const std::int64_t strips = shape.grid_rows + shape.grid_cols;
  const std::int64_t entries = shape.num_tokens * std::min(shape.top_k, strips);
  return entries / kStripTileTokens + std::min(entries, strips);
}

}  // namespace

bool experts_staircase_supported(const LayerShape& shape, const GpuTraits& gpu) {
#if defined(__CUDA_ARCH_LIST__)
  constexpr bool kBuilt = [] {
    for (const int arch : {__CUDA_ARCH_LIST__}) {
      if (arch == 900) {
        return true;
      }
    }
    return false;
  }();
#else
  constexpr bool kBuilt = false;
#endif
  constexpr std::int64_t kMaxInt = std::int64_t{1} << 31U;
  return kBuilt && gpu.has_wgmma() && shape.dtype == Dtype::kBF16 && shape.hidden_size % 8 == 0 &&
         most_tiles(shape) * kStripTileTokens < kMaxInt;
}

void launch_experts_staircase(const LayerShape& shape, const void* hidden_states,
                              const DeviceWeights& weights, DeviceStrips strips, StaircaseOutput output,
                              cudaStream_t stream) {
  shape.validate();
  if (shape.dtype != Dtype::kBF16) {
    throw InvalidArgument("dtype", to_string(shape.dtype), "the staircase kernel on strips takes bf16");
  }
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const StageRange range(Stage::kExperts);
  const StaircaseArguments args{.hidden_states = static_cast<const __nv_bfloat16*>(hidden_states),
                                .strips = strips,
                                .sums = output.sums,
                                .exponents = output.exponents,
                                .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
                                .grid_rows = static_cast<std::int32_t>(shape.grid_rows),
                                .grid_cols = static_cast<std::int32_t>(shape.grid_cols)};
  if (output.kind == StaircaseSums::kFp16) {
    launch_staircase<StaircaseSums::kFp16>(shape, weights, args, most_tiles(shape), stream);
  } else {
    launch_staircase<StaircaseSums::kFixedPoint>(shape, weights, args, most_tiles(shape), stream);
  }
}

}  // namespace moescope::cuda
