#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "profiler/simulator/sim_device.hpp"

/// What-if devices: one that exists with some of its values changed.
namespace moescope {

/// `device` with `changes` made to it, KEY=VALUE by '@': "l2_bytes=8MiB@num_sms=66". A value is a number,
/// with KiB, MiB, GiB, K, M, G or T behind it if that helps, a word where the key takes words, or a factor on
/// what the device has: "hbm_bytes_per_s=x1.5". Keys are those of a device file, and hbm_bytes_per_s for
/// reads and writes alike. Peaks of tensor and CUDA cores follow num_sms and sm_clock_hz unless they are
/// changed themselves; nothing else follows anything. The name says what was changed, and so do sources.
/// Throws InvalidArgument("device", ...).
DeviceSpec vary_device(const DeviceSpec& device, std::string_view changes);

/// "KEY=V1,V2,...": one axis of a what-if study.
struct VariedKey {
  std::string key;
  std::vector<std::string> values;
};
/// Throws InvalidArgument("vary", ...).
VariedKey parse_varied_key(std::string_view text);

}  // namespace moescope
