#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/figure.hpp"
#include "profiler/sim_calibration.hpp"
#include "profiler/table.hpp"

/// Predictions beside measurements: how far off, where, and a held-out part to be honest with.
namespace moescope {

/// One quantity of one stage of one recorded point.
struct Prediction {
  std::string shape;     ///< LayerShape::label()
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

/// Marks points as held out: whole shapes, the first ones of a shuffle by `seed` of the sorted names, until
/// they hold a third of the points (so that it does not depend on the order of rows); points one by one where
/// there are fewer than three shapes.
void draw_held_out(std::span<Prediction> predictions, std::uint64_t seed);

/// Fits the kernels of every stage on the time_s that are not held out and have a bound, on
/// `device`; `source` says what they are.
Calibration fit_calibration(std::span<const Prediction> predictions, std::string device, std::string source);

/// Of a set of relative errors; all 0 without any.
struct ErrorSummary {
  std::int64_t count = 0;
  double median = 0;
  double p90 = 0;  ///< nearest rank
  double worst = 0;
};
ErrorSummary summarise_errors(std::vector<double> errors);

/// One row per value of `group` (in order of name), for one metric: count, median, 90th percentile and worst
/// error, of held-out points and of the others.
void add_error_rows(Table& table, std::span<const Prediction> predictions, std::string_view metric,
                    const std::function<std::string(const Prediction&)>& group);
/// The columns that add_error_rows() fills.
Table make_error_table();

/// The `count` worst of a metric, one line each, worst first.
std::vector<std::string> outliers(std::span<const Prediction> predictions, std::string_view metric,
                                  std::size_t count);

/// Predicted over measured, against the measurement's logarithm: a panel per metric, a series per schedule.
Figure validation_figure(std::span<const Prediction> predictions, const std::string& title);

}  // namespace moescope
