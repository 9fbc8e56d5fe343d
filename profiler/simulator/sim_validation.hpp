#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/simulator/sim_calibration.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

/// Predictions beside measurements: how far off, where, and a held-out part to be honest with.
namespace moescope {

/// One quantity of one stage of one recorded point.
struct Prediction {
  std::string system;    ///< kind of layer
  std::string shape;     ///< its label()
  std::string workload;  ///< as rows name it
  std::uint64_t seed = 0;
  std::string schedule;
  std::string stage;
  std::string kernel;  ///< as StageModel has it
  std::string metric;  ///< time_s, hbm_read_bytes, ...
  double predicted = 0;
  double bound_s = 0;   ///< of a stage's time_s: the model before any calibration; else 0
  double measured = 0;  ///< > 0
  bool held_out = false;

  /// Relative, against the measurement, without sign.
  double error() const;
  /// Names shape, workload, seed and schedule: what is drawn together.
  std::string point() const;
};

/// What is held out together: single points, whose shapes others of the fit may share (interpolation), or all
/// points of a shape (extrapolation).
enum class HoldOut : std::uint8_t { kPoints, kShapes };
std::string_view to_string(HoldOut what);
/// Throws InvalidArgument for other text than to_string() gives.
HoldOut parse_hold_out(std::string_view text);

/// Marks a third of the points as held out: the first of a shuffle by `seed` of the sorted names (so that it
/// does not depend on the order of rows), or the first shapes, until they hold a third of the points. Throws
/// InvalidArgument for shapes when there are fewer than three.
void draw_held_out(std::span<Prediction> predictions, HoldOut what, std::uint64_t seed);

/// Fits the kernels of every stage on the time_s that are not held out and have a bound, on
/// `device`; `source` says what they are.
Calibration fit_calibration(std::span<const Prediction> predictions, std::string device, std::string source,
                            std::optional<SourcedConstants> constants);

/// Of relative errors; all 0 without any.
struct ErrorSummary {
  std::int64_t count = 0;
  double median = 0;
  double p90 = 0;  ///< nearest rank
  double worst = 0;
  double weighted = 0;  ///< by size: sum of absolute errors over sum of measurements
};
ErrorSummary summarise_errors(std::span<const Prediction> predictions);

/// One row per value of `group` (in order of name), for one metric: count, median, 90th percentile, worst and
/// weighted error, of held-out points and of the others.
void add_error_rows(Table& table, std::span<const Prediction> predictions, std::string_view metric,
                    const std::function<std::string(const Prediction&)>& group);
/// The columns that add_error_rows() fills.
Table make_error_table();

/// The `count` worst of a metric, one line each, worst first.
std::vector<std::string> outliers(std::span<const Prediction> predictions, std::string_view metric,
                                  std::size_t count);

/// What a draw must show: of time_s and hbm_bytes the errors of held-out points beside their targets.
std::string target_text(std::span<const Prediction> predictions);

/// Predicted over measured, against the measurement's logarithm: a panel per metric, a series per schedule.
Figure validation_figure(std::span<const Prediction> predictions, const std::string& title);

}  // namespace moescope
