#pragma once

#include <cuda_bf16.h>

/// Four neighbouring values of a lane, of memory that is read or written once: past L1, and first out of L2.
namespace moescope::cuda {

__device__ __forceinline__ void load_four(const float* from, float (&to)[4]) {
  const float4 four = __ldcs(reinterpret_cast<const float4*>(from));
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}
__device__ __forceinline__ void load_four(const __nv_bfloat16* from, float (&to)[4]) {
  const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
  to[0] = __uint_as_float(two.x << 16);
  to[1] = __uint_as_float(two.x & 0xffff0000U);
  to[2] = __uint_as_float(two.y << 16);
  to[3] = __uint_as_float(two.y & 0xffff0000U);
}
__device__ __forceinline__ void store_four(float* to, const float (&from)[4]) {
  __stcs(reinterpret_cast<float4*>(to), make_float4(from[0], from[1], from[2], from[3]));
}
__device__ __forceinline__ void store_four(__nv_bfloat16* to, const float (&from)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(from[0], from[1]);
  const __nv_bfloat162 high = __floats2bfloat162_rn(from[2], from[3]);
  __stcs(reinterpret_cast<uint2*>(to),
         make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high)));
}

}  // namespace moescope::cuda
