// The real program: the paper's ablations and distribution shift as experiment files, in their CPU form.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

fs::path config(const std::string& name) {
  return std::filesystem::path(test::source_dir()) / "experiments" / "configs" / name;
}

/// Rows of a sweep over `experiment` with samples of next to no time.
std::vector<RecordedRun> swept(const std::string& experiment, const TemporaryDirectory& directory) {
  write_text(directory.path() / "experiment.json", experiment);
  const Outcome outcome =
      run_moescope({"sweep", "experiment.json", "-q", "--threads", "1", "--output", "out"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return read_rows(directory.path() / "out" / "rows.jsonl");
}

TEST(Ablations, FilesHaveTheLayerAndEachAblationOnce) {
  for (const char* name : {"ablations.json", "ablations-small.json"}) {
    const Experiment experiment = read_experiment(config(name));
    std::set<std::string> kinds;
    for (const ExperimentPoint& point : experiment.points) {
      kinds.insert((point.grid.starts_with("1x") ? "full router" : "grid") +
                   std::string(point.shared_size == 0 ? ", no shared" : ""));
    }
    EXPECT_EQ(kinds, (std::set<std::string>{"grid", "grid, no shared", "full router"})) << name;
    EXPECT_EQ(std::ranges::count(experiment.schedules, "token_centric"), 1)
        << "without expert-centric scheduling";
    EXPECT_EQ(std::ranges::count(experiment.schedules, "expert_centric"), 1);
  }
}

TEST(Ablations, AGridOfOneRowIsTheFullRouter) {
  const TemporaryDirectory directory;
  const auto runs = swept(R"({"name": "router", "schedules": ["expert_centric"],
    "axes": {"num_tokens": 16, "hidden_size": 32, "grid": ["8x8", "1x64"], "top_k": 6, "shared_size": 16, "l2": "warm"},
    "min_samples": 2, "max_time_s": 0.001})",
                          directory);
  std::map<std::pair<std::int64_t, std::string>, double> values;  // by rows of the grid and metric
  for (const ResultRow& row : runs.at(0).rows) {
    ASSERT_EQ(row.status == Status::kOk || row.status == Status::kUnavailable, true) << row.reason;
    if (row.value &&
        (row.stage == "layer" || row.stage == "router_select" || row.stage == "router_project")) {
      values[{row.grid_rows, row.stage + " " + row.metric}] = *row.value;
    }
  }
  // N + 1 weight vectors of bf16 instead of Nr + Nc, and as many fp32 logits a token.
  EXPECT_EQ((values[{1, "layer weight_bytes"}] - values[{8, "layer weight_bytes"}]), (65 - 16) * 32 * 2);
  EXPECT_EQ((values[{1, "router_project workspace_bytes"}]), 16 * 65 * 4);
  EXPECT_EQ((values[{1, "router_project useful_flop"}]), 2 * 16 * 32 * 65);
  for (const std::int64_t grid_rows : {1, 8}) {
    for (const char* metric : {"layer time_s", "layer peak_bytes", "router_select usage",
                               "router_select unevenness_nats", "layer relative_error"}) {
      EXPECT_TRUE(values.contains({grid_rows, metric})) << grid_rows << ' ' << metric;
    }
    EXPECT_LT((values[{grid_rows, "layer relative_error"}]), 4e-3);
  }
}

TEST(Ablations, AFullRouterThatDoesNotFitIsRecordedWithTheBytesItNeeds) {
  const TemporaryDirectory directory;
  const auto runs = swept(R"({"name": "huge", "schedules": ["expert_centric"],
    "axes": {"num_tokens": 4096, "hidden_size": 16, "grid": ["8x8", "1x1073741824"], "top_k": 6}, "min_samples": 2, "max_time_s": 0.001})",
                          directory);
  ASSERT_EQ(runs.at(0).points.size(), 2U);
  EXPECT_EQ(runs[0].points[0].status, Status::kOk) << runs[0].points[0].reason;
  const RecordedPoint& point = runs[0].points[1];
  EXPECT_EQ(point.status, Status::kFailed);
  // Logits alone: 4096 * 2^30 * 4 bytes = 16384 GiB; router 32 GiB, experts 64 GiB.
  EXPECT_NE(point.reason.find("N1x1073741824"), std::string::npos) << point.reason;
  const auto needs = point.reason.find("needs ");
  ASSERT_NE(needs, std::string::npos) << point.reason;
  const double gibibytes = std::stod(point.reason.substr(needs + 6)) / (std::int64_t{1} << 30);
  EXPECT_GE(gibibytes, 16384 + 32 + 64) << point.reason;
  EXPECT_LE(gibibytes, 1.02 * (16384 + 32 + 64)) << point.reason;
  const ResultRow& last = runs[0].rows.back();
  EXPECT_EQ(last.grid_cols, std::int64_t{1} << 30);
  EXPECT_EQ(last.reason, point.reason);
}

