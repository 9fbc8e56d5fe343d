#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
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
  /// Empty when one of them was not counted: it may be any number, not 0.
  std::optional<double> sum(std::initializer_list<std::string_view> names) const;
};

/// HBM bytes of one layer counted in three ways, medians over a few replays that alternate. Counting itself
/// writes to memory: between two ranges the profiler leaves a few MB in L2 that are not the layer's (1.7 to
/// 2.0 MB on an H200), and what the layer reads next may evict them. So the stages' sum lies between what the
/// layer has as one range and what it has behind as many ranges as there are stages.
struct HbmSums {
  double stages = 0;       ///< bytes of the stages' ranges, added up
  double layer = 0;        ///< of the layer as one range
  double behind_idle = 0;  ///< of the layer as the last of as many ranges as it has stages, the others empty
  int idle_ranges = 0;     ///< the empty ones
  int replays = 0;         ///< of each

  double over_layer() const { return stages / layer; }
  /// What the stages' sum has to lie between, as fractions of `layer`: kTolerance around both.
  double least_over_layer() const { return (1 - kTolerance) * std::min(layer, behind_idle) / layer; }
  double most_over_layer() const { return (1 + kTolerance) * std::max(layer, behind_idle) / layer; }
  bool hold() const { return over_layer() >= least_over_layer() && over_layer() <= most_over_layer(); }

  /// How far apart counts of the same work may be (profiles of an H200: 0.6 % at most without the profiler's
  /// own bytes).
  static constexpr double kTolerance = 0.02;
};

/// What counters say of a layer under one schedule.
struct CountedLayer {
  std::string source;                ///< CounterSource::name(); "none" when there is none
  int passes = 0;                    ///< replays of the layer that it took
  std::vector<StageMetrics> stages;  ///< in order; last kLayer, which was a range of its own in other replays
  std::string reason;                ///< why there are no values at all
  CounterPlan plan;
  std::vector<RangeCounters> ranges;  ///< as counted, before any formula; for recordings
  std::optional<HbmSums> hbm;         ///< empty without HBM counters, or where they are of a recording

  /// Null when that stage was not counted.
  const StageMetrics* find(Stage stage) const;
};

/// Replays the layer stage by stage, one range per stage, and then as one range, waiting after each stage
/// both times; then a few times more for HbmSums. Before each replay the cache is emptied (kCold) or left as
/// a run of the layer leaves it (kWarm). Counters that cannot be had leave the reason in the result;
/// InternalError is thrown on.
CountedLayer count_layer(LayerExecution& execution, CounterSource& source, const MetricSelection& selection,
                         L2State l2);
/// The result when there is no source.
CountedLayer uncounted(std::string reason);

}  // namespace moescope
