// Rates for auto as data: what a file may hold, and whose rates a GPU gets.
#include "core/devices/gpu_rates.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// A folder of devices: one with rates, one without, both described like a device that ships.
class Devices {
 public:
  Devices() {
    add("with", "GPU with rates", 132, 3e12, 7e12, 8e14, 6e13);
    test::write_text(root() / "with" / kRatesFile, R"({"device": "GPU with rates", "source": "ten points",
      "schedules": [
        {"schedule": "staircase", "fixed_s": 4e-5, "memory_bytes_per_s": 3e12, "cache_bytes_per_s": 4e12, "flop_per_s": 3e14},
        {"schedule": "token_centric", "fixed_s": 1e-5, "memory_bytes_per_s": 2e12, "cache_bytes_per_s": 8e12, "flop_per_s": 9e14},
        {"schedule": "staircase:rows", "fixed_s": 3e-5, "memory_bytes_per_s": 3e12, "cache_bytes_per_s": 4e12, "flop_per_s": 4e14},
        {"schedule": "dense_masked", "fixed_s": 2e-5, "memory_bytes_per_s": 3e12, "cache_bytes_per_s": 2e13, "flop_per_s": 6e14}],
      "product_keys": {"gather_bytes_per_s": 4e12, "memory_bytes_per_s": 3e12, "bf16_flop_per_s": 7e14,
        "fp32_flop_per_s": 6e13, "gather_fixed_s": 1e-5, "masked_fixed_s": 5e-5, "source": "three points"}})");
    add("without", "GPU without", 132, 6e12, 14e12, 4e14, 3e13);
  }

  fs::path root() const { return directory_.path() / "devices"; }
  std::vector<DeviceFolder> folders() const { return device_folders(root()); }
  std::string rates() const { return read_text(root() / "with" / kRatesFile); }

 private:
  void add(const char* folder, const char* name, int num_sms, double memory, double cache, double matrix,
           double fp32) {
    const auto value = [](double number) {
      return fmt::format(R"({{"value": {}, "source": "made up"}})", number);
    };
    const auto count = [](std::int64_t number) {
      return fmt::format(R"({{"value": {}, "source": "made up"}})", number);
    };
    fs::create_directories(root() / folder);
    test::write_text(
        root() / folder / kDeviceFile,
        fmt::format(R"({{"name": "{}", "runtime_names": ["{} at run time"], "values": {{"num_sms": {},
          "compute_capability": {}, "l2_bytes": {}, "memory_bytes": {}, "shared_bytes_per_block": {}, "sm_clock_hz": {},
          "hbm_read_bytes_per_s": {}, "l2_bytes_per_s": {}, "tensor_bf16_flop_per_s": {}, "fp32_flop_per_s": {}}}}})",
                    name, name, count(num_sms), count(90), count(50 << 20), count(std::int64_t{80} << 30),
                    count(232448), value(1.5e9), value(memory), value(cache), value(matrix), value(fp32)));
  }

  test::TemporaryDirectory directory_;
};

TEST(GpuRatesFile, IsReadInTheOrderOfCandidatesAndWrittenBack) {
  const Devices devices;
  const GpuRates rates = parse_gpu_rates(devices.rates(), "r.json");
  ASSERT_EQ(rates.schedules.size(), 4U);
  EXPECT_EQ(to_string(rates.schedules[0].schedule), "token_centric");
  EXPECT_FALSE(rates.schedules[0].reuse_is_near);
  EXPECT_EQ(rates.schedules[1].fixed_s, 4e-5);
  EXPECT_EQ(rates.schedules[2].max_grid_cols, 320);
  const std::string text = gpu_rates_json(rates);
  EXPECT_EQ(gpu_rates_json(parse_gpu_rates(text, "again.json")), text);
  EXPECT_EQ(rates.schedules[0].pair_s, 0) << "left out";
  EXPECT_FALSE(rates.selection);

  std::string more = devices.rates();
  const std::string place = "\"flop_per_s\": 9e14";
  more.replace(more.find(place), place.size(), place + ", \"pair_s\": 1e-12, \"step_s\": 2e-7");
  const std::string list = "[1e-5, 0, 0, 1e-9, 0, 0, 2e-12]";
  more.replace(more.find("\"product_keys\""), 0,
               "\"selection\": {\"pairs_of_few\": " + list + ", \"pairs_of_many\": " + list +
                   ", \"strips_of_few\": " + list + ", \"strips_of_many\": " + list + "}, ");
  const GpuRates all = parse_gpu_rates(more, "r.json");
  EXPECT_EQ(all.schedules[0].pair_s, 1e-12);
  EXPECT_EQ(all.schedules[0].step_s, 2e-7);
  ASSERT_TRUE(all.selection);
  EXPECT_EQ(all.selection->strips_of_many[6], 2e-12);
  const std::string again = gpu_rates_json(all);
  EXPECT_EQ(gpu_rates_json(parse_gpu_rates(again, "again.json")), again);
  more.replace(more.find(list), list.size(), "[1, 2]");
  EXPECT_EQ(test::error_text<FileError>([&] { parse_gpu_rates(more, "r.json"); }),
            "r.json: selection.pairs_of_few: must have 7 numbers");
}

