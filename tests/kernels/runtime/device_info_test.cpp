#include "kernels/runtime/device_info.hpp"

#include <gtest/gtest.h>

#include "kernels/runtime/cuda_raii.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope::cuda {
namespace {

TEST(DeviceInfoGpu, TraitsAreWhatTheRuntimeSays) {
  MOESCOPE_NEEDS_GPU();
  cudaDeviceProp properties{};
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  const GpuTraits& gpu = current_gpu();
  EXPECT_EQ(gpu.name, properties.name);
  EXPECT_EQ(gpu.num_sms, properties.multiProcessorCount);
  EXPECT_EQ(gpu.compute_capability, 10 * properties.major + properties.minor);
  EXPECT_EQ(gpu.l2_bytes, properties.l2CacheSize);
  EXPECT_EQ(&current_gpu(), &gpu) << "asked for once";
  const DeviceInfo info = device_info();
  EXPECT_EQ(info.num_sms, gpu.num_sms);
  EXPECT_GT(info.sm_clock_hz, 5e8);
  EXPECT_LT(info.sm_clock_hz, 5e9);
  EXPECT_GT(info.memory_bytes_per_s, 1e11);
  EXPECT_LT(info.memory_bytes_per_s, 2e13);
}

}  // namespace
}  // namespace moescope::cuda
