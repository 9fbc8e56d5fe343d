#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/cost/auto_schedule.hpp"
#include "core/results/result.hpp"

/// Recorded rows as the cost model behind auto sees them: what each schedule costs by analysis, and what the
/// stages that it decides took.
namespace moescope {

struct TimedSchedule {
  double time_s = 0;    ///< of the stages schedule, experts, expert_scores and expert_combine; 0: no row
  double select_s = 0;  ///< of router_select; 0: no row
  double layer_s = 0;   ///< of the layer; 0: no row
  AnalyticCost cost;
};

struct RatePoint {
  LayerShape shape;
  SkewMetrics skew;  ///< effective_experts alone
  std::map<std::string, TimedSchedule> schedules;
};

/// Points of one device, by their labels.
struct RatePoints {
  std::string device;
  MachineSize size;
  std::map<std::string, RatePoint> points;
};

/// What `runs` hold of OmniMoE in bf16 on a GPU, L2 cold. Where a schedule stands at a point in several runs
/// of one file its stages add up; of several files the last one counts. Throws InvalidArgument("rows", ...)
/// for runs of different devices, or none that says how large its L2 is.
RatePoints rate_points(std::span<const std::vector<RecordedRun>> files);
/// The same from files. Throws what read_rows() throws.
RatePoints read_rate_points(std::span<const std::filesystem::path> files);

}  // namespace moescope
