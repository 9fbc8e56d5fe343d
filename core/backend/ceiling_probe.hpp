#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend/moe_backend.hpp"

namespace moescope {

/// Names of ceilings, unit included, as in rows. hbm is the main memory and l2 the last-level cache of
/// whatever device it is, as in traffic.hpp; a device may lack some.
namespace ceiling {
inline constexpr std::string_view kHbmCopy = "hbm_copy_bytes_per_s";
inline constexpr std::string_view kHbmRead = "hbm_read_bytes_per_s";
inline constexpr std::string_view kHbmWrite = "hbm_write_bytes_per_s";
inline constexpr std::string_view kL2Read = "l2_read_bytes_per_s";
inline constexpr std::string_view kL2Reduction = "l2_reduction_bytes_per_s";
inline constexpr std::string_view kSharedRead = "shared_read_bytes_per_s";
inline constexpr std::string_view kBf16Matrix = "bf16_matrix_flop_per_s";
inline constexpr std::string_view kFp32 = "fp32_flop_per_s";
}  // namespace ceiling

/// A rate that a device can be driven to, and how to drive it: work of known size, run and timed. Several
/// probes of one metric are patterns that compete: the best one is the ceiling.
struct CeilingProbe {
  std::string metric;             ///< one of the names above
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
