#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/report/recorded_points.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

/// Which schedule is fastest where, over tokens and experts per token.
namespace moescope {

/// Times of one layer under several schedules.
struct PhasePoint {
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 0;
  std::map<std::string, double> layer_s;  ///< schedule -> time of the layer

  /// The fastest schedule.
  const std::string& fastest() const;
  /// Time of the next one over that of the fastest.
  double margin() const;
};

/// Points that differ in L and K alone.
struct PhasePanel {
  std::string title;  ///< backend (or device) and workload
  Source source = Source::kMeasured;
  std::vector<PhasePoint> points;

  /// Values of K, ascending.
  std::vector<std::int64_t> top_ks() const;
  /// Where `schedule` becomes faster than `other` as L grows, or (negative) slower, at one K: interpolated
  /// between neighbouring L in the logarithms of L and of the times. Empty when one of them is faster at
  /// every L.
  std::vector<double> crossovers(std::int64_t top_k, std::string_view schedule, std::string_view other) const;
};

/// Panels from recorded layers of omnimoe, measured or modelled, in the order of the rows; a panel has two L,
/// two K and two schedules at least.
std::vector<PhasePanel> phase_panels(const std::vector<RecordedLayer>& layers);

/// One panel each: every point in the colour of its fastest schedule with the margin beside it, and lines
/// where two schedules that are fastest there take equally long.
Figure phase_figure(std::span<const PhasePanel> panels);

/// For every panel, K and pair of schedules: from which L on which is faster.
Table crossover_table(std::span<const PhasePanel> panels);

}  // namespace moescope
