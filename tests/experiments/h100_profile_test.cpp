// What the profiler recorded on an H100 (results/h100/) says what README claims of it. Needs no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "core/backend/ceiling_probe.hpp"
#include "core/results/result.hpp"
#include "profiler/counters/stage_counters.hpp"
#include "profiler/limits/ceilings.hpp"
#include "profiler/report/roofline.hpp"
#include "profiler/study/sampling.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

std::vector<RecordedRun> read(const std::string& name) {
  auto runs = read_rows(std::filesystem::path(test::source_dir()) / "results" / "h100" / name);
  for (const RecordedRun& run : runs) {
    EXPECT_NE(run.header.device.find("H100"), std::string::npos) << run.header.device;
    EXPECT_FALSE(run.header.git_dirty) << name;
  }
  return runs;
}

TEST(RecordedH100Profile, CeilingsAreThoseOfTheMachine) {
  const auto ceilings = recorded_ceilings(read("ceilings.jsonl"));
  ASSERT_TRUE(ceilings.has_value());
  for (const Ceiling& ceiling : ceilings->ceilings) {
    EXPECT_GE(ceiling.samples, 10) << ceiling.metric << ": " << ceiling.reason;
    EXPECT_FALSE(ceiling.method.empty()) << ceiling.metric;
  }
  // Within what the datasheet allows, and not far below it.
  const auto between = [&](std::string_view metric, double low, double high) {
    const double rate = ceilings->rate(metric).value_or(0);
    EXPECT_GT(rate, low) << metric;
    EXPECT_LT(rate, high) << metric;
  };
  between(ceiling::kHbmCopy, 2.5e12, 3.35e12);
  between(ceiling::kHbmRead, 2.5e12, 3.35e12);
  between(ceiling::kHbmWrite, 2.5e12, 3.35e12);
  between(ceiling::kL2Read, 4e12, 11e12);
  between(ceiling::kL2Reduction, 1e12, 11e12);
  between(ceiling::kSharedRead, 25e12, 34e12);  // 132 SMs x 128 bytes x 1.98 GHz = 33.5 TB/s
  between(ceiling::kBf16Matrix, 550e12, 990e12);
  between(ceiling::kFp32, 50e12, 67e12);
}

TEST(RecordedH100Profile, EveryScheduleIsCountedOnGaussianAndOnATrainedRouter) {
  const auto runs = read("profile.jsonl");
  ASSERT_EQ(runs.size(), 1U) << "one command";
  std::set<std::pair<std::string, std::string>> counted;
  std::map<std::string, int> limits;
  for (const ResultRow& row : runs.front().rows) {
    const bool is_sum = row.metric == "stage_sum_over_layer_hbm";
    // What cuSPARSE moves differs from replay to replay by more than the tolerance. With the trained router,
    // where little comes from HBM, so do stages that add to sums in L2, by up to 2.9 % in two recordings;
    // README says which.
    if (!(is_sum && row.schedule == "sparse_library")) {
      EXPECT_NE(row.status, Status::kFailed) << row.metric << ": " << row.reason;
      const bool known = (row.schedule == "expert_centric" || row.schedule.starts_with("staircase")) &&
                         row.workload.starts_with("snapshot:");
      EXPECT_TRUE(!is_sum || std::abs(row.value.value() - 1) <= (known ? 0.03 : HbmSums::kTolerance))
          << row.workload << ' ' << row.schedule;
    }
    if (is_sum) {
      counted.insert({row.workload.substr(0, row.workload.find(':')), row.schedule});
    }
    if (row.metric == "time_s") {
      EXPECT_GE(row.samples, 10) << row.stage;
      EXPECT_EQ(row.num_tokens, 4096);
      EXPECT_EQ(row.top_k, 512);
    }
    limits[row.stage] += row.metric == "nearest_limit_fraction" ? 1 : 0;
  }
  for (const char* workload : {"gaussian", "snapshot"}) {
    for (const char* schedule : {"token_centric", "expert_centric", "staircase", "staircase:atomics",
                                 "dense_masked", "sparse_library"}) {
      EXPECT_TRUE(counted.contains({workload, schedule})) << workload << ' ' << schedule;
    }
  }
  for (const char* stage : {"router_project", "router_select", "shared_mlp", "layer"}) {
    EXPECT_EQ(limits[stage], 12) << stage;
  }
}

TEST(RecordedH100Profile, GivesARoofline) {
  const Roofline roofline = read_roofline(read("profile.jsonl"), RooflineFlop::kUseful);
  EXPECT_EQ(roofline_figure(roofline).panels.size(), 4U) << "two workloads, two levels";
  for (const RooflinePoint& point : roofline.points) {
    ASSERT_TRUE(point.hbm_bytes && point.l2_bytes) << point.schedule << ' ' << point.stage;
    EXPECT_LE(*point.hbm_bytes / point.time_s, 1.05 * roofline.ceilings.hbm_bytes_per_s().value())
        << point.schedule << ' ' << point.stage;
  }
}

TEST(RecordedH100Profile, ProfilerInTheProgramCostsNothingWhileItIsOff) {
  const auto times = [](const std::string& name) {
    std::vector<double> medians;
    for (const RecordedRun& run : read(name)) {
      for (const ResultRow& row : run.rows) {
        if (row.metric == "time_s" && row.stage == "layer") {
          medians.push_back(row.value.value());
        }
      }
    }
    EXPECT_GE(medians.size(), 5U) << name;
    return medians;
  };
  EXPECT_NEAR(median(times("overhead_with.jsonl")) / median(times("overhead_without.jsonl")), 1, 0.005);
}

}  // namespace
}  // namespace moescope
