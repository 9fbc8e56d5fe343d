#pragma once

#include <cuda_fp16.h>

#include <cstdint>

/// Reading sums that kernels on strips leave scaled, value = sum * 2^-exponent (StaircaseOutput).
namespace moescope::cuda {

/// Four sums.
__device__ __forceinline__ float4 to_floats(const __half* sums) {
  const uint2 words = *reinterpret_cast<const uint2*>(sums);
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&words.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&words.y));
  return make_float4(low.x, low.y, high.x, high.y);
}
__device__ __forceinline__ float4 to_floats(const std::int32_t* sums) {
  const int4 v = *reinterpret_cast<const int4*>(sums);
  return make_float4(static_cast<float>(v.x), static_cast<float>(v.y), static_cast<float>(v.z),
                     static_cast<float>(v.w));
}

/// 2^-exponent, normal.
__device__ __forceinline__ float scale_of(std::int32_t exponent) {
  return __int_as_float((127 - exponent) << 23);
}

}  // namespace moescope::cuda
