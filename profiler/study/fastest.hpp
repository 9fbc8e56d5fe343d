#pragma once

#include <optional>
#include <string>
#include <vector>

#include "profiler/study/layer_study.hpp"

namespace moescope {

/// A schedule of a study beside the fastest one.
struct Standing {
  const ScheduleStudy* schedule = nullptr;
  std::string name;
  bool fastest = false;
  /// Time of this one / time of the fastest, round by round; nothing when no round has both.
  std::optional<RatioSummary> ratio;

  /// It is not the fastest, but the rounds do not tell the two apart.
  bool tied() const { return !fastest && ratio && ratio->may_be_one(); }
};

/// Whether there is a time of the layer.
bool is_measured(const ScheduleStudy& schedule);

/// Every measured schedule by its median, the fastest first; empty when none was measured.
std::vector<Standing> standings(const LayerStudy& study);
/// The same of schedules of several studies that took their rounds together, all of them measured.
std::vector<Standing> ranked(std::vector<Standing> all);

/// One sentence: which schedule is the fastest, by how much over the next one that it can be told from, and
/// which ones it cannot be told from. Ends without a full stop or newline.
std::string conclusion_text(const std::vector<Standing>& standings);

/// Median of the spreads of all measured schedules; nothing when none was measured.
std::optional<double> usual_spread(const std::vector<LayerStudy>& studies);
/// Above this a machine is called noisy.
inline constexpr double kNoisySpread = 0.2;

}  // namespace moescope
