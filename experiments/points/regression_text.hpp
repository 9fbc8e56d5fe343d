#pragma once

#include <iosfwd>

#include "profiler/report/regression.hpp"

namespace moescope {

/// Every time that is not the same, and the counts.
void print_regressions(std::ostream& out, const RegressionReport& report, double threshold);

}  // namespace moescope
