#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/systems/system.hpp"
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

/// The device that is modelled where none is named.
std::string default_device();
/// A device by the name of its folder in data/devices, or a folder of one's own with a device file in it, or
/// such a file (anything with a '/' or ending in .json), with changes behind a '@' (vary_device()). Throws
/// InvalidArgument("device", ...) listing the known names, FileError.
DeviceSpec find_device(const std::string& name);
/// The file that find_device() reads for a name; none when there is no device of that name. Throws nothing.
std::optional<std::filesystem::path> device_file(const std::string& name);
/// --calibration: a file, "none", or without it the one in the device's folder, else that of the nearest
/// device that has one (carried_over() says so); no fits where no device has. Constants of streams go with
/// it: where the calibration has none, those of the device's own file, else of the nearest that has some.
Calibration chosen_calibration(const SimulatorOptions& options, const DeviceSpec& device);
/// The same without fits: for fitting them.
Calibration unfitted_calibration(SimulatorOptions options, const DeviceSpec& device);
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

/// The same of a baseline: values of expert weights are left out.
class RoutedSystem {
 public:
  /// Throws what making the workload and routing it throw.
  RoutedSystem(MoeBackend& backend, const NamedWorkload& workload, const SystemShape& shape,
               std::uint64_t seed);

  const SystemShape& shape() const { return inputs_.shape; }
  const Routing& routing() const { return routing_; }
  bool fixed_routing() const { return inputs_.fixed_routing.has_value(); }
  /// What a rule leaves of the routing; none where it leaves all.
  std::optional<TokenAssignment> assign(const TokenRule& rule);

 private:
  void run(LayerExecution& execution, Stage last) const;

  MoeBackend& backend_;
  SystemInputs inputs_;
  Routing routing_;
};

/// As rows name the backend of a modelled device.
std::string modelled_backend(const DeviceSpec& device);

}  // namespace moescope
