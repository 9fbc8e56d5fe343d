#include "profiler/simulator/measured_device.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::h100;

TEST(MeasuredDevice, ReadsBackWhatAnH100Recorded) {
  const auto runs = read_rows(test::source_path("results/h100/ceilings.jsonl"));
  const auto ceilings = recorded_ceilings(runs);
  ASSERT_TRUE(ceilings);
  const DeviceSpec made = measured_device(*ceilings, runs.back().header, h100());
  const DeviceSpec device = parse_device(device_json(made), "made");
  EXPECT_EQ(device.name, h100().name) << "the device itself, by its runtime name";
  EXPECT_EQ(device.num_sms, 132);
  EXPECT_EQ(device.compute_capability, 90);
  EXPECT_EQ(device.l2_bytes, 52428800);
  EXPECT_DOUBLE_EQ(device.hbm_read_bytes_per_s, *ceilings->rate(ceiling::kHbmRead));
  EXPECT_DOUBLE_EQ(device.hbm_write_bytes_per_s, *ceilings->rate(ceiling::kHbmWrite));
  EXPECT_DOUBLE_EQ(device.l2_bytes_per_s, *ceilings->rate(ceiling::kL2Read));
  EXPECT_DOUBLE_EQ(device.l2_reduce_bytes_per_s, *ceilings->rate(ceiling::kL2Reduction));
  EXPECT_DOUBLE_EQ(device.tensor_bf16_flop_per_s, *ceilings->rate(ceiling::kBf16Matrix));
  EXPECT_DOUBLE_EQ(device.fp32_flop_per_s, *ceilings->rate(ceiling::kFp32));
  EXPECT_EQ(device.l2_latency_s, h100().l2_latency_s);
  EXPECT_EQ(device.sources.size(), h100().sources.size());
  EXPECT_NE(device.sources.at("hbm_read_bytes_per_s").find("kernel reads 2048 MiB once"), std::string::npos);
  EXPECT_TRUE(device.sources.at("num_sms").starts_with("cudaDeviceProp, run "));
  EXPECT_EQ(device.sources.at("l2_ways"), h100().sources.at("l2_ways"));
  // The file that ships says of its clock what kernels sustain; recorded ceilings do not.
  EXPECT_EQ(device.sm_clock_hz, h100().sm_clock_hz);
}

TEST(MeasuredDevice, TakesTheClockOfTheMatrixProductAndLeavesOutWhatFailed) {
  RunHeader header;
  header.device = "card";
  header.machine["num_sms"] = 10;
  DeviceCeilings ceilings{"card", {}};
  ceilings.ceilings.push_back({std::string(ceiling::kBf16Matrix), "product", 1e14, 0.01, 9, 1.25e9, ""});
  ceilings.ceilings.push_back(
      {std::string(ceiling::kHbmRead), "reads", std::nullopt, 0, 0, -1, "no memory left"});
  const DeviceSpec device = measured_device(ceilings, header, h100());
  EXPECT_EQ(device.sm_clock_hz, 1.25e9);
  EXPECT_EQ(device.num_sms, 10);
  EXPECT_EQ(device.hbm_read_bytes_per_s, h100().hbm_read_bytes_per_s);
  EXPECT_TRUE(device.sources.at("hbm_read_bytes_per_s").starts_with("as NVIDIA H100"));
}

TEST(MeasuredDevice, RefusesACpuAndWhatNoDeviceHas) {
  RunHeader header;
  header.device = "a CPU";
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { measured_device({}, header, h100()); }).substr(0, 35),
            "rows = a CPU: is no GPU, or its run");
  header.machine["num_sms"] = 0;
  EXPECT_THROW(measured_device({}, header, h100()), InvalidArgument);
}

}  // namespace
}  // namespace moescope
