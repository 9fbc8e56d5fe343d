#include "experiments/options/sim_options.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "core/base/error.hpp"
#include "core/devices/device_folders.hpp"
#include "core/files/project_path.hpp"
#include "core/files/regular_file.hpp"
#include "core/systems/system_workload.hpp"
#include "core/workload/workload.hpp"
#include "profiler/simulator/device_variation.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// What is modelled where nobody names a device: the one whose kernels the calibration is fitted to.
constexpr const char* kDefaultDevice = "h100-sxm";

/// The folder of a device: the project's of this name, else one of the user's where the program runs.
std::optional<fs::path> device_folder(const std::string& name) {
  if (auto folder = project_path(fs::path(kDevicesFolder) / name);
      folder && file_exists(*folder / kDeviceFile)) {
    return folder;
  }
  if (!name.empty() && file_exists(fs::path(name) / kDeviceFile)) {
    return fs::path(name);
  }
  return std::nullopt;
}

/// The device's own calibration, else the nearest device's: the first that has constants, if that is asked.
Calibration default_calibration(const DeviceSpec& device, bool with_constants) {
  const auto serves = [&](const Calibration& found) { return !with_constants || found.constants; };
  if (const fs::path own = device.folder / kCalibrationFile; !device.folder.empty() && file_exists(own)) {
    if (Calibration found = read_calibration(own); serves(found)) {
      return found;
    }
  }
  std::vector<DeviceFolder> folders = project_devices();
  while (const DeviceFolder* const nearest = nearest_folder(folders, device, kCalibrationFile)) {
    if (Calibration found = read_calibration(nearest->path / kCalibrationFile); serves(found)) {
      return found;
    }
    folders.erase(folders.begin() + (nearest - folders.data()));
  }
  return {};
}

}  // namespace

std::string default_device() { return kDefaultDevice; }

void add_simulator_options(Cli app, SimulatorOptions& options) {
  app.add_option(
         "--device", options.devices,
         fmt::format("modelled devices, by comma: names of folders in {0} (a100-sxm-80gb, h200-sxm, b200, "
                     "rtx4090, l4, ...), or folders or device files of your own (default {1}), with changes "
                     "behind @: {1}@l2_bytes=25MiB@hbm_bytes_per_s=x2",
                     kDevicesFolder, kDefaultDevice))
      .type_name("NAME|PATH")
      .delimiter(',');
  app.add_option(
         "--calibration", options.calibration,
         "fits of what the model leaves out, or none (default: the device's own, else the nearest device's)")
      .type_name("FILE");
  app.add_option("--max-accesses", options.max_accesses,
                 "cache line accesses to replay at most; beyond them sets are sampled (default 12000000)")
      .type_name("N");
}

std::optional<fs::path> device_file(const std::string& name) {
  const std::string device = name.substr(0, name.find('@'));
  if (device.find('/') != std::string::npos || device.ends_with(".json")) {
    std::error_code unknown;  // then it is no folder
    return fs::is_directory(device, unknown) ? fs::path(device) / kDeviceFile : fs::path(device);
  }
  const auto folder = device_folder(device);
  return folder ? std::optional(*folder / kDeviceFile) : std::nullopt;
}

DeviceSpec find_device(const std::string& name) {
  if (const auto at = name.find('@'); at != std::string::npos) {
    const DeviceSpec base = find_device(name.substr(0, at));
    DeviceSpec varied = vary_device(base, name.substr(at + 1));
    varied.folder = base.folder;
    return varied;
  }
  if (const auto file = device_file(name)) {
    return read_device(*file);
  }
  std::vector<std::string> known;
  for (const DeviceFolder& folder : project_devices()) {
    known.push_back(folder.path.filename());
  }
  throw InvalidArgument("device", name,
                        fmt::format("must be a device file, a folder with a {}, or one of {}", kDeviceFile,
                                    fmt::join(known, ", ")));
}

Calibration chosen_calibration(const SimulatorOptions& options, const DeviceSpec& device) {
  Calibration chosen;
  if (options.calibration.empty()) {
    chosen = default_calibration(device, false);
  } else if (options.calibration != "none") {
    chosen = read_calibration(options.calibration);
  }
  if (!chosen.constants) {
    chosen.constants = default_calibration(device, true).constants;
  }
  return chosen;
}

Calibration unfitted_calibration(SimulatorOptions options, const DeviceSpec& device) {
  options.calibration = "none";
  return chosen_calibration(options, device);
}

ReplayOptions replay_options(const SimulatorOptions& options) {
  if (options.max_accesses < 1) {
    throw InvalidArgument("max_accesses", fmt::to_string(options.max_accesses), "must be >= 1");
  }
  ReplayOptions replay;
  replay.max_accesses = options.max_accesses;
  replay.threads = omp_get_max_threads();
  return replay;
}

RoutedLayer route_layer(MoeBackend& backend, const NamedWorkload& workload, const LayerShape& shape,
                        std::uint64_t seed) {
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = HostTensor(shape.dtype, shape.num_experts(), shape.hidden_size);
  experts->w_out = HostTensor(shape.dtype, shape.num_experts(), shape.hidden_size);
  if (shape.shared_size > 0) {
    experts->shared = SharedMlpWeights{HostTensor(shape.dtype, shape.shared_size, shape.hidden_size),
                                       HostTensor(shape.dtype, shape.shared_size, shape.hidden_size),
                                       HostTensor(shape.dtype, shape.hidden_size, shape.shared_size)};
  }
  const LayerInputs inputs = make_inputs(workload, shape, seed, {}, std::move(experts));
  return {inputs.shape, route(backend, inputs), inputs.fixed_routing.has_value()};
}

RoutedSystem::RoutedSystem(MoeBackend& backend, const NamedWorkload& workload, const SystemShape& shape,
                           std::uint64_t seed)
    : backend_(backend), inputs_(make_routing_workload(workload.spec, shape, seed)) {
  inputs_.workload = workload.name;
  const auto execution = backend_.prepare_system(inputs_);
  run(*execution, Stage::kRouterSelect);
  routing_ = execution->routing();
}

void RoutedSystem::run(LayerExecution& execution, Stage last) const {
  if (std::ranges::find(execution.stages(), last) == execution.stages().end()) {
    return;  // a fixed routing, or none
  }
  for (const Stage stage : execution.stages()) {
    execution.enqueue(stage);
    if (stage == last) {
      break;
    }
  }
  execution.synchronize();
}

std::optional<TokenAssignment> RoutedSystem::assign(const TokenRule& rule) {
  if (rule.every()) {
    return std::nullopt;
  }
  inputs_.tokens = rule;
  const auto execution = backend_.prepare_ruled_system(inputs_);
  run(*execution, Stage::kSchedule);
  inputs_.tokens = {};
  return execution->assignment() == nullptr ? std::nullopt : std::optional(*execution->assignment());
}

std::string modelled_backend(const DeviceSpec& device) { return "sim: " + device.name; }

}  // namespace moescope
