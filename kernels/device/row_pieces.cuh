#pragma once

#include <cuda_bf16.h>

#include <cstdint>

/// Sums of rows, 16 bytes of a row to a lane: a piece of a row times a factor, and the way sums go to memory.
namespace moescope::cuda {

/// 16 bytes of a row of T.
template <class T>
struct Piece {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));

  static __device__ __forceinline__ void add(const uint4& raw, float scale, float (&sum)[kElements]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        sum[2 * i] = fmaf(scale, __uint_as_float(words[i] << 16), sum[2 * i]);
        sum[2 * i + 1] = fmaf(scale, __uint_as_float(words[i] & 0xffff0000U), sum[2 * i + 1]);
      } else {
        sum[i] = fmaf(scale, __uint_as_float(words[i]), sum[i]);
      }
    }
  }
};

/// Stores kCount values at `to`, 16 bytes at a time (8 of four values in bf16), past L1 and L2's favour.
template <class Out, int kCount>
__device__ __forceinline__ void store_row(Out* to, const float (&sum)[kCount]) {
  if constexpr (sizeof(Out) == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      __stcs(reinterpret_cast<float4*>(to + i), make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
  } else {
    unsigned words[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
      words[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    if constexpr (kCount == 8) {
      __stcs(reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
    } else {
      __stcs(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
    }
  }
}

/// What lay in a row of gradients before, to be added to.
template <class Out, int kCount>
struct OldRow {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(Out)) / 4;
  unsigned words[kWords];

  __device__ __forceinline__ void load(const Out* from) {
    if constexpr (kWords % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from) + i / 4);
        words[i] = four.x;
        words[i + 1] = four.y;
        words[i + 2] = four.z;
        words[i + 3] = four.w;
      }
    } else {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
      words[0] = two.x;
      words[1] = two.y;
    }
  }
  __device__ __forceinline__ void add_to(float (&sum)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(Out) == 2) {
        sum[2 * i] += __uint_as_float(words[i] << 16);
        sum[2 * i + 1] += __uint_as_float(words[i] & 0xffff0000U);
      } else {
        sum[i] += __uint_as_float(words[i]);
      }
    }
  }
};

}  // namespace moescope::cuda
