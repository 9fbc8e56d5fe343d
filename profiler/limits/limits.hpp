#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/counters/stage_counters.hpp"
#include "profiler/limits/ceilings.hpp"

namespace moescope {

/// Bytes that L2 itself read for the SMs: l2_slice_read_bytes, or l2_read_bytes where that was not counted.
/// The SMs may receive more than L2 reads and can read: one read serves several of them where they ask
/// together (multicast, or requests for one line that meet on the way), and no ceiling of L2 holds for that.
std::optional<double> l2_reads(const StageMetrics& metrics);

/// How much of one resource's ceiling a stage used, averaged over its time.
struct Limit {
  std::string_view resource;  ///< "hbm", "l2", "shared", "tensor", "fp32", "issue"
  double fraction = 0;
};

/// From this fraction of a ceiling on, a stage counts as bound by it. A convention: kernels written with care
/// reach 0.76 to 0.83 of HBM (gathers and scatters, by published figures), and a stage's first and
/// last waves cost some of it.
inline constexpr double kBoundFraction = 0.6;

/// Every resource for which counters and a measured ceiling are there, highest fraction first:
///   hbm     (read + write bytes) / time / best of the measured copy, read and write rates
///   l2      time that L2's reads (l2_reads) and writes at the measured L2 read rate, and reductions and
///           atomics at the measured reduction rate, would take / time
///   shared  bytes that the shared-memory pipe was held for (bank conflicts included; without that metric the
///           bytes moved) / time / measured read rate
///   tensor  FLOP of the tensor cores / time / rate of a large bf16 product
///   fp32    FLOP of the CUDA cores / time / rate of fp32 multiply-adds
///   issue   issue_utilisation: cycles in which a scheduler issued (its ceiling is one per cycle)
/// A fraction passes 1 by no more than the ceiling's spread. Empty without counters.
std::vector<Limit> stage_limits(double time_s, const StageMetrics& metrics, const DeviceCeilings& ceilings);

/// "hbm 72 %" from kBoundFraction on, else "latency (l2 31 %)": no unit is near its ceiling, so what takes
/// the time is waiting (dependent loads, launches, synchronisation). "unknown" without limits.
std::string bound_text(const std::vector<Limit>& limits);

}  // namespace moescope
