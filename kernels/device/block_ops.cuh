#pragma once

namespace moescope::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

/// Block-wide operations in a fixed order, so that sums are bit-repeatable. A block of one warp needs no
/// barrier.
template <int kThreads>
struct Block {
  static constexpr int kWarps = kThreads / kWarp;

  static __device__ __forceinline__ void sync() {
    if constexpr (kWarps > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  /// A barrier that tells whether `value` holds for any thread.
  static __device__ __forceinline__ bool any(bool value) {
    if constexpr (kWarps > 1) {
      return __syncthreads_or(value ? 1 : 0) != 0;
    } else {
      return __any_sync(kAllLanes, value) != 0;
    }
  }

  template <class T, class Op>
  static __device__ T reduce(T value, Op op) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
    }
    if constexpr (kWarps > 1) {
      __shared__ T partial[kWarps];
      __syncthreads();  // the previous reduction has been read
      if (threadIdx.x % kWarp == 0) {
        partial[threadIdx.x / kWarp] = value;
      }
      __syncthreads();
      value = partial[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        value = op(value, partial[w]);
      }
    }
    return value;
  }

  template <class T>
  static __device__ T sum(T value) {
    return reduce(value, [](T a, T b) { return a + b; });
  }

  /// Inclusive prefix sum over the block's threads; `total` is that of the last one.
  template <class T>
  static __device__ T inclusive_scan(T value, T& total) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const T below = __shfl_up_sync(kAllLanes, value, offset);
      value = lane >= offset ? value + below : value;
    }
    total = __shfl_sync(kAllLanes, value, kWarp - 1);
    if constexpr (kWarps > 1) {
      __shared__ T partial[kWarps];
      __syncthreads();
      const int warp = static_cast<int>(threadIdx.x) / kWarp;
      if (lane == kWarp - 1) {
        partial[warp] = value;
      }
      __syncthreads();
      T before = 0;
      total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        before = w < warp ? before + partial[w] : before;
        total += partial[w];
      }
      value += before;
    }
    return value;
  }

  /// data[0, count) becomes its prefix sum; exclusive or inclusive.
  template <bool kExclusive, class T>
  static __device__ void scan_array(T* data, int count) {
    T carry = 0;
    for (int first = 0; first < count; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const T value = i < count ? data[i] : T{0};
      T total;
      const T inclusive = inclusive_scan(value, total);
      if (i < count) {
        data[i] = carry + (kExclusive ? inclusive - value : inclusive);
      }
      carry += total;
    }
    sync();
  }
};

}  // namespace moescope::cuda
