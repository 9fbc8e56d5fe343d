#include "profiler/simulator/sim_replay.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <span>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "profiler/simulator/sim_device.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::h100;

const std::string kDevices = test::source_path("data/devices/");

TEST(SimDevice, EveryFileLoadsAndEveryValueHasASource) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kDevices)) {
    const DeviceSpec device = read_device(entry.path() / "device.json");
    EXPECT_EQ(device.sources.size(), 24U) << entry.path();
    EXPECT_EQ(device_json(parse_device(device_json(device), "copy")), device_json(device));
    ++files;
  }
  EXPECT_GE(files, 6);
}

TEST(SimDevice, ErrorsNameFileFieldAndValue) {
  const std::string good = device_json(h100());
  const auto error = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return test::error_text<FileError>([&] { parse_device(text, "x.json"); });
  };
  EXPECT_EQ(error("\"value\": 132,", "\"value\": -3,"), "x.json: values.num_sms: -3: must be in [1, 1024]");
  EXPECT_EQ(error("\"value\": 132,", "\"value\": 132.5,"),
            "x.json: values.num_sms: 132.5: must be a whole number");
  EXPECT_EQ(error("\"value\": 132,", "\"value\": \"many\","),
            "x.json: values.num_sms: \"many\": must be a whole number");
  EXPECT_EQ(error("\"num_sms\"", "\"num_cores\""), "x.json: values.num_sms: missing");
  EXPECT_EQ(error("\"cache_both\"", "\"three\""),
            "x.json: values.l2_halves: \"three\": must be one of one, fetch_across, cache_both");
  EXPECT_EQ(error("\"value\": 52428800", "\"value\": 52428801"),
            "x.json: values: l2.capacity_bytes = 52428801: must be a positive multiple of 2048 (16 ways of "
            "128-byte "
            "lines)");
  EXPECT_EQ(error("\"value\": 52428800", "\"value\": 52432896"),
            "x.json: values: l2_bytes = 52432896: must give a multiple of 64 sets per half of L2");
  EXPECT_EQ(test::error_text<FileError>([] { parse_device("[1]", "x.json"); }),
            "x.json: must hold one JSON object");
  EXPECT_NE(test::error_text<FileError>([] { parse_device("{\"name\": 1e999}", "x.json"); }), "(no error)");
  EXPECT_EQ(error("\"num_sms\": {", "\"num_sms\": {\"value\": 1,"),
            "x.json: values.num_sms: key 'value' stands there twice");
  EXPECT_EQ(error("\"value\": 132", "\"value\": " + std::string(100000, '['))
                .find("x.json: values.num_sms.value[0]"),
            0U);
  EXPECT_EQ(test::error_text<FileError>([] { read_device("/nowhere.json"); }), "/nowhere.json: no such file");
}

/// Units that read `bytes` each, `step` apart.
KernelLaunch sweep(std::int64_t units, std::uint32_t bytes, std::uint64_t step, AccessKind kind) {
  return {Stage::kExperts, "sweep", units, 2, [=](std::int64_t index, WorkUnit& unit) {
            unit.clear();
            unit.bursts.push_back({static_cast<std::uint64_t>(index) * step, bytes, 1, 0, kind});
          }};
}

TEST(SimReplay, CountsEveryByteOnceWhenNothingIsReused) {
  const std::vector<KernelLaunch> launches = {sweep(1000, 4096, 4096, AccessKind::kRead)};
  const Replay result = replay(launches, h100(), {});
  const LaunchReplay& launch = result.launches.at(0);
  EXPECT_EQ(result.classes, 64U);
  EXPECT_EQ(launch.l2_read_bytes, 4096000);
  EXPECT_EQ(launch.hbm_read_bytes, 4096000);
  EXPECT_EQ(launch.hbm_write_bytes, 0);
  EXPECT_EQ(launch.hbm_sampling_error(), 0);
  EXPECT_EQ(launch.slots, 264);
}

TEST(SimReplay, ASecondKernelFindsWhatTheFirstLeftInL2ButNotInL1) {
  const std::vector<KernelLaunch> launches = {sweep(100, 4096, 4096, AccessKind::kReadCached),
                                              sweep(100, 4096, 4096, AccessKind::kReadCached)};
  const Replay result = replay(launches, h100(), {});
  EXPECT_EQ(result.launches[1].l1_hit_bytes, 0);
  EXPECT_EQ(result.launches[1].l2_hit_bytes, 409600);
  EXPECT_EQ(result.launches[1].hbm_read_bytes, 0);
}

