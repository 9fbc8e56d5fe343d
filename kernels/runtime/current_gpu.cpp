// What launchers need of the device, apart from device_info.cu, which asks every library for its version: so
// libmoescope has the one without the others.
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

namespace moescope::cuda {
namespace {

GpuTraits traits_of(const cudaDeviceProp& properties) {
  return {.name = properties.name,
          .compute_capability = 10 * properties.major + properties.minor,
          .num_sms = properties.multiProcessorCount,
          .l2_bytes = properties.l2CacheSize,
          .memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem),
          .shared_bytes_per_block = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin)};
}

}  // namespace

const GpuTraits& current_gpu() {
  static std::mutex mutex;
  static std::map<int, GpuTraits> known;
  int device = 0;
  MOESCOPE_CUDA_CHECK(cudaGetDevice(&device));
  const std::scoped_lock lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  cudaDeviceProp properties{};
  MOESCOPE_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return known.emplace(device, traits_of(properties)).first->second;
}

}  // namespace moescope::cuda
