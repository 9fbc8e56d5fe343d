#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/simulator/sim_calibration.hpp"
#include "profiler/simulator/sim_replay.hpp"
#include "profiler/study/layer_rows.hpp"

/// A whole layer on a modelled device: bytes and time per stage.
namespace moescope {

/// What bounds a kernel in the model. HBM, L2 and blocks work at the same time, but none is always busy: of
/// three that need alike the kernel takes a quarter longer than of one (the fourth root of the sum of fourth
/// powers). Waiting is hidden by other blocks' work as far as there is some: the root of the sum of squares.
struct LaunchTime {
  double hbm_s = 0;  ///< HBM reads and writes at what the device sustains
  double l2_s = 0;   ///< reads, writes and reductions in L2
  double blocks_s =
      0;  ///< the last block's end: L1, tensor cores, CUDA cores, issue, and the tail of the grid
  double latency_s = 0;  ///< of the block with the longest chain of loads that wait for each other
  double busy_s = 0;     ///< HBM, L2 and blocks together
  double bound_s = 0;    ///< launch plus all of them

  std::string_view bound() const;  ///< "hbm", "l2", "blocks", "latency" or "launch"
};
LaunchTime launch_time(const LaunchReplay& launch, const DeviceSpec& device);

/// One stage, or the layer (Stage::kLayer: the others, less what overlaps).
struct StageModel {
  Stage stage = Stage::kLayer;
  std::string kernel;       ///< its first, which stands for the stage's kernels in a Calibration
  double time_s = 0;        ///< calibrated where a calibration has the stage, else bound_s
  double bound_s = 0;       ///< sum of its kernels' bounds
  std::string bound;        ///< what bounds its longest kernel
  bool calibrated = false;  ///< of the layer: every stage is
  double idle_s = 0;        ///< of bound_s, what leaves the device to others: launches and latency
  double first_s = 0;       ///< bound of its first kernel
  double beside_s = 0;      ///< of idle_s, that of kernels that run beside the data gradients
  bool dependent = false;   ///< its first kernel starts while the stage before ends
  LaunchReplay sums;        ///< of its kernels
  Overlap overlap = Overlap::kSharedMlp;  ///< of its first kernel
};

struct LayerModel {
  std::string device;
  std::vector<StageModel> stages;  ///< in order; the last is Stage::kLayer
  unsigned classes = kMaxClasses;  ///< of 64 that were simulated
  double hidden_s = 0;             ///< of the stages' times, what overlaps with other stages in a layer
  double joined_s = 0;  ///< likewise, what starting and timing a stage by itself costs and a layer does not

  /// Null when the layer has no such stage.
  const StageModel* find(Stage stage) const;
};

/// Sets the times of all stages and the layer by `calibration`. In a layer the shared MLP runs beside the
/// stages after router_project (up to the expert stage where that adds its result), and the staircase clears
/// its sums beside the schedule; a backward sorts its pairs beside the data gradients. What overlaps is the
/// time in which they leave the device idle. A stage whose kernel starts while the one before ends costs a
/// layer less than by itself, between two events (StreamConstants::dependent_start_s).
void calibrate(LayerModel& model, const Calibration& calibration);

/// Replays `launches` on `device` from cold caches, of which the calibration's constants say what is dirty at
/// first (without them: `options`), and works out times. Throws what replay() throws.
LayerModel simulate_layer(std::span<const KernelLaunch> launches, const DeviceSpec& device,
                          const Calibration& calibration, const ReplayOptions& options);

/// time_s, bound_s and every byte and FLOP count of each stage, under the names that measurements have;
/// source modelled. Each count that rests on a sample carries its own standard error as
/// `spread`, as a fraction; none where the sample has nothing of it.
std::vector<ResultRow> model_rows(const Point& context, const LayerModel& model);

}  // namespace moescope
