#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "experiments/options/sim_options.hpp"
#include "profiler/simulator/sim_validation.hpp"

/// Recorded stages beside what the simulator says of them: what `validate` reports and `calibrate` fits.
namespace moescope {

struct ValidationOptions : SimulatorOptions {
  std::vector<std::string> files;    ///< recorded rows
  std::vector<std::string> systems;  ///< of which rows take part; empty: all
  std::vector<std::string> metrics = {"time_s", "hbm_bytes", "l2_read_bytes"};
  std::string data_folder = "data";  ///< where snapshots and traces lie that rows name
  std::int64_t shared_size = 1024;   ///< of rows that do not say
  std::uint64_t seed = 0;            ///< of the draw of the held-out third
  std::string hold_out = "points";
  bool quiet = false;
};

/// What one routing serves.
struct MeasuredLayer {
  LayerShape shape;                     ///< of a baseline its row_shape()
  std::optional<SystemShape> baseline;  ///< null: OmniMoE's
  std::string workload;
  std::uint64_t seed = 0;
  std::optional<SaveMode> save;  ///< of a backward; it shares its forward's routing

  std::string label() const { return baseline ? baseline->label() : shape.label(); }
  auto key() const {
    return std::tuple(label(), std::string(to_string(shape.dtype)), shape.shared_size, workload, seed);
  }
};

/// A schedule on a layer, with what was measured: stage and metric to value.
struct MeasuredPoint {
  MeasuredLayer layer;
  ScheduleOptions schedule;
  std::map<std::pair<std::string, std::string>, double> values;
};

/// What the model says of one recorded point, which must outlive it.
struct PointModel {
  const MeasuredPoint* point;
  LayerModel model;
};

/// The measured stages of the rows: by the cuda backend, L2 cold. Throws what reading rows throws.
std::vector<MeasuredPoint> measured_points(const ValidationOptions& options);
/// The workload of a row, whose file may lie in the data folder here.
NamedWorkload recorded_workload(const std::string& name, const std::string& data_folder);
/// Simulates every point, which it sorts so that those of one routing follow one another. Points that cannot
/// be are named in `skipped` with the reason.
std::vector<PointModel> model_points(std::vector<MeasuredPoint>& points, const ValidationOptions& options,
                                     const DeviceSpec& device, const Calibration& calibration,
                                     std::vector<std::string>& skipped);
/// Predictions beside measurements, in the order of the models; those held out are marked.
std::vector<Prediction> predictions_of(std::span<const PointModel> models, const ValidationOptions& options);
/// For a calibration: the rows with their revisions, and the command that fits again.
std::string source_of_fit(const ValidationOptions& options);
/// The device that the rows say they are of, by its folder; without one the default.
std::string recorded_device(const std::vector<std::string>& files);

}  // namespace moescope
