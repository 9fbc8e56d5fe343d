#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/contract/launch.hpp"
#include "kernels/device/block_ops.cuh"

/// A token's marginals: log-softmax of its row and column logits by one warp, and their sorting.
namespace moescope::cuda {

/// Order-preserving map of floats to integers: a < b as floats implies key(a) < key(b).
__device__ __forceinline__ unsigned to_key(float value) {
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float from_key(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

/// One warp turns one side's logits into log-softmax p = (s - max) - ln sum exp(s - max); returns max p. The
/// sum's order (lane l takes l, l+32, ...; then halves) is the reference's. Each lane touches p at its own
/// elements only. `finite` is cleared when one of the lane's logits is NaN or infinite.
__device__ inline float log_softmax(const float* logits, int count, float* p, bool& finite) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float largest = -FLT_MAX;
  for (int i = lane; i < count; i += kWarp) {
    const float s = logits[i];
    p[i] = s;
    finite = finite && isfinite(s);
    largest = fmaxf(largest, s);
  }
  largest = warp_max(largest);
  float sum = 0;
  for (int i = lane; i < count; i += kWarp) {
    sum += expf(p[i] - largest);
  }
  const float log_sum = logf(warp_sum(sum));
  for (int i = lane; i < count; i += kWarp) {
    p[i] = (p[i] - largest) - log_sum;
  }
  return 0.0F - log_sum;  // what the loop computes for the largest
}

/// The same for values that lie in registers: element 32 m + lane in x[m], -infinity beyond the count, which
/// stays.
template <int kPerLane>
__device__ __forceinline__ float log_softmax(float (&x)[kPerLane]) {
  float largest = -FLT_MAX;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    largest = fmaxf(largest, x[m]);
  }
  largest = warp_max(largest);
  float sum = 0;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    sum += expf(x[m] - largest);  // beyond the count: 0, which changes no sum
  }
  const float log_sum = logf(warp_sum(sum));
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    x[m] = (x[m] - largest) - log_sum;
  }
  return 0.0F - log_sum;
}

/// The same, or nothing but the largest where the logits are the marginals.
__device__ inline float to_marginal(const float* logits, int count, SelectMarginals marginals, float* p,
                                    bool& finite) {
  if (marginals == SelectMarginals::kLogSoftmax) {
    return log_softmax(logits, count, p, finite);
  }
  float largest = -FLT_MAX;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < count; i += kWarp) {
    const float s = logits[i];
    p[i] = s;
    finite = finite && isfinite(s);
    largest = fmaxf(largest, s);
  }
  return warp_max(largest);
}
template <int kPerLane>
__device__ __forceinline__ float to_marginal(float (&x)[kPerLane], SelectMarginals marginals) {
  if (marginals == SelectMarginals::kLogSoftmax) {
    return log_softmax(x);
  }
  float largest = -FLT_MAX;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    largest = fmaxf(largest, x[m]);
  }
  return warp_max(largest);
}

/// report(i) for the first NaN or infinite logit of a side that each lane sees.
template <class Report>
__device__ void find_bad(const float* logits, int count, Report report) {
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < count; i += kWarp) {
    if (!isfinite(logits[i])) {
      report(i);
      return;
    }
  }
}

/// Bitonic sort in memory, descending; length is a power of two.
template <int kThreads>
__device__ void sort_descending(float* data, int length) {
  for (int size = 2; size <= length; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < length / 2; pair += kThreads) {
        const int i = 2 * pair - (pair & (stride - 1));
        const float a = data[i];
        const float b = data[i + stride];
        if ((a < b) == ((i & size) == 0)) {
          data[i] = b;
          data[i + stride] = a;
        }
      }
      Block<kThreads>::sync();
    }
  }
}

__device__ __forceinline__ void order(float& first, float& second) {
  const float a = first;
  first = fmaxf(a, second);
  second = fminf(a, second);
}

/// Sorts x descending within each lane: Batcher's odd-even merge sort for any length (Knuth, TAOCP 5.2.2,
/// algorithm M).
template <int kPerLane>
__device__ __forceinline__ void sort_lane(float (&x)[kPerLane]) {
#pragma unroll
  for (int p = 1; p < kPerLane; p *= 2) {
#pragma unroll
    for (int k = p; k > 0; k /= 2) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int j = i - k % p;
        if (j >= 0 && j / k % 2 == 0 && i + k < kPerLane && i / (2 * p) == (i + k) / (2 * p)) {
          order(x[i], x[i + k]);
        }
      }
    }
  }
}

/// Sorts a bitonic sequence in each lane, descending.
template <int kPerLane>
__device__ __forceinline__ void merge_lane(float (&x)[kPerLane]) {
  if constexpr ((kPerLane & (kPerLane - 1)) == 0) {
#pragma unroll
    for (int stride = kPerLane / 2; stride > 0; stride /= 2) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if ((i & stride) == 0) {
          order(x[i], x[i + stride]);
        }
      }
    }
  } else {
    sort_lane(x);
  }
}

/// Bitonic sort of a warp's 32 x kPerLane values, descending: afterwards x[m] of lane l is the (kPerLane l +
/// m)-th. Sequences are joined across lanes element by element, so kPerLane need not be a power of two. A
/// lane whose sequence has to ascend holds it negated, which leaves one direction for every comparison within
/// a lane. The loops over lanes stay loops: fetching unrolled code from memory costs a small batch more than
/// it saves.
template <int kPerLane>
__device__ __forceinline__ void sort_warp(float (&x)[kPerLane]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  unsigned negated = 0;
  const auto set_direction = [&](int group) {
    const unsigned wanted = (lane & group) != 0 ? 0x80000000U : 0;
    const unsigned flip = wanted ^ negated;
    negated = wanted;
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      x[m] = __uint_as_float(__float_as_uint(x[m]) ^ flip);
    }
  };
  set_direction(1);
  sort_lane(x);
#pragma unroll 1
  for (int group = 2; group <= kWarp; group *= 2) {
    set_direction(group % kWarp);
#pragma unroll 1
    for (int distance = group / 2; distance > 0; distance /= 2) {
      const bool keep_larger = (lane & distance) == 0;
#pragma unroll
      for (int m = 0; m < kPerLane; ++m) {
        const float other = __shfl_xor_sync(kAllLanes, x[m], distance);
        x[m] = keep_larger ? fmaxf(x[m], other) : fminf(x[m], other);
      }
    }
    merge_lane(x);
  }
}

}  // namespace moescope::cuda
