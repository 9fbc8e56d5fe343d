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

/// The point that the rows of one schedule of a study are of.
Point schedule_point(const LayerStudy& study, const ScheduleStudy& schedule);

/// One value of a stage. Metric names carry their unit; `unit` repeats it for readers that sort by it.
ResultRow value_row(const Point& point, Stage stage, Source source, std::string metric, double value,
                    std::string unit);
/// A value that there is not, with the reason.
ResultRow absent_row(const Point& point, Stage stage, Source source, std::string metric, std::string unit,
                     Status status, std::string reason);

/// Every metric of skew.hpp, computed from the actual routing; stage router_select, source analytic.
std::vector<ResultRow> skew_rows(const Point& point, const SkewMetrics& skew);
/// Rows executed for FFN experts and their padding; of a rule for tokens also what it changed, and what that
/// did to the output where it is known. Source analytic, but for the last.
std::vector<ResultRow> ffn_study_rows(const Point& point, const FfnStudy& ffn);
/// Bytes per level and direction and FLOP of every stage that has any, and of the layer; source analytic.
std::vector<ResultRow> cost_rows(const Point& point, const AnalyticCost& cost);
/// time_s of every stage with its spread, discarded_samples, sm_clock_hz, temperature_c; source measured.
std::vector<ResultRow> time_rows(const Point& point, const ArmResult& times);
/// relative_error and max_absolute_error of the layer; source measured.
std::vector<ResultRow> error_rows(const Point& point, const ErrorReport& error);

/// Those given, and what an FFN study has beside them, measured or modelled.
std::vector<std::string_view> with_ffn_metrics(std::vector<std::string_view> metrics);

/// Everything a study knows, as rows: skew and floor once, then per schedule time, cost, memory, error,
/// speed-up. A schedule that was skipped or failed gives one time_s row with its reason. What auto resolved
/// to stands as the reason of the layer's time_s, and time_over_fastest says what its choice lost.
std::vector<ResultRow> study_rows(const LayerStudy& study);
/// Names of the metrics that study_rows() gives.
std::span<const std::string_view> study_metrics();

}  // namespace moescope
