#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/stage.hpp"
#include "profiler/simulator/streams/stream_constants.hpp"

/// What the model leaves out (latencies, imperfect overlap), fitted to measurements: two numbers for the
/// kernels of a stage, with the data they come from. Schedules that run the same kernels share them. Beside
/// them what streams say of kernels by rows of one GPU.
namespace moescope {

/// time = fixed_s + stretch * bound_s.
struct StageFit {
  std::string kernel;  ///< the stage's first kernel, as KernelLaunch::name
  std::string stage;
  double fixed_s = 0;       ///< >= 0
  double stretch = 1;       ///< > 0; dimensionless, so it carries over to other devices as an estimate
  std::int64_t points = 0;  ///< measurements it rests on

  double time_s(double bound_s) const { return fixed_s + stretch * bound_s; }
};

/// One measurement beside the model's bound.
struct FitPoint {
  double bound_s = 0;
  double measured_s = 0;
};

/// Least squares of relative errors with fixed_s >= 0 and stretch >= 0.05. One point gives a stretch alone.
/// Throws InternalError without points, or with times that are not positive.
StageFit fit_stage(std::string kernel, std::string stage, std::span<const FitPoint> points);

struct Calibration {
  std::string device;  ///< modelled device that was fitted, DeviceSpec::name; empty: none
  std::string source;  ///< device, rows and draw that the fits rest on; empty: none
  std::vector<StageFit> fits;
  /// Absent in a file without: then those of the device, or of the nearest that has some, go with it.
  std::optional<SourcedConstants> constants;

  /// Null when nothing was fitted for these kernels.
  const StageFit* find(std::string_view kernel, Stage stage) const;
  /// For layer_stream(), which refuses those that are not known().
  StreamConstants stream_constants() const { return constants ? constants->values : StreamConstants{}; }
};

/// What a user of `calibration` on `device` must know: empty on the device it was fitted on and without fits,
/// else which constants are carried over and what that assumes.
std::string carried_over(const Calibration& calibration, std::string_view device);

/// {"device": ..., "source": ..., "fits": [{"kernel", "stage", "fixed_s", "stretch", "points"}], "constants":
/// parse_stream_constants()}, of which the last may be missing. Throws FileError naming `path`, the field and
/// what is wrong.
Calibration parse_calibration(std::string_view json, std::string_view path);
Calibration read_calibration(const std::filesystem::path& file);
std::string calibration_json(const Calibration& calibration);

}  // namespace moescope
