#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/moe_backend.hpp"

namespace moescope {

/// A rate that a device can be driven to, and how to drive it: work of known size, run and timed.
struct CeilingProbe {
  std::string metric;             ///< as in rows, unit included: "hbm_copy_bytes_per_s"
  std::string unit;               ///< "bytes_per_s" or "flop_per_s"
  std::string method;             ///< one line: what runs, over how much data, what is counted
  double work = 0;                ///< bytes or FLOP of one run
  std::function<double()> run_s;  ///< runs it once and returns its seconds; may throw Error
};

/// Everything a backend can say about its device's ceilings. The probes share buffers and stay valid as long
/// as one of them lives.
struct CeilingProbes {
  std::vector<CeilingProbe> probes;
  std::function<ClockSample()> clocks;
};

}  // namespace moescope
