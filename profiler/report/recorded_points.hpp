#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/stage.hpp"
#include "core/results/result.hpp"

namespace moescope {

/// What was recorded of one schedule on one point.
struct RecordedSchedule {
  std::string name;
  std::vector<const ResultRow*> rows;

  /// Null when there is no such row.
  const ResultRow* find(Stage stage, std::string_view metric) const;
  /// Value of the row with status ok.
  std::optional<double> value(Stage stage, std::string_view metric) const;
  /// Time of the expert stage, fused or as scores and combine.
  std::optional<double> experts_time_s() const;
  /// Analytic bytes that the expert stage requests, likewise.
  std::optional<double> experts_requested_bytes() const;
};

/// Rows of one layer on one workload: what belongs side by side in a table. Points into the runs it was made
/// from.
struct RecordedLayer {
  const RunHeader* header = nullptr;
  ResultRow what;  ///< the fields that its rows share; L2 state, group size and such of those that have one
  RecordedSchedule common;                  ///< rows that belong to no schedule: skew, floor
  std::vector<RecordedSchedule> schedules;  ///< in the order of the rows

  /// "L1024 d256 N64x64 K32, bf16".
  std::string shape_text() const;
};

/// Groups the rows of runs into layers, in their order: rows of one run (and of one of its sweep's points)
/// that agree on every axis. Group size, tile size, L2 state and such are a schedule's: they make layers of
/// their own where one schedule was recorded with several; rows without them, such as formulas, belong to
/// each of those. Rows of other kinds (tests, devices)
/// and of a single rank are left out.
std::vector<RecordedLayer> recorded_layers(std::span<const RecordedRun> runs);

}  // namespace moescope
