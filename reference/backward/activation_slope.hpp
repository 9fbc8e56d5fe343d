#pragma once

#include <cmath>
#include <numbers>

#include "core/layer/layer_shape.hpp"

namespace moescope::reference {

/// d/dx of activate() (activation.hpp), in the precision of its argument. relu at 0: 0.
template <class Real>
Real activation_slope(Activation activation, Real x) {
  switch (activation) {
    case Activation::kSilu: {
      const Real s = Real{1} / (Real{1} + std::exp(-x));
      return s * (Real{1} + x * (Real{1} - s));
    }
    case Activation::kGelu:  // Phi(x) + x phi(x)
      return Real{0.5} * (Real{1} + std::erf(x / std::numbers::sqrt2_v<Real>)) +
             x * std::exp(-x * x / Real{2}) *
                 (std::numbers::inv_sqrtpi_v<Real> / std::numbers::sqrt2_v<Real>);
    case Activation::kRelu:
      return x > Real{0} ? Real{1} : Real{0};
  }
  return Real{1};
}

}  // namespace moescope::reference
