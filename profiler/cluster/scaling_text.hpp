#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/cluster/ranks_model.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

/// Layers on several numbers of GPUs, side by side.
namespace moescope {

/// What grows with the GPUs.
enum class Scaling : std::uint8_t {
  kStrong,  ///< nothing: the batch is shared by more
  kWeak,    ///< the batch: every GPU has as many tokens
};
std::string_view to_string(Scaling scaling);
/// Throws InvalidArgument("scaling", ...).
Scaling parse_scaling(std::string_view text);

/// One layer on one number of GPUs.
struct ScalingPoint {
  Point point;  ///< with ranks, placement, exchange and schedule
  RanksModel model;
};

/// All of one workload.
struct ScalingStudy {
  Scaling scaling = Scaling::kStrong;
  std::string workload;
  std::string cluster;
  std::vector<ScalingPoint> points;

  /// Part of what perfect scaling would give, from the same schedule, placement, exchange and chunks on the
  /// fewest GPUs that were modelled (one GPU stands for all of them); none of several GPUs that are the
  /// fewest.
  std::optional<double> efficiency(const ScalingPoint& point) const;
};

/// A row for each point: times, what is exposed, efficiency, balance.
Table scaling_table(std::span<const ScalingStudy> studies);
/// Stages of the ranks of one point: mean and slowest.
Table rank_stage_table(const ScalingPoint& point);
/// Paragraphs: what is modelled, and what of it nothing measured stands behind.
std::vector<std::string> scaling_conclusion(std::span<const ScalingStudy> studies);
/// Time of the layer over GPUs, with perfect scaling beside it, and efficiency.
Figure scaling_figure(std::span<const ScalingStudy> studies);
/// Everything as rows; source modelled. Metrics of a batch in C chunks begin with "chunksC_", of one without
/// overlap with "serial_". A time's reason says what is extrapolated.
std::vector<ResultRow> scaling_rows(const ScalingStudy& study);

}  // namespace moescope
