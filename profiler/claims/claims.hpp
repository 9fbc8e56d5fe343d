#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/claims/recorded_choice.hpp"
#include "profiler/claims/recording_names.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// What became of a claim. The rules stand in claim_rules().
enum class ClaimVerdict : std::uint8_t {
  kHolds,
  kHoldsWithConditions,
  kDoesNotHold,
  kNotClaimed,       ///< a figure of ours that the paper has no counterpart of
  kNoRows,           ///< no device has rows for it
  kNotOnThisDevice,  ///< another device has
};
std::string_view to_string(ClaimVerdict verdict);
/// Whether the verdict says what became of the claim, not that rows are missing.
bool is_reached(ClaimVerdict verdict);
/// Order of verdicts, the best first: a verdict of higher rank is worse.
int rank(ClaimVerdict verdict);

enum class ClaimUnit : std::uint8_t { kRatio, kShare, kSeconds };

/// One system claim of the paper (arXiv 2602.05711v2, measured there on an A100) held against the recordings
/// of one device.
struct ClaimResult {
  std::string claim;
  ClaimUnit unit = ClaimUnit::kRatio;
  std::optional<double> paper;  ///< a ratio, a share that is not to be exceeded, or seconds
  std::optional<double> ours;   ///< the same from the newest recordings that have it; null without any
  ClaimVerdict verdict = ClaimVerdict::kNoRows;
  /// Of all recordings that have it, the newest included, or of those that lack the fastest schedule where
  /// their verdict is worse; null without any.
  std::optional<double> worst;
  ClaimVerdict worst_verdict = ClaimVerdict::kNoRows;
  std::vector<std::string> used;         ///< names of the recordings that `ours` is from
  std::vector<std::string> passed_over;  ///< names of the others that have rows of this line
  std::string why;  ///< what was compared, and where the worst stands, or what rows are missing
};

struct DeviceClaims {
  std::string device;  ///< as the runs' headers say it; empty when nothing counts
  std::vector<ClaimResult> claims;
  std::vector<NamedRecording> recordings;  ///< that the claims name
};

/// Every system claim on every device that anything was recorded on: devices with most verdicts first, one
/// without a name when nothing counts. The recordings' files must live on.
std::vector<DeviceClaims> judge_claims(const std::vector<Recording>& recordings);

/// How rows are chosen and a verdict is reached, in a few lines.
std::string_view claim_rules();

/// Tables for a terminal of 80 columns, with what each line rests on below; every device in turn.
std::string claims_text(const std::vector<DeviceClaims>& devices);
/// One device's claims as a table: claim, paper, ours, ours / paper, verdict, worst, its verdict, why.
Table claims_table(const DeviceClaims& device);
/// The same as markdown: claim, paper, ours, ours / paper, verdict, worst, its verdict, why; the recordings
/// in a second table that unfolds.
std::string claims_markdown(const std::vector<DeviceClaims>& devices);

}  // namespace moescope
