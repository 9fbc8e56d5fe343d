#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "experiments/options/options.hpp"
#include "profiler/simulator/sim_layer.hpp"

namespace moescope {

/// What `simulate` and `validate` share.
struct SimulatorOptions {
  std::vector<std::string> devices;
  std::string calibration;
  std::int64_t max_accesses = ReplayOptions{}.max_accesses;
};

void add_simulator_options(Cli app, SimulatorOptions& options);

/// A device by the name of its file in data/devices, or a file (anything with a '/' or ending in .json),
/// with changes behind a '@' (vary_device()). Throws InvalidArgument("device", ...) listing the known names,
/// FileError.
DeviceSpec find_device(const std::string& name);
/// --calibration: a file, "none", or without it the one that comes with the project.
Calibration chosen_calibration(const SimulatorOptions& options);
/// Throws InvalidArgument("max_accesses", ...).
ReplayOptions replay_options(const SimulatorOptions& options);

/// A layer's routing on the CPU. Expert weights are left at zero: routing does not depend on them. Throws
/// what making the workload and routing it throw.
struct RoutedLayer {
  LayerShape shape;
  Routing routing;
  bool fixed_routing = false;
};
RoutedLayer route_layer(MoeBackend& backend, const NamedWorkload& workload, const LayerShape& shape,
                        std::uint64_t seed);

/// As rows name the backend of a modelled device.
std::string modelled_backend(const DeviceSpec& device);

}  // namespace moescope
