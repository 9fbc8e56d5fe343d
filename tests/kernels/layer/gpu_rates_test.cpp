// auto on an H100, replayed from recorded rows: what the cost model with its fitted rates predicts, and what
// choosing by it costs. Needs no GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>

#include "core/cost/auto_schedule.hpp"
#include "core/results/result.hpp"
#include "kernels/gpu_rates.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

/// One schedule on one layer, as recorded.
struct Recorded {
  double time_s = 0;  ///< of the stages that the schedule decides
  AnalyticCost cost;
};
struct Point {
  LayerShape shape;
  SkewMetrics skew;
  std::map<std::string, Recorded> schedules;
};

Stage parse_stage(const std::string& name) {
  return *std::ranges::find(kStages, name, [](Stage stage) { return std::string(to_string(stage)); });
}

void add(Recorded& recorded, const ResultRow& row) {
  const Stage stage = parse_stage(row.stage);
  const std::array experts = {Stage::kExperts, Stage::kExpertScores, Stage::kExpertCombine};
  const bool of_experts = std::ranges::find(experts, stage) != experts.end();
  const double value = row.value.value();
  const auto bytes = [&](MemoryLevel level, Access access) {
    recorded.cost.traffic.push_back({stage, level, access, static_cast<std::int64_t>(value), "recorded"});
  };
  if (row.metric == "time_s" && (of_experts || stage == Stage::kSchedule)) {
    recorded.time_s += value;
  } else if (of_experts && row.metric == "hbm_read_bytes") {
    bytes(MemoryLevel::kHbm, Access::kRead);
  } else if (of_experts && row.metric == "hbm_write_bytes") {
    bytes(MemoryLevel::kHbm, Access::kWrite);
  } else if (of_experts && row.metric == "l2_read_bytes") {
    bytes(MemoryLevel::kL2, Access::kRead);
  } else if (of_experts && row.metric == "l2_write_bytes") {
    bytes(MemoryLevel::kL2, Access::kWrite);
  } else if (of_experts && row.metric == "useful_flop") {
    recorded.cost.flop.push_back({stage, static_cast<std::int64_t>(value), 0});
  } else if (of_experts && row.metric == "executed_flop") {
    recorded.cost.flop.push_back({stage, 0, static_cast<std::int64_t>(value)});
  }
}

/// The rows that scripts/fit_rates.py was given.
constexpr std::array kFitted = {
    "compare-1-512.jsonl.gz",     "compare-64-512.jsonl.gz",    "compare-256-512.jsonl.gz",
    "compare-1024-512.jsonl.gz",  "compare-1024-4096.jsonl.gz", "compare-4096-512.jsonl.gz",
    "compare-16384-512.jsonl.gz", "small-batches.jsonl.gz",     "scaling-experts.jsonl.gz"};

/// Points of recorded files; where several hold a schedule at a point, the last one counts.
std::map<std::string, Point> recorded_points(std::span<const char* const> files) {
  std::map<std::string, Point> points;
  for (const char* file : files) {
    std::map<std::string, Point> of_file;
    for (const RecordedRun& run :
         read_rows(std::filesystem::path(test::source_dir()) / "results" / "h100" / file)) {
      EXPECT_NE(run.header.device.find("H100"), std::string::npos) << run.header.device;
      for (const ResultRow& row : run.rows) {
        if (row.status != Status::kOk || (row.metric != "time_s" && row.source != Source::kAnalytic)) {
          continue;
        }
        Point& point = of_file[fmt::format("L{}_N{}x{}_K{}_{}", row.num_tokens, row.grid_rows, row.grid_cols,
                                           row.top_k, row.workload)];
        point.shape.num_tokens = row.num_tokens;
        point.shape.hidden_size = row.hidden_size;
        point.shape.grid_rows = row.grid_rows;
        point.shape.grid_cols = row.grid_cols;
        point.shape.top_k = row.top_k;
        if (row.metric == "effective_experts") {
          point.skew.effective_experts = row.value.value();
        } else if (row.schedule != "none") {
          add(point.schedules[row.schedule], row);
        }
      }
    }
    for (auto& [name, point] : of_file) {
      point.schedules.insert(points[name].schedules.begin(), points[name].schedules.end());
      points[name] = std::move(point);
    }
  }
  return points;
}

