#pragma once

#include "kernels/device/activation.cuh"

namespace moescope::cuda {

/// act(z) and act'(z) in fp32, with the exponential of activation.cuh.
struct ActivationValue {
  float value;
  float slope;
};

/// The branch is uniform over a grid. relu at 0: slope 0.
__device__ __forceinline__ ActivationValue activate_with_slope(Activation activation, float x) {
  switch (activation) {
    case Activation::kGelu: {
      constexpr float kInvSqrt2 = 0.70710678118654752F;
      constexpr float kInvSqrt2Pi = 0.39894228040143268F;
      const float phi = 0.5F * (1.0F + erff(x * kInvSqrt2));
      return {x * phi, fmaf(x, __expf(-0.5F * x * x) * kInvSqrt2Pi, phi)};
    }
    case Activation::kRelu:
      return {x < 0.0F ? 0.0F : x, x > 0.0F ? 1.0F : 0.0F};
    case Activation::kSilu:
      break;
  }
  const float s = __fdividef(1.0F, 1.0F + __expf(-x));
  return {activate<Activation::kSilu>(x), s * (1.0F + x * (1.0F - s))};
}

}  // namespace moescope::cuda
