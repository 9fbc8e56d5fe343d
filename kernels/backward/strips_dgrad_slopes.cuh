#pragma once

#include "kernels/experts/experts_staircase_weights.cuh"

/// The arithmetic between the backward's two products, one token and expert at a time.
namespace moescope::cuda {

/// act(z) and act'(z) for values that are rounded to bf16 next; relu at 0: 0.
template <Activation kActivation>
__device__ __forceinline__ void activate_with_slope(float z, float& value, float& slope) {
  if constexpr (kActivation == Activation::kSilu) {
    float tanh = 0;
    asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(0.5F * z));
    const float sigmoid = fmaf(0.5F, tanh, 0.5F);
    value = z * sigmoid;
    slope = fmaf(value, 1.0F - sigmoid, sigmoid);
  } else if constexpr (kActivation == Activation::kGelu) {
    constexpr float kInvSqrt2 = 0.70710678118654752F;
    constexpr float kInvSqrt2Pi = 0.39894228040143268F;
    constexpr float kHalfLog2E = 0.72134752044448170F;
    const float cumulative = fmaf(0.5F, erff(z * kInvSqrt2), 0.5F);
    value = z * cumulative;
    slope = fmaf(z * kInvSqrt2Pi, exp2_fast(-kHalfLog2E * z * z), cumulative);
  } else {
    value = z < 0.0F ? 0.0F : z;
    slope = z > 0.0F ? 1.0F : 0.0F;
  }
}

/// What a pair leaves; all 0 where nothing is selected.
struct PairGradients {
  float gate, p, q, h;
};
template <Activation kActivation>
__device__ __forceinline__ PairGradients pair_gradients(const StaircaseToken& token, float other, int column,
                                                        float z, float u) {
  constexpr float kLog2E = 1.4426950408889634F;
  const float sum = token.own + other;
  const float gate = if_selected(token, sum, column, exp2_fast(fmaf(sum, kLog2E, token.gate_offset)));
  float value = 0;
  float slope = 0;
  activate_with_slope<kActivation>(z, value, slope);
  const float p = gate * value;
  return {gate, p, gate * u * slope, p * u};
}

}  // namespace moescope::cuda
