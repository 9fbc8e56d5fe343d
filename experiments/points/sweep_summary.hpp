#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "experiments/points/sweep_study.hpp"

namespace moescope {

/// What has become of the points so far, in this call and before.
struct SweepSummary {
  std::int64_t points = 0;
  std::int64_t failed = 0;  ///< of these, with a schedule that failed
  bool any = false;         ///< a point came off, or was skipped for good reason
  double elapsed_s = 0;
  std::string troubles;  ///< which points failed or were skipped, why, and how to see it again

  /// What a sweep says last; empty when all points came off.
  std::string text() const;
};

/// Reads the rows of a sweep in `directory`; `planned` has the names of its points. Throws FileError.
SweepSummary summarize(const std::filesystem::path& directory, const std::vector<PlannedPoint>& planned);

}  // namespace moescope
