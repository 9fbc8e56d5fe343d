// Strips in a fixed order, for the backward's sums over a strip's tokens. A block to a strip: its tokens set
// bits of a map in shared memory, in windows of kWindow tokens, and a token's rank is the number of bits
// before its own. What lies before a window is counted on the way, so nothing depends on the order read.
#include <algorithm>

#include "kernels/contract/strips_backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWords = 4096;  ///< of 32 bits
constexpr std::int64_t kWindow = std::int64_t{32} * kWords;

/// First place in cover[0, size), ascending, that holds `strip`.
__device__ __forceinline__ int place_of(const std::int32_t* cover, int size, int strip) {
  int low = 0;
  while (low < size) {
    const int middle = (low + size) / 2;
    if (cover[middle] < strip) {
      low = middle + 1;
    } else {
      size = middle;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    order_strips(DeviceStrips strips, StripsOrder order, std::int64_t num_tokens, int max_cover) {
  using B = Block<kThreads>;
  __shared__ std::uint32_t bits[kWords];
  __shared__ std::int32_t before[kWords];
  const int strip = static_cast<int>(blockIdx.x);
  wait_for_predecessor();
  const int begin = strips.strip_offsets[strip];
  const int count = strips.strip_offsets[strip + 1] - begin;
  if (count == 0) {
    return;
  }
  int ranked = 0;
  for (std::int64_t first = 0; first < num_tokens && ranked < count; first += kWindow) {
    const auto words = static_cast<int>((min(kWindow, num_tokens - first) + 31) / 32);
    for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
      bits[i] = 0;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const std::int64_t at = strips.strip_tokens[begin + i] - first;
      if (at >= 0 && at < kWindow) {
        atomicOr(bits + at / 32, 1U << (at % 32));
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
      before[i] = __popc(bits[i]);
    }
    __syncthreads();
    const int last = before[words - 1];
    __syncthreads();
    B::scan_array<true>(before, words);
    __syncthreads();
    const int window = before[words - 1] + last;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const std::int32_t token = strips.strip_tokens[begin + i];
      const std::int64_t at = token - first;
      if (at >= 0 && at < kWindow) {
        const std::uint32_t below = bits[at / 32] & ((1U << (at % 32)) - 1);
        const int entry = begin + ranked + before[at / 32] + __popc(below);
        order.strip_tokens[entry] = token;
        const std::int64_t cover = token * std::int64_t{max_cover};
        const int place = place_of(strips.cover + cover, strips.cover_sizes[token], strip);
        order.entries[cover + place] = entry;
      }
    }
    ranked += window;
    __syncthreads();
  }
}

}  // namespace

void launch_strips_order(const LayerShape& shape, StripRule rule, DeviceStrips strips, StripsOrder order,
                         cudaStream_t stream) {
  shape.validate();
  const StageRange range(Stage::kSchedule);
  const std::int64_t blocks = shape.grid_rows + shape.grid_cols;
  launch_dependent(order_strips, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)},
                   stream, strips, order, shape.num_tokens,
                   static_cast<int>(max_strips_of_token(shape, rule)));
}

}  // namespace moescope::cuda
