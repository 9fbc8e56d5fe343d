#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/results/result.hpp"

namespace moescope {

/// How a time compares with an earlier one.
enum class TimeVerdict : std::uint8_t {
  kSame,     ///< within the threshold
  kFaster,   ///< by more than threshold and noise
  kSlower,   ///< likewise
  kUnclear,  ///< by more than the threshold, but not by more than the noise
  kLost      ///< there was a time, now there is none
};
/// As nvbench-compare spells them: SAME, FAST, SLOW, AMBG; and LOST.
std::string_view to_string(TimeVerdict verdict);

/// One time_s of both runs.
struct TimeComparison {
  ResultRow after;  ///< the new row
  double before_s = 0;
  double ratio = 0;    ///< after / before; 0 for kLost
  double noise_s = 0;  ///< difference that chance alone may make
  TimeVerdict verdict = TimeVerdict::kSame;
};

/// A run held against an earlier one.
struct RegressionReport {
  std::vector<TimeComparison> times;  ///< in the order of the new rows
  std::int64_t only_before = 0;       ///< times that the new run does not have
  std::int64_t only_after = 0;        ///< times that there is nothing to hold against

  std::int64_t count(TimeVerdict verdict) const;
  /// Nothing slower, nothing lost, and something compared.
  bool holds() const;
};

/// What is compared, and when a difference counts.
struct TimeRules {
  double threshold = 0.05;    ///< a fraction; smaller differences never count
  bool layers_alone = false;  ///< of a point that has a time of the layer, that one alone
  bool any_device = false;    ///< also times of different devices, which say nothing about the program
};

/// Holds every measured or modelled time_s of `after` against the one of `before` with the same identity:
/// everything a row says about what was measured. Of several with one identity the last counts. A difference
/// counts when it is above the threshold and above what the recorded spreads explain: half of the two ranges
/// together, so that it is where samples of the two do not meet; and three standard errors of the two
/// medians, each from its range over d2(n) (the expected range of n normal samples; for n > 10 that of 10,
/// which errs on the side of noise). Samples of a recording lie seconds apart: their standard error alone
/// does not know what the machine does at another hour, their range knows some of it. Without a spread the
/// threshold alone decides. Throws InvalidArgument when the threshold is none or the runs are of different
/// devices.
RegressionReport compare_times(std::span<const RecordedRun> before, std::span<const RecordedRun> after,
                               const TimeRules& rules);

}  // namespace moescope
