#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/devices/gpu_rates.hpp"
#include "profiler/calibration/rate_points.hpp"

/// Rates for schedule auto, fitted to recorded rows: per schedule the fixed time, memory, cache and FLOP rate
/// that minimise the sum of squared log ratios of predicted and measured time.
namespace moescope {

/// How far off the rates are for one schedule: predicted over measured, over its points.
struct ScheduleFit {
  std::string schedule;
  std::int64_t points = 0;
  double least = 0;
  double most = 0;
};

/// What choosing by the rates costs over some points: time of what is chosen over that of the fastest
/// candidate recorded there, in the stages that a schedule decides (the selection among them) and as a layer.
struct ChoiceLoss {
  std::int64_t points = 0;
  double mean = 0;
  double largest = 0;
  double layer_mean = 0;
  double layer_largest = 0;
};

struct RateFit {
  std::vector<ScheduleRates> schedules;
  std::optional<SelectionRates>
      selection;  ///< where the rows have enough of both forms, of few tokens and of many
  std::vector<ScheduleFit> fits;
  std::int64_t points = 0;
};

/// Rates stay within what the device is built for, a little above `ceilings`; one that never binds is kept at
/// its bound. Throws InvalidArgument("rows", ...) when a schedule of schedules_of_gpu() has fewer
/// points than numbers to fit.
RateFit fit_rates(const RatePoints& points, const DeviceCeilingRates& ceilings);
/// Points that hold no candidate do not count.
ChoiceLoss choice_loss(const RatePoints& points, const std::vector<ScheduleRates>& schedules,
                       const std::optional<SelectionRates>& selection = {});
/// The fit and its losses in words, a line each.
std::string fit_text(const RateFit& fit);
std::string loss_text(std::string_view what, const ChoiceLoss& loss);

}  // namespace moescope
