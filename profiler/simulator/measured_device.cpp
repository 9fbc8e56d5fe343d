#include "profiler/simulator/measured_device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// A value of a device that is one of the ceilings.
struct MeasuredRate {
  const char* key;
  double DeviceSpec::*member;
  std::string_view metric;
};
constexpr MeasuredRate kRates[] = {
    {"hbm_read_bytes_per_s", &DeviceSpec::hbm_read_bytes_per_s, ceiling::kHbmRead},
    {"hbm_write_bytes_per_s", &DeviceSpec::hbm_write_bytes_per_s, ceiling::kHbmWrite},
    {"l2_bytes_per_s", &DeviceSpec::l2_bytes_per_s, ceiling::kL2Read},
    {"l2_reduce_bytes_per_s", &DeviceSpec::l2_reduce_bytes_per_s, ceiling::kL2Reduction},
    {"tensor_bf16_flop_per_s", &DeviceSpec::tensor_bf16_flop_per_s, ceiling::kBf16Matrix},
    {"fp32_flop_per_s", &DeviceSpec::fp32_flop_per_s, ceiling::kFp32}};

/// One that the CUDA runtime says of it.
struct MachineNumber {
  const char* key;
  std::int64_t DeviceSpec::*member;
  const char* machine;  ///< key in the header
};
constexpr MachineNumber kNumbers[] = {
    {"num_sms", &DeviceSpec::num_sms, "num_sms"},
    {"compute_capability", &DeviceSpec::compute_capability, "compute_capability"},
    {"memory_bytes", &DeviceSpec::memory_bytes, "device_memory_bytes"},
    {"l2_bytes", &DeviceSpec::l2_bytes, "l2_bytes"},
    {"shared_bytes_per_block", &DeviceSpec::shared_bytes_per_block, "shared_bytes_per_block"}};

}  // namespace

void require_gpu(const RunHeader& header) {
  if (!header.machine.contains("num_sms")) {
    throw InvalidArgument("rows", header.device,
                          "is no GPU, or its run is too old to say what it has: no device to describe");
  }
}

DeviceSpec measured_device(const DeviceCeilings& ceilings, const RunHeader& header, const DeviceSpec& like) {
  require_gpu(header);
  DeviceSpec device = like;
  const bool same = header.device == like.name ||
                    std::ranges::find(like.runtime_names, header.device) != like.runtime_names.end();
  if (!same) {  // of the device itself, what is known of it stays as it is
    device.name = header.device;
    device.runtime_names.clear();
    for (auto& [key, source] : device.sources) {
      source = fmt::format("as {}, not measured: {}", like.name, source);
    }
  }
  const std::string run = fmt::format("run {}, driver {}", header.run_id, header.driver);
  for (const MachineNumber& number : kNumbers) {
    if (const auto found = header.machine.find(number.machine); found != header.machine.end()) {
      device.*number.member = std::llround(found->second);
      device.sources[number.key] = fmt::format("cudaDeviceProp, {}", run);
    }
  }
  for (const MeasuredRate& rate : kRates) {
    const auto found = std::ranges::find(ceilings.ceilings, rate.metric, &Ceiling::metric);
    if (found != ceilings.ceilings.end() && found->rate) {
      device.*rate.member = *found->rate;
      device.sources[rate.key] =
          fmt::format("measured ({}), {}: {}, median of {}", rate.metric, run, found->method, found->samples);
    }
  }
  // Under a matrix product clocks are lowest; the simulator wants what kernels sustain.
  const auto matrix = std::ranges::find(ceilings.ceilings, ceiling::kBf16Matrix, &Ceiling::metric);
  if (matrix != ceilings.ceilings.end() && matrix->sm_clock_hz > 0) {
    device.sm_clock_hz = matrix->sm_clock_hz;
    device.sources["sm_clock_hz"] = fmt::format("median during {}, {}", matrix->metric, run);
  }
  try {
    return parse_device(device_json(device), header.device);
  } catch (const FileError& error) {
    throw InvalidArgument("rows", header.device, error.what());
  }
}

}  // namespace moescope
