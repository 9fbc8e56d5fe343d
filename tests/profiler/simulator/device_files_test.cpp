// The devices that ship: sources one can follow, and values that are of this world.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "profiler/simulator/sim_device.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

template <class Check>
void for_each_device(const Check& check) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(test::source_path("data/devices"))) {
    SCOPED_TRACE(entry.path().filename().string());
    check(read_device(entry.path() / "device.json"));
    ++files;
  }
  EXPECT_GE(files, 6);
}

TEST(DeviceFiles, SourcesNameADocumentAMeasurementOrAreCalledEstimates) {
  for_each_device([](const DeviceSpec& device) {
    for (const auto& [key, source] : device.sources) {
      bool known = false;
      for (const char* word :
           {"whitepaper", "datasheet", "guide", "brief", "measured", "estimate", "results/",
            "Chips and Cheese", "cudaDeviceProp", "github.com/", "fit", "of AD104", "148 SMs times"}) {
        known = known || source.find(word) != std::string::npos;
      }
      EXPECT_TRUE(known) << key << ": " << source;
      EXPECT_GE(source.size(), 15U) << key << ": " << source;
    }
  });
}

TEST(DeviceFiles, ValuesFitTogether) {
  for_each_device([](const DeviceSpec& device) {
    const double clocks = static_cast<double>(device.num_sms) * device.sm_clock_hz;
    // fp32 lanes of an SM: 64 on GA100, 128 since. Peaks are at the highest clock, ours is a sustained one.
    const double lanes = device.compute_capability == 80 ? 64 : 128;
    const double fp32_lanes = device.fp32_flop_per_s / clocks / 2;
    EXPECT_GT(fp32_lanes, 0.7 * lanes);
    EXPECT_LT(fp32_lanes, 1.2 * lanes);
    // Dense bf16 multiply-adds of an SM and clock: 256 (Ada, fp32 sums halved on GeForce) to 4096.
    const double tensor_lanes = device.tensor_bf16_flop_per_s / clocks / 2;
    EXPECT_GT(tensor_lanes, 200);
    EXPECT_LT(tensor_lanes, 4200);
    EXPECT_GT(device.tensor_bf16_flop_per_s, device.fp32_flop_per_s);
    // GDDR6 to HBM3e; L2 is faster than memory, and no faster than all SMs can take from it.
    EXPECT_GT(device.hbm_read_bytes_per_s, 2e11);
    EXPECT_LT(device.hbm_read_bytes_per_s, 8e12);
    EXPECT_GT(device.hbm_write_bytes_per_s, 0.5 * device.hbm_read_bytes_per_s);
    EXPECT_GT(device.l2_bytes_per_s, device.hbm_read_bytes_per_s);
    EXPECT_LE(device.l2_bytes_per_s, device.sm_l2_bytes_per_clock * clocks);
    EXPECT_LT(device.l2_reduce_bytes_per_s, device.l2_bytes_per_s);
    EXPECT_GE(device.l1_bytes_per_clock, device.sm_l2_bytes_per_clock);
    EXPECT_GT(device.hbm_latency_s, device.l2_latency_s);
    EXPECT_GT(device.l2_latency_s, 1e-7);
    EXPECT_LT(device.hbm_latency_s, 2e-6);
    EXPECT_GT(device.launch_s, 1e-6);
    EXPECT_LT(device.launch_s, 1e-5);
    EXPECT_GE(device.l2_bytes, 32 << 20);
    EXPECT_LE(device.l2_bytes, 128 << 20);
    EXPECT_LE(device.l1_bytes, 256 << 10);
    EXPECT_LE(device.shared_bytes_per_block, 227 << 10);
    EXPECT_GT(device.memory_bytes, 20'000'000'000);
    EXPECT_LT(device.memory_bytes, 200'000'000'000);
    EXPECT_LE(device.issue_per_clock, 4);
  });
}

}  // namespace
}  // namespace moescope
