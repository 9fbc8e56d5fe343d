#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/layer/layer_shape.hpp"

/// The arithmetic between the staircase kernel's two products, one token and expert at a time.
namespace moescope::cuda {

/// sigma of paper eq. 7 for values that are rounded to bf16 next. silu by the hardware's tanh: one
/// special-function operation where the exponential form takes two; its error, 2^-11 |x| / 2 at most, is a
/// quarter of bf16's for scores of order one.
template <Activation kActivation>
__device__ __forceinline__ float activate_fast(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    const float half = 0.5F * x;
    float tanh = 0;
    asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(half));
    return fmaf(half, tanh, half);
  } else if constexpr (kActivation == Activation::kGelu) {
    constexpr float kInvSqrt2 = 0.70710678118654752F;
    const float half = 0.5F * x;
    return fmaf(half, erff(x * kInvSqrt2), half);
  } else {
    return x < 0.0F ? 0.0F : x;
  }
}

/// What the epilogue needs to know of one token.
struct StaircaseToken {
  float own;
  float threshold;
  float gate_offset;
  std::int32_t last_tie;
};

/// 2^x, to 2 ulp.
__device__ __forceinline__ float exp2_fast(float x) {
  float result = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// `value` if the expert whose scores add up to `sum` is selected, else 0. `column`: its place in the
/// segment. Without branches: among 32 tokens and experts some are always selected.
__device__ __forceinline__ float if_selected(const StaircaseToken& token, float sum, int column,
                                             float value) {
  float result = 0;
  asm("{\n.reg .pred above, tie;\n"
      "setp.le.s32 tie, %3, %4;\nsetp.eq.and.f32 tie, %1, %2, tie;\nsetp.gt.or.f32 above, %1, %2, tie;\n"
      "selp.f32 %0, %5, 0f00000000, above;\n}"
      : "=f"(result)
      : "f"(sum), "f"(token.threshold), "r"(column), "r"(token.last_tie), "f"(value));
  return result;
}

/// gate * 2^exponent * sigma(score) if the expert is selected, else 0.
template <Activation kActivation>
__device__ __forceinline__ float weigh(const StaircaseToken& token, float other, int column, float score) {
  constexpr float kLog2E = 1.4426950408889634F;
  const float sum = token.own + other;
  const float gate = exp2_fast(fmaf(sum, kLog2E, token.gate_offset));
  return if_selected(token, sum, column, gate * activate_fast<kActivation>(score));
}

__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ __forceinline__ std::uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

}  // namespace moescope::cuda
