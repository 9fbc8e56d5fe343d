#pragma once

#include "kernels/device/block_ops.cuh"

namespace moescope::cuda {

/// sums[key] += value of every lane that has one; lanes of one key in order: no atomics, the same bits in
/// every run. All lanes of the warp call it.
__device__ __forceinline__ void add_in_order(float* sums, int key, float value, bool has) {
  unsigned left = __ballot_sync(kAllLanes, has);
  const unsigned peers = __match_any_sync(kAllLanes, has ? key : -1);
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  while (left != 0) {
    // Of every key the first lane that is left.
    const bool turn = (left >> lane & 1U) != 0 && __ffs(static_cast<int>(peers & left)) - 1 == lane;
    if (turn) {
      sums[key] += value;
    }
    left &= ~__ballot_sync(kAllLanes, turn);
    __syncwarp();
  }
}

}  // namespace moescope::cuda
