#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {

/// What the rows of one point share.
struct RowContext {
  LayerShape shape;
  std::string schedule = "none";  ///< "none" for what does not depend on it
  std::string backend;
  std::string workload;
  std::uint64_t seed = 0;
  std::string l2_state = "none";                           ///< "none" where nothing was run
  std::optional<std::int64_t> group_size = std::nullopt;   ///< of schedules that have groups
  std::optional<std::int64_t> tile_tokens = std::nullopt;  ///< of schedules that may have strips
  std::optional<SystemShape> baseline = std::nullopt;      ///< of a baseline; `shape` is its row_shape()
};

/// What rows of this schedule say of tile sizes: null unless it is staircase, or auto, which may be.
std::optional<std::int64_t> tile_tokens_of(const ScheduleOptions& schedule);

/// What the rows of one schedule of a study share.
RowContext schedule_context(const LayerStudy& study, const ScheduleStudy& point);

/// One value of a stage. Metric names carry their unit; `unit` repeats it for readers that sort by it.
ResultRow value_row(const RowContext& context, Stage stage, Source source, std::string metric, double value,
                    std::string unit);
/// A value that there is not, with the reason.
ResultRow absent_row(const RowContext& context, Stage stage, Source source, std::string metric,
                     std::string unit, Status status, std::string reason);

/// Every metric of skew.hpp, computed from the actual routing; stage router_select, source analytic.
std::vector<ResultRow> skew_rows(const RowContext& context, const SkewMetrics& skew);
/// Bytes per level and direction and FLOP of every stage that has any, and of the layer; source analytic.
std::vector<ResultRow> cost_rows(const RowContext& context, const AnalyticCost& cost);
/// time_s of every stage with its spread, discarded_samples, sm_clock_hz, temperature_c; source measured.
std::vector<ResultRow> time_rows(const RowContext& context, const ArmResult& times);
/// relative_error and max_absolute_error of the layer; source measured.
std::vector<ResultRow> error_rows(const RowContext& context, const ErrorReport& error);

/// Everything a study knows, as rows: skew and floor once, then per schedule time, cost, memory, error,
/// speed-up. A schedule that was skipped or failed gives one time_s row with its reason. What auto resolved
/// to stands as the reason of the layer's time_s, and time_over_fastest says what its choice lost. A
/// baseline's own extents are rows too: expert_size, heads, key_size.
std::vector<ResultRow> study_rows(const LayerStudy& study);
/// Names of the metrics that study_rows() gives.
std::span<const std::string_view> study_metrics();

}  // namespace moescope
