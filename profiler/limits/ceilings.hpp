#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend/ceiling_probe.hpp"
#include "core/results/result.hpp"
#include "profiler/study/sampling.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// One measured ceiling: median over the samples, or the reason for having none.
struct Ceiling {
  std::string metric;          ///< core/backend/ceiling_probe.hpp
  std::string method;          ///< the probe's; of several patterns the best one's, the others behind it
  std::optional<double> rate;  ///< bytes/s or FLOP/s
  double spread = 0;           ///< (max - min) / median
  std::int64_t samples = 0;
  double sm_clock_hz = -1;  ///< median; negative where there is no reading
  std::string reason;       ///< why there is no rate
};

/// What a device sustains, as measured: the roofs of a roofline.
struct DeviceCeilings {
  std::string device;
  std::vector<Ceiling> ceilings;

  /// Empty when it was not measured.
  std::optional<double> rate(std::string_view metric) const;
  /// The best of copy, read and write: no mix of reads and writes is to be held against less than the memory
  /// was seen to do.
  std::optional<double> hbm_bytes_per_s() const;
};

/// Runs the probes alternating (sampling.hpp), so that drift meets all alike. A metric's ceiling is its best
/// probe's; its method says which one that was and what the others reached. A probe that throws has no rate
/// and says why.
DeviceCeilings measure_ceilings(const CeilingProbes& probes, std::string device,
                                const SamplingOptions& sampling);

/// One row per ceiling, stage "device", the method in `reason`.
std::vector<ResultRow> ceiling_rows(const DeviceCeilings& ceilings, std::string_view backend);

/// Ceilings among recorded rows: those of the last run that has any. Empty without.
std::optional<DeviceCeilings> recorded_ceilings(const std::vector<RecordedRun>& runs);

/// A table for the terminal.
Table ceilings_table(const DeviceCeilings& ceilings);

}  // namespace moescope
