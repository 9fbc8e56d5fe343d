#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "profiler/limits/ceilings.hpp"
#include "profiler/report/recorded_points.hpp"
#include "profiler/text/table.hpp"

/// How far recorded layers are from what the device allows, and what `auto` gave away.
namespace moescope {

/// A schedule's time of a layer or of its expert stage.
struct ScheduleTime {
  std::string name;
  double time_s = 0;
};

/// One layer. Times are medians, of the whole layer or of its expert stage.
struct LayerHeadroom {
  const RecordedLayer* layer = nullptr;
  double floor_s = 0;
  std::string floor_by;                    ///< its largest term: "experts hbm"
  ScheduleTime fastest;                    ///< auto is not among these
  std::optional<ScheduleTime> repeatable;  ///< the fastest of those that give the same bits again
  std::optional<ScheduleTime> chosen;      ///< auto, with the name of what it ran
  std::optional<ScheduleTime> dense;       ///< dense_masked
  /// The fastest one on strips, where one executes no more FLOP than dense_masked.
  std::optional<ScheduleTime> strips;
  std::optional<double> worst_error;  ///< largest relative error of a schedule
  std::string worst_error_of;

  double over_floor() const { return fastest.time_s / floor_s; }
  /// auto over the fastest repeatable schedule; empty without either.
  std::optional<double> auto_loss() const;
};

enum class HeadroomStage : std::uint8_t { kLayer, kExperts };

/// Of every layer of omnimoe with a floor and a time, in their order. The floor of a layer is the sum of its
/// stages' floors, each the larger of
///   bytes  that have to move (analytic; of the experts the active rows, x and y once) / best HBM rate
///   FLOP   that are executed (analytic) / rate: a bf16 product's, or fp32 multiply-adds' for fp32 and for
///          token_centric and the sparse library, which use no tensor cores
/// and least over the schedules: their orders of work differ in it, and a floor may not depend on one. The
/// stage `schedule` has none: no result needs it. Throws InvalidArgument("rows", ...) without the ceilings.
std::vector<LayerHeadroom> headroom(std::span<const RecordedLayer> layers, const DeviceCeilings& ceilings,
                                    HeadroomStage stage);

/// A row a layer, the furthest from its floor first.
Table headroom_table(std::span<const LayerHeadroom> layers);

/// Sentences over all layers: auto's loss in the mean and at worst, how many layers are within 3x of a floor
/// above 20 us, where strips lose to a dense product that executes no less, and the largest error. Each says
/// of how many layers.
std::string headroom_text(std::span<const LayerHeadroom> layers);

}  // namespace moescope
