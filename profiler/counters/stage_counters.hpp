#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "profiler/counters/counter_source.hpp"
#include "profiler/counters/metric_catalogue.hpp"

namespace moescope {

/// Metrics of one stage, one value per metric asked for.
struct StageMetrics {
  Stage stage = Stage::kLayer;
  std::vector<MetricValue> values;

  /// Empty when the metric was not asked for or has no value.
  std::optional<double> find(std::string_view name) const;
};

/// What counters say of a layer under one schedule.
struct CountedLayer {
  std::string source;                ///< CounterSource::name(); "none" when there is none
  int passes = 0;                    ///< replays of the layer that it took
  std::vector<StageMetrics> stages;  ///< in order; last kLayer, which was a range of its own in other replays
  std::string reason;                ///< why there are no values at all
  CounterPlan plan;
  std::vector<RangeCounters> ranges;  ///< as counted, before any formula; for recordings

  /// Null when that stage was not counted.
  const StageMetrics* find(Stage stage) const;
  /// Sum over the stages / value of the layer, of these metrics added up. Empty when one of them is missing
  /// or the layer's is zero.
  std::optional<double> sum_over_layer(std::span<const std::string_view> metrics) const;
};

/// How far the sum of the stages' HBM bytes may lie from the layer's.
inline constexpr double kStageSumTolerance = 0.02;

/// Replays the layer stage by stage, one range per stage, and then as one range, waiting after each stage
/// both times. Before each replay the cache is emptied (kCold) or left as a run of the layer leaves it
/// (kWarm). Counters that cannot be had leave the reason in the result; InternalError is thrown on.
CountedLayer count_layer(LayerExecution& execution, CounterSource& source, const MetricSelection& selection,
                         L2State l2);
/// The result when there is no source.
CountedLayer uncounted(std::string reason);

}  // namespace moescope
