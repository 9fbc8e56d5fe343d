#pragma once

#include "core/layer/layer_shape.hpp"

namespace moescope::cuda {

/// sigma of paper eq. 7 in fp32. silu uses the fast exponential: its relative error (2 ulp + 1e-7 |x|) is far
/// below the fp32 tolerance of 1e-5.
template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return __fdividef(x, 1.0F + __expf(-x));
  } else if constexpr (kActivation == Activation::kGelu) {
    constexpr float kInvSqrt2 = 0.70710678118654752F;
    return 0.5F * x * (1.0F + erff(x * kInvSqrt2));
  } else {
    return x < 0.0F ? 0.0F : x;  // keeps NaN, unlike fmaxf
  }
}

/// The same, chosen at run time; the branch is uniform over a grid.
__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kGelu:
      return activate<Activation::kGelu>(x);
    case Activation::kRelu:
      return activate<Activation::kRelu>(x);
    case Activation::kSilu:
      break;
  }
  return activate<Activation::kSilu>(x);
}

}  // namespace moescope::cuda
