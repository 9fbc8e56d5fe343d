#pragma once

#include <ctime>

namespace moescope::test {

/// Seconds that this process has computed, whatever else the machine does meanwhile.
inline double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

}  // namespace moescope::test
