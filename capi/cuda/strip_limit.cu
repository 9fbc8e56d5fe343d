#include "capi/cuda/strip_limit.hpp"

#include <algorithm>

#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::capi::gpu {
namespace {

constexpr int kThreads = 256;

/// One block: all of its threads have read the counts before one is changed.
__global__ void __launch_bounds__(kThreads)
    limit_strips(std::int64_t tokens, std::int64_t offsets, cuda::DeviceStrips strips, std::int64_t entries,
                 std::int64_t tiles, std::int32_t* exceeded) {
  const bool too_many = strips.counts[0] > entries || strips.counts[1] > tiles;
  __syncthreads();
  const auto thread = static_cast<std::int64_t>(threadIdx.x);
  if (thread == 0) {
    *exceeded = too_many ? 1 : 0;
  }
  if (!too_many) {
    return;
  }
  if (thread < 2) {
    strips.counts[thread] = 0;
  }
  for (std::int64_t i = thread; i < offsets; i += kThreads) {
    strips.strip_offsets[i] = 0;
  }
  for (std::int64_t i = thread; i < tokens; i += kThreads) {
    strips.cover_sizes[i] = 0;
  }
}

__global__ void __launch_bounds__(kThreads)
    poison(const std::int32_t* exceeded, float* values, std::int64_t count) {
  if (*exceeded == 0) {
    return;
  }
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    values[i] = __int_as_float(0x7fffffff);
  }
}

}  // namespace

void launch_limit_strips(const LayerShape& shape, cuda::DeviceStrips strips, std::int64_t entries,
                         std::int64_t tiles, std::int32_t* exceeded, cudaStream_t stream) {
  limit_strips<<<1, kThreads, 0, stream>>>(shape.num_tokens, shape.grid_rows + shape.grid_cols + 1, strips,
                                           entries, tiles, exceeded);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_poison(const std::int32_t* exceeded, float* values, std::int64_t count, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 256;
  const auto blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
  poison<<<blocks, kThreads, 0, stream>>>(exceeded, values, count);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::capi::gpu