/// Two blocks to a multiprocessor: a fifth that comes last has the multiprocessor's rates for itself, unless
/// its pace is its own.
TEST(SimReplay, LastBlocksAloneLengthenTheKernel) {
  const DeviceSpec device = h100();
  const auto slots = device.num_sms * 2;
  const auto makespan = [&](std::int64_t units, double clocks = 0) {
    std::vector<KernelLaunch> launches = {sweep(units, 1 << 16, 1 << 16, AccessKind::kRead)};
    launches[0].fill = [fill = launches[0].fill, clocks](std::int64_t index, WorkUnit& unit) {
      fill(index, unit);
      unit.clocks = clocks;
    };
    return replay(launches, device, {}).launches.at(0);
  };
  EXPECT_NEAR(makespan(2 * slots).makespan_s, makespan(2 * slots).balanced_s, 1e-12);
  const LaunchReplay tail = makespan(2 * slots + 1);
  EXPECT_NEAR(tail.makespan_s / makespan(2 * slots).makespan_s, 1.25, 1e-6);
  constexpr double kLong = 1e6;
  EXPECT_NEAR(makespan(2 * slots + 1, kLong).makespan_s, 3 * kLong / device.sm_clock_hz, 1e-9);
}

/// Sectors of which a part is stored: at most the first and the last of a piece.
TEST(SimReplay, CountsSectorsStoredInPart) {
  const auto partial = [](std::uint64_t address, std::uint32_t bytes) {
    const std::vector<KernelLaunch> launches = {
        {Stage::kExperts, "k", 1, 1, [=](std::int64_t, WorkUnit& unit) {
           unit.clear();
           unit.bursts.push_back({address, bytes, 1, 0, AccessKind::kWrite});
         }}};
    const LaunchReplay launch = replay(launches, h100(), {}).launches.at(0);
    EXPECT_LE(launch.l2_partial_bytes, launch.l2_write_bytes);
    return launch.l2_partial_bytes;
  };
  EXPECT_EQ(partial(0, 256), 0);
  EXPECT_EQ(partial(32, 32), 0);
  EXPECT_EQ(partial(4, 4), 32);
  EXPECT_EQ(partial(0, 4), 32);
  EXPECT_EQ(partial(28, 8), 64);
  EXPECT_EQ(partial(4, 252), 32);
  EXPECT_EQ(partial(120, 16), 64);  // in two lines
}

/// A stream with reuse, writes and reductions, from every block.
std::vector<KernelLaunch> mixed_stream() {
  const auto fill = [](std::int64_t index, WorkUnit& unit) {
    unit.clear();
    const Philox random(9, static_cast<std::uint32_t>(index));
    for (std::uint64_t i = 0; i < 60; ++i) {
      const std::uint64_t bits = random.bits(i);
      unit.bursts.push_back({bits % (1 << 14) * 2048, 2048, 1, 0, static_cast<AccessKind>((bits >> 60) % 4)});
    }
    unit.tensor_flop = static_cast<double>(index % 7) * 1e6;
  };
  return {{Stage::kExperts, "mixed", 400, 2, fill}, {Stage::kSharedMlp, "again", 100, 1, fill}};
}

TEST(SimReplay, DoesNotDependOnTheNumberOfThreads) {
  const auto launches = mixed_stream();
  const auto run = [&](int threads) {
    ReplayOptions options;
    options.threads = threads;
    DeviceSpec device = h100();
    device.l2_bytes = 8 << 20;
    return replay(launches, device, options);
  };
  const Replay one = run(1);
  for (const int threads : {2, 3, 7}) {
    const Replay many = run(threads);
    for (std::size_t l = 0; l < launches.size(); ++l) {
      EXPECT_EQ(one.launches[l].hbm_read_bytes, many.launches[l].hbm_read_bytes);
      EXPECT_EQ(one.launches[l].hbm_write_bytes, many.launches[l].hbm_write_bytes);
      EXPECT_EQ(one.launches[l].l1_hit_bytes, many.launches[l].l1_hit_bytes);
      EXPECT_EQ(one.launches[l].link_bytes, many.launches[l].link_bytes);
      EXPECT_EQ(one.launches[l].makespan_s, many.launches[l].makespan_s);
      EXPECT_EQ(one.launches[l].hbm_sampling_error(), many.launches[l].hbm_sampling_error());
    }
  }
}

TEST(SimReplay, SamplingStaysWithinItsStatedError) {
  const auto launches = mixed_stream();
  DeviceSpec device = h100();
  device.l2_bytes = 8 << 20;
  const Replay exact = replay(launches, device, {});
  ASSERT_EQ(exact.classes, 64U);
  ReplayOptions options;
  options.max_accesses = 100'000;
  const Replay sampled = replay(launches, device, options);
  ASSERT_LT(sampled.classes, 64U);
  for (std::size_t l = 0; l < launches.size(); ++l) {
    const double bytes = exact.launches[l].hbm_read_bytes + exact.launches[l].hbm_write_bytes;
    const double got = sampled.launches[l].hbm_read_bytes + sampled.launches[l].hbm_write_bytes;
    const double error = sampled.launches[l].hbm_sampling_error().value();
    EXPECT_GT(error, 0);
    EXPECT_LT(error, 0.05);
    EXPECT_LT(std::abs(got - bytes), 4 * error * bytes);
  }
}

