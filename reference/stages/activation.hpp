#pragma once

#include <cmath>
#include <numbers>

#include "core/layer/layer_shape.hpp"

namespace moescope::reference {

/// sigma of eq. 7, in the precision of its argument.
template <class Real>
Real activate(Activation activation, Real x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (Real{1} + std::exp(-x));
    case Activation::kGelu:
      return Real{0.5} * x * (Real{1} + std::erf(x / std::numbers::sqrt2_v<Real>));
    case Activation::kRelu:
      return x > Real{0} ? x : Real{0};
  }
  return x;
}

}  // namespace moescope::reference
