#pragma once

#include <cmath>

namespace moescope {

/// The larger of two errors, where NaN is larger than any: std::max(worst, NaN) is `worst`, and a result that
/// is no number would pass.
inline double worse_error(double a, double b) { return std::isnan(b) || b > a ? b : a; }

}  // namespace moescope
