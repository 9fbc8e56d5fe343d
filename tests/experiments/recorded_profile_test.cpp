// What the profiler recorded on every GPU says what README claims of it. Needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "core/backend/ceiling_probe.hpp"
#include "core/results/result.hpp"
#include "profiler/counters/stage_counters.hpp"
#include "profiler/limits/ceilings.hpp"
#include "profiler/report/roofline.hpp"
#include "profiler/study/sampling.hpp"
#include "tests/support/recorded_rows.hpp"

namespace moescope {
namespace {

class RecordedProfile : public test::RecordedGpu {
 protected:
  static std::vector<RecordedRun> read(const std::string& name) {
    auto runs = read_rows(file(name));
    for (const RecordedRun& run : runs) {
      EXPECT_FALSE(run.header.git_dirty) << name;
    }
    return runs;
  }
};
INSTANTIATE_TEST_SUITE_P(Gpus, RecordedProfile, testing::ValuesIn(test::recorded_gpu_names()),
                         [](const auto& gpu) { return gpu.param; });

/// What datasheets say: HBM, bf16 on tensor cores without sparsity, fp32 outside them. Clock and number of
/// multiprocessors, by which shared memory is as fast as 128 bytes a clock, are the same on both.
struct Datasheet {
  const char* device;
  double hbm_bytes_per_s;
  double bf16_flop_per_s;
  double fp32_flop_per_s;
};
constexpr Datasheet kDatasheets[] = {{"NVIDIA H100 80GB HBM3", 3.35e12, 990e12, 67e12},
                                     {"NVIDIA H200", 4.8e12, 990e12, 67e12}};

TEST_P(RecordedProfile, CeilingsAreThoseOfTheMachine) {
  const auto ceilings = recorded_ceilings(read("ceilings.jsonl"));
  ASSERT_TRUE(ceilings.has_value());
  const auto* const sheet = std::ranges::find(kDatasheets, ceilings->device, &Datasheet::device);
  if (sheet == std::end(kDatasheets)) {
    GTEST_SKIP() << "no datasheet here of " << ceilings->device;
  }
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
  between(ceiling::kHbmCopy, 0.75 * sheet->hbm_bytes_per_s, sheet->hbm_bytes_per_s);
  between(ceiling::kHbmRead, 0.75 * sheet->hbm_bytes_per_s, sheet->hbm_bytes_per_s);
  between(ceiling::kHbmWrite, 0.75 * sheet->hbm_bytes_per_s, sheet->hbm_bytes_per_s);
  between(ceiling::kL2Read, 4e12, 11e12);
  between(ceiling::kL2Reduction, 1e12, 11e12);
  between(ceiling::kSharedRead, 25e12, 34e12);  // 132 SMs x 128 bytes x 1.98 GHz = 33.5 TB/s
  between(ceiling::kBf16Matrix, 550e12, sheet->bf16_flop_per_s);
  between(ceiling::kFp32, 50e12, sheet->fp32_flop_per_s);
}

/// Every stage of a backward that was timed has counters; what it writes is what it must, and its stages add
/// up to the layer as one range.
TEST_P(RecordedProfile, EveryStageOfTheBackwardIsCounted) {
  MOESCOPE_NEEDS_ROWS("validation-backward.jsonl.gz");
  using Key = std::tuple<std::string, std::string, std::string>;  // run, schedule, stage
  std::map<Key, double> times;
  std::map<Key, double> written;
  std::set<std::string> saves;
  for (const RecordedRun& run : read("validation-backward.jsonl.gz")) {
    for (const ResultRow& row : run.rows) {
      EXPECT_NE(row.status, Status::kFailed) << row.metric << ": " << row.reason;
      if (row.stage == "device" || row.source != Source::kMeasured || !row.value) {
        continue;
      }
      EXPECT_EQ(row.direction, "backward");
      saves.insert(row.save);
      const Key key(run.header.run_id, row.schedule, row.stage);
      if (row.metric == "time_s") {
        times[key] = *row.value;
      } else if (row.metric == "hbm_write_bytes") {
        written[key] = *row.value;
        if (row.stage == "experts_wgrad") {
          // dW and dV whole: once by owners, twice where columns add to what rows stored; what else is
          // written, p and q and the sort's lists at most, is less than that.
          const auto gradients = static_cast<double>(2 * row.grid_rows * row.grid_cols * row.hidden_size *
                                                     dtype_bytes(parse_dtype(row.dtype)));
          EXPECT_GT(*row.value, 0.9 * gradients) << row.schedule << " L " << row.num_tokens;
          if (row.schedule == "token_centric") {
            EXPECT_LT(*row.value, 1.4 * gradients) << "L " << row.num_tokens;
          } else if (row.schedule.starts_with("staircase")) {
            EXPECT_LT(*row.value, 2.2 * gradients) << row.schedule << " L " << row.num_tokens;
          }
        }
      } else if (row.metric == "stage_sum_over_layer_hbm") {
        EXPECT_NEAR(*row.value, 1, 0.03) << row.schedule << " L " << row.num_tokens;
      } else if (row.metric == "relative_error") {
        EXPECT_LE(*row.value, 5e-3) << row.schedule << " L " << row.num_tokens << ' ' << row.reason;
      }
    }
  }
  EXPECT_GT(times.size(), 200U);
  for (const auto& [key, time] : times) {
    EXPECT_TRUE(written.contains(key)) << std::get<1>(key) << ' ' << std::get<2>(key);
  }
  EXPECT_EQ(saves, (std::set<std::string>{"minimal", "log_probs", "scores"}));
}

TEST_P(RecordedProfile, EveryScheduleIsCountedOnGaussianAndOnATrainedRouter) {
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

TEST_P(RecordedProfile, GivesARoofline) {
  const Roofline roofline = read_roofline(read("profile.jsonl"), RooflineFlop::kUseful);
  EXPECT_EQ(roofline_figure(roofline).panels.size(), 4U) << "two workloads, two levels";
  for (const RooflinePoint& point : roofline.points) {
    ASSERT_TRUE(point.hbm_bytes && point.l2_bytes) << point.schedule << ' ' << point.stage;
    EXPECT_LE(*point.hbm_bytes / point.time_s, 1.05 * roofline.ceilings.hbm_bytes_per_s().value())
        << point.schedule << ' ' << point.stage;
  }
}

TEST_P(RecordedProfile, ProfilerInTheProgramCostsNothingWhileItIsOff) {
  MOESCOPE_NEEDS_ROWS("overhead_with.jsonl");
  const auto times = [&](const std::string& name) {
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