TEST(GpuRatesFile, ErrorsNameFileMemberAndValue) {
  const Devices devices;
  const auto error = [&](const std::string& from, const std::string& to) {
    std::string text = devices.rates();
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return test::error_text<FileError>([&] { parse_gpu_rates(text, "r.json"); });
  };
  EXPECT_EQ(error("\"fixed_s\": 4e-5", "\"fixed_s\": 0"),
            "r.json: schedules[0].fixed_s: 0: must be positive");
  EXPECT_EQ(error("\"fixed_s\": 4e-5", "\"fixed\": 4e-5"), "r.json: schedules[0].fixed_s: missing");
  EXPECT_EQ(error("\"token_centric\"", "\"expert_centric\""),
            "r.json: schedules[1].schedule: \"expert_centric\": is none that auto chooses among on a GPU");
  EXPECT_EQ(error("\"token_centric\"", "\"staircase\""),
            "r.json: schedules[1].schedule: \"staircase\": stands there twice");
  EXPECT_NE(error("\"source\": \"ten points\",", "").find("r.json: source: missing"), std::string::npos);
}

TEST(GpuRatesOfADevice, AreItsOwnByItsNameOrWhatTheRuntimeCallsIt) {
  const Devices devices;
  for (const char* name : {"GPU with rates", "GPU with rates at run time"}) {
    GpuTraits gpu = test::large_gpu();
    gpu.name = name;
    const MachineRates rates = schedule_rates(devices.folders(), {gpu, 0});
    EXPECT_NO_THROW(rates.validate());
    EXPECT_EQ(rates.source, "ten points");
    EXPECT_EQ(rates.size.cache_bytes, static_cast<double>(gpu.l2_bytes));
    EXPECT_EQ(rates.candidates[0].memory_bytes_per_s, 2e12);
    EXPECT_EQ(product_key_rates(devices.folders(), {gpu, 0}).gather_bytes_per_s, 4e12);
  }
}

TEST(GpuRatesOfADevice, WithoutAFileAreTheNearestsScaledByCeilingsAndSaySo) {
  const Devices devices;
  GpuTraits gpu = test::large_gpu();
  gpu.name = "GPU without";
  const MachineRates rates = schedule_rates(devices.folders(), {gpu, 0});
  EXPECT_EQ(
      rates.source,
      "of GPU with rates, scaled by measured or published ceilings to GPU without: memory x2.00, L2 x2.00, "
      "products x0.50; ten points");
  EXPECT_DOUBLE_EQ(rates.candidates[0].memory_bytes_per_s, 4e12);
  EXPECT_DOUBLE_EQ(rates.candidates[0].flop_per_s, 4.5e14);
  EXPECT_DOUBLE_EQ(rates.candidates[1].cache_bytes_per_s, 8e12);
  EXPECT_DOUBLE_EQ(rates.candidates[1].flop_per_s, 1.5e14);
  EXPECT_EQ(rates.candidates[1].fixed_s, 4e-5) << "launches cost the same";
  const ProductKeyRates keys = product_key_rates(devices.folders(), {gpu, 0});
  EXPECT_DOUBLE_EQ(keys.gather_bytes_per_s, 8e12);
  EXPECT_DOUBLE_EQ(keys.fp32_flop_per_s, 3e13);
  EXPECT_NE(keys.source.find("three points"), std::string::npos);
}

TEST(GpuRatesOfADevice, WithoutAFolderAreScaledByWhatTheDriverSays) {
  const Devices devices;
  GpuTraits gpu = test::large_gpu(90, 66);
  gpu.name = "nobody's GPU";
  gpu.sm_clock_hz = 3e9;
  const MachineRates rates = schedule_rates(devices.folders(), {gpu, 6e12});
  EXPECT_NE(rates.source.find("what the driver says to nobody's GPU: memory x1.90, L2 x1.00, products x1.00"),
            std::string::npos)
      << rates.source;
  EXPECT_DOUBLE_EQ(rates.candidates[0].memory_bytes_per_s, 2e12 * 0.95 * 6e12 / 3e12);
}

TEST(GpuRatesOfADevice, NeedSomeRates) {
  const test::TemporaryDirectory directory;
  EXPECT_NE(test::error_text<FileError>([&] {
              schedule_rates(device_folders(directory.path() / "none"), {test::large_gpu(), 0});
            }).find("no device has rates for schedule auto"),
            std::string::npos);
}

TEST(DeviceFolders, TheNearestIsOfTheSameComputeCapabilityThenOfLikeSize) {
  const Devices devices;
  const auto folders = devices.folders();
  EXPECT_EQ(folders.size(), 2U);
  EXPECT_EQ(nearest_folder(folders, test::large_gpu(80), kRatesFile)->path.filename(), "with");
  EXPECT_EQ(nearest_folder(folders, test::large_gpu(), kCalibrationFile), nullptr);
  EXPECT_EQ(folder_of(folders, "another"), nullptr);
}

TEST(DeviceFolders, HaveNamesThatAFileSystemTakes) {
  EXPECT_EQ(folder_name("NVIDIA H200"), "h200");
  EXPECT_EQ(folder_name("NVIDIA H100 80GB HBM3"), "h100-80gb-hbm3");
  EXPECT_EQ(folder_name("NVIDIA ../../x"), "x");
  EXPECT_EQ(folder_name("..."), "device");
}

/// Those that ship are read by both readers alike; tests/profiler/simulator/ has the rest.
TEST(DeviceFolders, ThatShipNameTheirDevices) {
  const auto folders = device_folders(test::source_path(kDevicesFolder));
  EXPECT_GE(folders.size(), 6U);
  for (const DeviceFolder& folder : folders) {
    EXPECT_GT(folder.gpu.num_sms, 0) << folder.path;
    if (folder.has(kRatesFile)) {
      EXPECT_TRUE(folder.is_of(read_gpu_rates(folder.path / kRatesFile).device)) << folder.path;
    }
  }
}

}  // namespace
}  // namespace moescope
