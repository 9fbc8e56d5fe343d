#include "core/devices/device_folders.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/project_path.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {

namespace fs = std::filesystem;

namespace {

/// How unlike two devices are: a step for another compute capability, which runs other kernels, and more for
/// an older or newer one.
double distance(const GpuTraits& a, const GpuTraits& b) {
  constexpr double kOtherKernels = 100;
  const auto ratio = [](std::int64_t x, std::int64_t y) {
    return x > 0 && y > 0 ? std::abs(std::log(static_cast<double>(x) / static_cast<double>(y))) : 0.0;
  };
  const auto apart = static_cast<double>(std::abs(a.compute_capability - b.compute_capability));
  return (apart > 0 ? kOtherKernels + apart : 0) + ratio(a.num_sms, b.num_sms) +
         ratio(a.l2_bytes, b.l2_bytes);
}

}  // namespace

bool DeviceFolder::is_of(std::string_view name) const {
  return std::ranges::find(names, name) != names.end();
}

bool DeviceFolder::has(const char* file) const { return file_exists(path / file); }

DeviceFolder read_device_folder(const fs::path& folder) {
  const std::string file = (folder / kDeviceFile).string();
  const auto document = parse_json<nlohmann::json>(read_text(file), {file, ""});
  const JsonField device(document, file);
  const JsonField values = device.member("values");
  const auto positive = [&](const char* key) {
    const JsonField value = values.member(key).member("value");
    const double number = value.number();
    if (!(number > 0) || !std::isfinite(number)) {
      value.fail("must be positive");
    }
    return number;
  };
  const auto count = [&](const char* key) {
    return values.member(key).member("value").integer(1, std::int64_t{1} << 50);
  };
  DeviceFolder found;
  found.path = folder;
  found.names = {device.member("name").text()};
  if (device.has("runtime_names")) {
    for (std::string& name : device.member("runtime_names").texts()) {
      found.names.push_back(std::move(name));
    }
  }
  found.gpu = {.name = found.names.front(),
               .compute_capability = count("compute_capability"),
               .num_sms = count("num_sms"),
               .l2_bytes = count("l2_bytes"),
               .memory_bytes = count("memory_bytes"),
               .shared_bytes_per_block = count("shared_bytes_per_block"),
               .sm_clock_hz = positive("sm_clock_hz")};
  found.ceilings = {.memory_bytes_per_s = positive("hbm_read_bytes_per_s"),
                    .cache_bytes_per_s = positive("l2_bytes_per_s"),
                    .matrix_flop_per_s = positive("tensor_bf16_flop_per_s"),
                    .fp32_flop_per_s = positive("fp32_flop_per_s")};
  return found;
}

std::vector<DeviceFolder> device_folders(const fs::path& root) {
  std::vector<fs::path> paths;
  std::error_code unreadable;  // then there are none
  for (const auto& entry : fs::directory_iterator(root, unreadable)) {
    if (file_exists(entry.path() / kDeviceFile)) {
      paths.push_back(entry.path());
    }
  }
  std::ranges::sort(paths);
  std::vector<DeviceFolder> folders;
  for (const fs::path& path : paths) {
    folders.push_back(read_device_folder(path));
  }
  return folders;
}

std::vector<DeviceFolder> project_devices() {
  const auto root = project_path(kDevicesFolder);
  return root ? device_folders(*root) : std::vector<DeviceFolder>{};
}

const DeviceFolder* folder_of(const std::vector<DeviceFolder>& folders, std::string_view name) {
  const auto found =
      std::ranges::find_if(folders, [&](const DeviceFolder& folder) { return folder.is_of(name); });
  return found == folders.end() ? nullptr : &*found;
}

const DeviceFolder* nearest_folder(const std::vector<DeviceFolder>& folders, const GpuTraits& gpu,
                                   const char* file) {
  const DeviceFolder* nearest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for (const DeviceFolder& folder : folders) {
    const double apart = distance(folder.gpu, gpu);
    if (folder.has(file) && apart < least) {
      nearest = &folder;
      least = apart;
    }
  }
  return nearest;
}

std::string folder_name(std::string_view device) {
  constexpr std::string_view kVendor = "NVIDIA ";
  if (device.starts_with(kVendor)) {
    device.remove_prefix(kVendor.size());
  }
  std::string name;
  for (const char c : device) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (upper || plain) {
      name += upper ? static_cast<char>(c - 'A' + 'a') : c;
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  while (name.ends_with('-')) {
    name.pop_back();
  }
  return name.empty() ? "device" : name;
}

}  // namespace moescope