TEST(Drift, FilesKeepTheScheduleOfTheirFirstBatch) {
  for (const char* name : {"drift.json", "shift.json", "drift-small.json"}) {
    const Experiment experiment = read_experiment(config(name));
    EXPECT_EQ(experiment.tuned_on, experiment.points.front().workload) << name;
    EXPECT_EQ(std::ranges::count(experiment.schedules, "auto"), 1) << name;
  }
}

/// On a CPU one token prefers what reads each row once; many tokens that want the same experts prefer strips.
TEST(Drift, ATunedScheduleIsWhatAutoChoseOnTheFirstBatchAndSaysWhatItLoses) {
  const TemporaryDirectory directory;
  const auto runs =
      swept(R"({"name": "shift", "schedules": ["token_centric", "staircase", "auto"], "tuned_on": "zipf:0",
    "workloads": ["zipf:0", "hot:1,1"],
    "axes": {"num_tokens": 32, "hidden_size": 64, "grid": "32x32", "top_k": 16, "l2": "warm"},
    "min_samples": 2, "max_time_s": 0.001})",
            directory);
  std::map<std::pair<std::string, std::string>, std::string> reasons;  // by workload and schedule
  std::set<std::string> lossy;
  std::string repro;
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "time_s" && row.stage == "layer") {
      EXPECT_EQ(row.status, Status::kOk) << row.reason;
      reasons[{row.workload, row.schedule}] = row.reason;
      repro = row.repro;
    }
    if (row.metric == "time_over_fastest") {
      lossy.insert(row.schedule);
      EXPECT_GT(row.value.value_or(0), 0);
      EXPECT_EQ(row.stage, "layer");
    }
  }
  EXPECT_EQ(lossy, (std::set<std::string>{"auto", "tuned"}));
  const std::string chosen = reasons[{"zipf:0", "auto"}];
  ASSERT_TRUE(chosen.starts_with("auto ran ")) << chosen;
  const std::string kept = "auto on zipf:0 ran " + chosen.substr(9);
  EXPECT_EQ((reasons[{"zipf:0", "tuned"}]), kept);
  EXPECT_EQ((reasons[{"hot:1,1", "tuned"}]), kept) << "not what auto runs there";
  EXPECT_NE((reasons[{"hot:1,1", "auto"}]), chosen) << "this shift is one that changes the choice";
  EXPECT_NE(repro.find("--tuned-on zipf:0"), std::string::npos) << repro;
}

TEST(Drift, TheModelSaysThatItHasNoAuto) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json",
             R"({"name": "shift", "schedules": ["token_centric", "auto"],
    "tuned_on": "zipf:0", "workloads": ["hot:1,1"],
    "axes": {"num_tokens": 8, "hidden_size": 32, "grid": "8x8", "top_k": 4}})");
  const Outcome outcome =
      run_moescope({"sweep", "experiment.json", "--backend", "model", "-q", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  std::map<std::string, Status> statuses;
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "time_s" && row.stage == "layer") {
      statuses[row.schedule] = row.status;
    }
  }
  EXPECT_EQ(statuses,
            (std::map<std::string, Status>{
                {"token_centric", Status::kOk}, {"auto", Status::kSkipped}, {"tuned", Status::kSkipped}}));
}

TEST(Snapshots, ShippedRoutersOfTableAAreCutFromTheRecordedOnes) {
  const TemporaryDirectory directory;
  // usage of the first 1024 tokens, as of the whole recording's router in fp32
  const std::map<std::string, std::string> usage = {{"tablea_layer2_1024", "0.102559"},
                                                    {"tablea_bn_layer2_1024", "0.590205"}};
  for (const auto& [name, expected] : usage) {
    const Outcome outcome =
        run_moescope({"inspect", "--workload", "snapshot:data/" + name + ".safetensors"}, directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("L1024_d1024_N102400_K512"), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find(expected), std::string::npos) << outcome.out;
  }
}

}  // namespace
}  // namespace moescope
