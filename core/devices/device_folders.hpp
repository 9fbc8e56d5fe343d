#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/gpu_traits.hpp"

/// What is known of GPUs, as data: one folder each, data/devices/NAME/, with
///   device.json       capacities and rates, each with its source (profiler/simulator/sim_device.hpp)
///   rates.json        what schedule auto goes by (gpu_rates.hpp)
///   calibration.json  the simulator's fits (profiler/simulator/sim_calibration.hpp)
/// of which the first must be there. `moescope calibrate` writes them.
namespace moescope {

inline constexpr const char* kDevicesFolder = "data/devices";
inline constexpr const char* kDeviceFile = "device.json";
inline constexpr const char* kRatesFile = "rates.json";
inline constexpr const char* kCalibrationFile = "calibration.json";

/// What a device sustains: by these, what was fitted on one device is scaled to another.
struct DeviceCeilingRates {
  double memory_bytes_per_s = 0;  ///< reading
  double cache_bytes_per_s = 0;   ///< L2, reading
  double matrix_flop_per_s = 0;   ///< bf16 on tensor cores
  double fp32_flop_per_s = 0;
};

/// A folder by what its device.json says.
struct DeviceFolder {
  std::filesystem::path path;
  std::vector<std::string> names;  ///< the device's, then what the CUDA runtime calls it
  GpuTraits gpu;
  DeviceCeilingRates ceilings;

  bool is_of(std::string_view name) const;
  bool has(const char* file) const;
};

/// Throws FileError naming the file and the member.
DeviceFolder read_device_folder(const std::filesystem::path& folder);
/// Every folder below `root` that has a device.json, by name; none where there is no `root`. Throws the same.
std::vector<DeviceFolder> device_folders(const std::filesystem::path& root);
/// Those of the project (project_path()).
std::vector<DeviceFolder> project_devices();

/// The folder of the device of this name. Null without.
const DeviceFolder* folder_of(const std::vector<DeviceFolder>& folders, std::string_view name);
/// Of the folders that have `file` the one whose device is most like `gpu`: of the same compute capability if
/// there is one, then by the ratios of multiprocessors and L2. Ties go to the first. Null where none has it.
const DeviceFolder* nearest_folder(const std::vector<DeviceFolder>& folders, const GpuTraits& gpu,
                                   const char* file);

/// A folder's name for a device: "NVIDIA A100-SXM4-80GB" is a100-sxm4-80gb.
std::string folder_name(std::string_view device);

}  // namespace moescope