/// Foreign dirty data at the start is not the layer's to count until the layer drives it out.
TEST(SimReplay, ColdDirtyDataIsWrittenWhenALayerNeedsItsPlace) {
  const DeviceSpec device = h100();
  ReplayOptions options;
  options.cold_dirty_fraction = 0.1;
  for (const std::int64_t units : {1, 2000}) {
    const std::vector<KernelLaunch> launches = {
        {Stage::kExperts, "reads", units, 1, [](std::int64_t index, WorkUnit& unit) {
           unit.clear();
           unit.bursts.push_back({static_cast<std::uint64_t>(index) << 16, 1 << 16, 1, 0, AccessKind::kRead});
         }}};
    const LaunchReplay launch = replay(launches, device, options).launches.front();
    EXPECT_EQ(launch.l2_write_bytes, 0);
    EXPECT_EQ(launch.hbm_read_bytes, static_cast<double>(units << 16));
    const double dirty = 0.1 * static_cast<double>(device.l2_bytes);
    EXPECT_NEAR(launch.hbm_write_bytes, units == 1 ? 0 : dirty, 256);
  }
}

/// Random launches of single lines, some far more often than others: a class is as good as a draw. (Of longer
/// rows every 8th class has its share, and sampling is better than it says.)
std::vector<KernelLaunch> random_stream(std::uint64_t seed) {
  const auto fill = [seed](std::int64_t index, WorkUnit& unit) {
    unit.clear();
    const Philox random(seed, static_cast<std::uint32_t>(index));
    for (std::uint64_t i = 0; i < 60; ++i) {
      const std::uint64_t bits = random.bits(i);
      const double hot = random.uniform(1000 + i);
      const auto line = static_cast<std::uint64_t>(hot * hot * hot * 60000);
      unit.bursts.push_back({line * 128, static_cast<std::uint32_t>(32 + bits % 4 * 32), 1, 0,
                             static_cast<AccessKind>((bits >> 60) % 4)});
    }
  };
  return {{Stage::kExperts, "random", 300, 2, fill}, {Stage::kSharedMlp, "more", 120, 1, fill}};
}

// Student's t with n - 1 degrees of freedom: within 3 of its standard errors lie 98 % and more of all means
// of 8 classes and more. A count that is another's would lie beyond them much more often, or never.
TEST(SimReplay, StatesOfEachCountHowFarItsSampleIsOff) {
  struct Count {
    MemoryCount member;
    double LaunchReplay::*bytes;
  };
  constexpr std::array kCounts = {Count{&MemoryCounters::hbm_read, &LaunchReplay::hbm_read_bytes},
                                  Count{&MemoryCounters::hbm_write, &LaunchReplay::hbm_write_bytes},
                                  Count{&MemoryCounters::l2_read, &LaunchReplay::l2_read_bytes},
                                  Count{&MemoryCounters::l2_write, &LaunchReplay::l2_write_bytes},
                                  Count{&MemoryCounters::l2_reduce, &LaunchReplay::l2_reduce_bytes},
                                  Count{&MemoryCounters::link, &LaunchReplay::link_bytes}};
  DeviceSpec device = h100();
  device.l2_bytes = 1 << 20;
  device.num_sms = 8;
  std::array<int, kCounts.size()> beyond_one{};
  std::array<int, kCounts.size()> beyond_three{};
  std::array<int, kCounts.size()> seen{};
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const auto launches = random_stream(seed);
    const Replay exact = replay(launches, device, {});
    ASSERT_EQ(exact.classes, 64U);
    ReplayOptions options;
    options.max_accesses = 10'000;
    const Replay sampled = replay(launches, device, options);
    ASSERT_LE(sampled.classes, 16U);
    ASSERT_GE(sampled.classes, 8U);
    for (std::size_t l = 0; l < launches.size(); ++l) {
      for (std::size_t c = 0; c < kCounts.size(); ++c) {
        const double right = exact.launches[l].*kCounts[c].bytes;
        const double got = sampled.launches[l].*kCounts[c].bytes;
        const auto error = sampled.launches[l].sampling_error(std::span(&kCounts[c].member, 1));
        if (!error) {
          EXPECT_EQ(got, 0);
          continue;
        }
        ++seen[c];
        beyond_one[c] += std::abs(got - right) > *error * got ? 1 : 0;
        beyond_three[c] += std::abs(got - right) > 3 * *error * got ? 1 : 0;
      }
    }
  }
  for (std::size_t c = 0; c < kCounts.size(); ++c) {
    EXPECT_GE(seen[c], 60) << c;
    EXPECT_LE(beyond_three[c], seen[c] / 16) << c;
    EXPECT_GE(beyond_one[c], seen[c] / 8) << c;
    EXPECT_LE(beyond_one[c], seen[c] * 5 / 8) << c;
  }
}

}  // namespace
}  // namespace moescope
