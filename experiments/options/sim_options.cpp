#include "experiments/options/sim_options.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"
#include "core/workload/workload.hpp"
#include "experiments/options/project_files.hpp"
#include "profiler/simulator/device_variation.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDeviceFolder = "data/devices";
constexpr const char* kCalibration = "data/calibration-h100.json";

}  // namespace

void add_simulator_options(Cli app, SimulatorOptions& options) {
  app.add_option(
         "--device", options.devices,
         "modelled devices, by comma: names of files in data/devices (h100-sxm, a100-sxm-80gb, h200-sxm, "
         "b200, rtx4090, l4) or files of your own (default h100-sxm), with changes behind @: "
         "h100-sxm@l2_bytes=25MiB@hbm_bytes_per_s=x2")
      .type_name("NAME|FILE")
      .delimiter(',');
  app.add_option("--calibration", options.calibration,
                 "fits of what the model leaves out, or none (default: the project's, fitted on an H100)")
      .type_name("FILE");
  app.add_option("--max-accesses", options.max_accesses,
                 "cache line accesses to replay at most; beyond them sets are sampled (default 12000000)")
      .type_name("N");
}

std::optional<fs::path> device_file(const std::string& name) {
  const std::string device = name.substr(0, name.find('@'));
  if (device.find('/') != std::string::npos || device.ends_with(".json")) {
    return device;
  }
  return project_path(fs::path(kDeviceFolder) / (device + ".json"));
}

DeviceSpec find_device(const std::string& name) {
  if (const auto at = name.find('@'); at != std::string::npos) {
    return vary_device(find_device(name.substr(0, at)), name.substr(at + 1));
  }
  if (const auto file = device_file(name)) {
    return read_device(*file);
  }
  std::vector<std::string> known;
  if (const auto folder = project_path(kDeviceFolder)) {
    std::error_code unreadable;  // then the list is empty
    for (const auto& entry : fs::directory_iterator(*folder, unreadable)) {
      known.push_back(entry.path().stem().string());
    }
  }
  std::ranges::sort(known);
  throw InvalidArgument("device", name, fmt::format("must be a file or one of {}", fmt::join(known, ", ")));
}

Calibration chosen_calibration(const SimulatorOptions& options) {
  if (options.calibration == "none") {
    return {};
  }
  if (!options.calibration.empty()) {
    return read_calibration(options.calibration);
  }
  const auto file = project_path(kCalibration);
  return file ? read_calibration(*file) : Calibration{};
}

/// What the benchmark's own emptying of L2 leaves dirty there: 9 MB of 52 come out of L2 in layers that fit
/// it and write next to nothing (results/h100/validation.jsonl of d7e93a1, 64 tokens).
constexpr double kColdDirtyFraction = 0.12;

ReplayOptions replay_options(const SimulatorOptions& options) {
  if (options.max_accesses < 1) {
    throw InvalidArgument("max_accesses", fmt::to_string(options.max_accesses), "must be >= 1");
  }
  ReplayOptions replay;
  replay.cold_dirty_fraction = kColdDirtyFraction;
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

std::string modelled_backend(const DeviceSpec& device) { return "sim: " + device.name; }

}  // namespace moescope
