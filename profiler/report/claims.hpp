#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/report/recorded_points.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// What became of a claim. The rules stand in claim_rules().
enum class ClaimVerdict : std::uint8_t {
  kHolds,
  kHoldsWithConditions,
  kDoesNotHold,
  kNoRows,
  kNotClaimed  ///< a figure of ours that the paper has no counterpart of
};
std::string_view to_string(ClaimVerdict verdict);

enum class ClaimUnit : std::uint8_t { kRatio, kShare, kSeconds };

/// One system claim of the paper (arXiv 2602.05711v2, measured there on an A100) held against recorded rows.
struct ClaimResult {
  std::string claim;
  ClaimUnit unit = ClaimUnit::kRatio;
  std::optional<double> paper;  ///< a ratio, a share that is not to be exceeded, or seconds
  std::optional<double> ours;   ///< the same from rows; null without them
  ClaimVerdict verdict = ClaimVerdict::kNoRows;
  std::string rows;  ///< revisions of the program that the rows are of
  std::string why;   ///< what was compared where, or what rows are missing
};

/// Every system claim, from layers at the shapes of Table A (bf16, d = 1024, gaussian:1, cold L2): of several
/// recordings of a layer the newest. Times of two systems are compared on one device alone.
std::vector<ClaimResult> judge_claims(const std::vector<RecordedLayer>& layers);

/// How a verdict is reached, in a few lines.
std::string_view claim_rules();

/// claim, paper, ours, ours / paper, verdict, rows, why.
Table claims_table(const std::vector<ClaimResult>& claims);

}  // namespace moescope
