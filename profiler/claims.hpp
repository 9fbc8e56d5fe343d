#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/recorded_points.hpp"
#include "profiler/table.hpp"

namespace moescope {

/// What became of a claim. The rules stand in claim_rules().
enum class ClaimVerdict : std::uint8_t { kHolds, kHoldsWithConditions, kDoesNotHold, kNoRows };
std::string_view to_string(ClaimVerdict verdict);

/// One system claim of the paper (arXiv 2602.05711v2, measured there on an A100) held against recorded rows.
struct ClaimResult {
  std::string claim;
  double paper = 0;            ///< a ratio, or a share that is not to be exceeded
  std::optional<double> ours;  ///< the same from rows; null without them
  ClaimVerdict verdict = ClaimVerdict::kNoRows;
  std::string why;  ///< what was compared where, or what rows are missing

  bool is_share = false;  ///< paper and ours are shares of a time
};

/// Every system claim, from layers at the shapes of Table A (bf16, d = 1024, gaussian:1, cold L2): of several
/// recordings the last. Times of two systems are compared on one device alone.
std::vector<ClaimResult> judge_claims(const std::vector<RecordedLayer>& layers);

/// How a verdict is reached, in a few lines.
std::string_view claim_rules();

/// claim, paper, ours, ours / paper, verdict, why.
Table claims_table(const std::vector<ClaimResult>& claims);

}  // namespace moescope