TEST(GpuRates, AreValidAndSayWhereTheyAreFrom) {
  cuda::DeviceInfo device;
  device.name = "NVIDIA H100 80GB HBM3";
  device.l2_bytes = 50 << 20;
  const MachineRates rates = cuda::gpu_rates(device);
  EXPECT_NO_THROW(rates.validate());
  EXPECT_EQ(rates.cache_bytes, 50 << 20);
  device.name = "another GPU";
  EXPECT_NE(cuda::gpu_rates(device).source.find("of an H100 (here: another GPU)"), std::string::npos);
}

TEST(GpuRates, ChooseWhatWasFastestOrNearlySoAtEveryRecordedPoint) {
  cuda::DeviceInfo device;
  device.name = "NVIDIA H100 80GB HBM3";
  device.l2_bytes = 50 << 20;
  const MachineRates rates = cuda::gpu_rates(device);
  const auto points = recorded_points(kFitted);
  EXPECT_GE(points.size(), 51U);
  double sum_of_losses = 0;
  std::map<std::string, int> fitted;
  for (const auto& [name, point] : points) {
    double chosen_s = 0;
    double best_predicted_s = std::numeric_limits<double>::infinity();
    double fastest_s = std::numeric_limits<double>::infinity();
    for (const ScheduleRates& each : rates.candidates) {
      const auto found = point.schedules.find(to_string(each.schedule));
      if (found == point.schedules.end()) {
        continue;
      }
      if (!each.hold_for(point.shape)) {  // still what the choice is measured against
        fastest_s = std::min(fastest_s, found->second.time_s);
        continue;
      }
      ++fitted[found->first];
      const Recorded& recorded = found->second;
      const ScheduleCandidate candidate =
          predict_schedule(point.shape, point.skew, recorded.cost, each, rates.cache_bytes);
      EXPECT_LT(candidate.predicted_s, 1.6 * recorded.time_s) << name << ' ' << candidate.reason;
      EXPECT_GT(candidate.predicted_s, recorded.time_s / 1.6) << name << ' ' << candidate.reason;
      fastest_s = std::min(fastest_s, recorded.time_s);
      if (candidate.predicted_s < best_predicted_s) {
        best_predicted_s = candidate.predicted_s;
        chosen_s = recorded.time_s;
      }
    }
    EXPECT_LE(chosen_s, 1.25 * fastest_s) << name;
    sum_of_losses += chosen_s / fastest_s;
  }
  for (const ScheduleRates& each : rates.candidates) {
    EXPECT_GE(fitted[to_string(each.schedule)], 46) << to_string(each.schedule);
  }
  EXPECT_LE(sum_of_losses / static_cast<double>(points.size()), 1.01);
}

TEST(GpuRates, TakeRowsAloneWhereTheyWereRecordedFastest) {
  cuda::DeviceInfo device;
  device.name = "NVIDIA H100 80GB HBM3";
  device.l2_bytes = 50 << 20;
  const MachineRates rates = cuda::gpu_rates(device);
  const std::array files = {"shift.jsonl.gz"};  // none of these points was fitted to
  const auto points = recorded_points(files);
  const Point& even = points.at("L512_N320x320_K512_zipf:0");
  double best_predicted_s = std::numeric_limits<double>::infinity();
  std::string chosen;
  for (const ScheduleRates& each : rates.candidates) {
    const Recorded& recorded = even.schedules.at(to_string(each.schedule));
    EXPECT_GE(recorded.time_s, even.schedules.at("staircase:rows").time_s) << to_string(each.schedule);
    const double predicted_s =
        predict_schedule(even.shape, even.skew, recorded.cost, each, rates.cache_bytes).predicted_s;
    if (predicted_s < best_predicted_s) {
      best_predicted_s = predicted_s;
      chosen = to_string(each.schedule);
    }
  }
  EXPECT_EQ(chosen, "staircase:rows");
}

}  // namespace
}  // namespace moescope
