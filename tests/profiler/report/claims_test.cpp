#include "profiler/report/claims.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace moescope {
namespace {

constexpr const char* kDevice = "a GPU";

void add(RecordedRun& run, const std::string& system, const std::string& schedule, Stage stage,
         const std::string& metric, double value, std::int64_t top_k, std::int64_t shared) {
  ResultRow row;
  row.set_shape(LayerShape{.num_tokens = 4096, .hidden_size = 1024, .top_k = top_k, .shared_size = shared});
  row.system = system;
  row.schedule = schedule;
  row.stage = to_string(stage);
  row.backend = "cuda";
  row.workload = "gaussian:1";
  row.l2_state = "cold";
  row.metric = metric;
  row.unit = "s";
  row.value = value;
  row.repro = "moescope compare";
  run.rows.push_back(row);
}

/// OmniMoE in 2 ms, 4 ms token_centric, scheduling 3 % and selection 10 % of expert_centric's 5 ms.
RecordedRun omnimoe_run() {
  RecordedRun run;
  run.header.device = kDevice;
  const auto add_omnimoe = [&](const char* schedule, Stage stage, const char* metric, double value) {
    add(run, "omnimoe", schedule, stage, metric, value, 512, 1024);
  };
  add_omnimoe("token_centric", Stage::kLayer, "time_s", 4e-3);
  add_omnimoe("token_centric", Stage::kLayer, "workspace_bytes", 2e6);
  add_omnimoe("token_centric", Stage::kExperts, "workspace_bytes", 1e6);  // part of the layer's
  add_omnimoe("expert_centric", Stage::kLayer, "time_s", 5e-3);
  add_omnimoe("expert_centric", Stage::kLayer, "workspace_bytes", 4e6);
  add_omnimoe("expert_centric", Stage::kSchedule, "time_s", 1.5e-4);
  add_omnimoe("expert_centric", Stage::kRouterSelect, "time_s", 5e-4);
  add_omnimoe("staircase", Stage::kLayer, "time_s", 2e-3);
  add_omnimoe("staircase:atomics", Stage::kLayer, "time_s", 2.5e-3);
  return run;
}

ClaimResult find(const std::vector<RecordedRun>& runs, const std::string& text) {
  const auto claims = judge_claims(recorded_layers(runs));
  const auto found = std::ranges::find_if(
      claims, [&](const ClaimResult& claim) { return claim.claim.find(text) != std::string::npos; });
  EXPECT_NE(found, claims.end()) << text;
  return found == claims.end() ? ClaimResult{} : *found;
}

TEST(Claims, SayNoRowsWhereNothingIsRecorded) {
  const auto claims = judge_claims({});
  EXPECT_EQ(claims.size(), 19U);
  for (const ClaimResult& claim : claims) {
    EXPECT_EQ(claim.verdict, ClaimVerdict::kNoRows) << claim.claim;
    EXPECT_FALSE(claim.ours.has_value());
    EXPECT_FALSE(claim.why.empty()) << claim.claim;
  }
  EXPECT_NE(claims_table(claims).text().find("10.9x"), std::string::npos);
}

TEST(Claims, AreJudgedByTheirRules) {
  const std::vector<RecordedRun> runs = {omnimoe_run()};
  const ClaimResult latency = find(runs, "latency without expert-centric");
  EXPECT_DOUBLE_EQ(*latency.ours, 0.8) << "token_centric over expert_centric";
  EXPECT_EQ(latency.verdict, ClaimVerdict::kDoesNotHold);
  const ClaimResult strips = find(runs, "staircase for expert_centric");
  EXPECT_DOUBLE_EQ(*strips.ours, 1.6) << "token_centric over staircase:atomics";
  EXPECT_EQ(strips.verdict, ClaimVerdict::kHoldsWithConditions);
  const ClaimResult absolute = find(runs, "time of an OmniMoE layer");
  EXPECT_DOUBLE_EQ(*absolute.ours, 2e-3) << "the fastest";
  EXPECT_EQ(absolute.verdict, ClaimVerdict::kHoldsWithConditions) << "not the paper's device";
  const ClaimResult memory = find(runs, "memory without expert-centric");
  EXPECT_DOUBLE_EQ(*memory.ours, 0.5);
  EXPECT_EQ(memory.verdict, ClaimVerdict::kDoesNotHold);
  const ClaimResult scheduling = find(runs, "scheduling, share");
  EXPECT_DOUBLE_EQ(*scheduling.ours, 0.03);
  EXPECT_EQ(scheduling.verdict, ClaimVerdict::kHolds);
  const ClaimResult selection = find(runs, "selection");
  EXPECT_DOUBLE_EQ(*selection.ours, 0.1);
  EXPECT_EQ(selection.verdict, ClaimVerdict::kDoesNotHold);
}

TEST(Claims, CompareVariantsUnderSchedulesThatBothWereMeasuredWith) {
  RecordedRun bare;
  bare.header.device = kDevice;
  add(bare, "omnimoe", "expert_centric", Stage::kLayer, "time_s", 4.3e-3, 512, 0);
  const ClaimResult claim = find({omnimoe_run(), bare}, "latency without the shared MLP");
  EXPECT_NEAR(*claim.ours, 4.3 / 5, 1e-12) << "not against staircase, which is faster";
}

TEST(Claims, TakeTheRecordingOfMostSchedulesOfARevision) {
  RecordedRun few;
  few.header = omnimoe_run().header;
  few.header.run_id = "z, later";
  add(few, "omnimoe", "token_centric", Stage::kLayer, "time_s", 9e-3, 512, 1024);
  EXPECT_DOUBLE_EQ(*find({omnimoe_run(), few}, "time of an OmniMoE layer").ours, 2e-3);
  few.header.git_revision = "another";
  EXPECT_DOUBLE_EQ(*find({omnimoe_run(), few}, "time of an OmniMoE layer").ours, 9e-3);
}

TEST(Claims, CompareSystemsOnOneDeviceAlone) {
  std::vector<RecordedRun> runs = {omnimoe_run()};
  RecordedRun peer;
  peer.header.device = "another GPU";
  add(peer, "peer", "token_centric", Stage::kLayer, "time_s", 21e-3, 1250, 0);
  runs.push_back(peer);
  EXPECT_EQ(find(runs, "PEER").verdict, ClaimVerdict::kNoRows);
  runs[1].header.device = kDevice;
  const ClaimResult claim = find(runs, "PEER");
  EXPECT_DOUBLE_EQ(*claim.ours, 10.5);
  EXPECT_EQ(claim.verdict, ClaimVerdict::kHolds) << "0.96 of the paper's 10.9";
  EXPECT_NE(claim.why.find("21.0 ms (token_centric) against 2.00 ms (staircase), a GPU"), std::string::npos)
      << claim.why;
}

TEST(Claims, TakeTheNewestRecordingAndNameItsRevision) {
  std::vector<RecordedRun> runs = {omnimoe_run(), omnimoe_run()};
  runs[0].header.run_id = "20261122T111141Z-a";
  runs[0].header.git_revision = "0123456789";
  runs[1].header.run_id = "20261122T075300Z-b";
  runs[1].header.git_revision = "fedcba9876";
  for (ResultRow& row : runs[1].rows) {
    row.value = *row.value * (row.stage == "schedule" ? 2 : 1);
  }
  const ClaimResult scheduling = find(runs, "scheduling, share");
  EXPECT_DOUBLE_EQ(*scheduling.ours, 0.03) << "the older run says 6 %";
  EXPECT_EQ(scheduling.rows, "0123456");
  EXPECT_EQ(find(runs, "latency without expert-centric").rows, "0123456");
}

TEST(Claims, TellTheFullRouterByItsGrid) {
  std::vector<RecordedRun> runs = {omnimoe_run(), omnimoe_run()};
  for (ResultRow& row : runs[1].rows) {
    row.grid_rows = 1;
    row.grid_cols = 102400;
    row.value = *row.value * 40;
  }
  add(runs[0], "omnimoe", "staircase", Stage::kLayer, "peak_bytes", 100, 512, 1024);
  add(runs[1], "omnimoe", "staircase", Stage::kLayer, "peak_bytes", 120, 512, 1024);
  runs[1].rows.back().grid_rows = 1;
  runs[1].rows.back().grid_cols = 102400;
  const ClaimResult latency = find(runs, "latency without the Cartesian router");
  EXPECT_DOUBLE_EQ(*latency.ours, 40);
  EXPECT_EQ(latency.verdict, ClaimVerdict::kHolds);
  const ClaimResult memory = find(runs, "memory without the Cartesian router");
  EXPECT_DOUBLE_EQ(*memory.ours, 1.2);
  EXPECT_EQ(memory.verdict, ClaimVerdict::kHoldsWithConditions);
  EXPECT_DOUBLE_EQ(*find(runs, "time of an OmniMoE layer").ours, 2e-3) << "with its own router";
}

/// What a slow selection of ours adds to a router without a grid is not the grid's merit.
TEST(Claims, HoldTheFullRouterAgainstPyTorchsSelection) {
  RecordedRun full;
  full.header.device = kDevice;
  add(full, "omnimoe", "expert_centric", Stage::kLayer, "time_s", 0.5, 512, 1024);
  add(full, "omnimoe", "expert_centric", Stage::kRouterSelect, "time_s", 0.48, 512, 1024);
  for (ResultRow& row : full.rows) {
    row.grid_rows = 1;
    row.grid_cols = 102400;
  }
  RecordedRun torch;
  torch.header.device = kDevice;
  add(torch, "omnimoe", "topk_all_scores", Stage::kRouterSelect, "time_s", 0.01, 512, 1024);
  EXPECT_DOUBLE_EQ(*find({omnimoe_run(), full}, "latency without the Cartesian router").ours, 100);
  EXPECT_EQ(find({omnimoe_run(), full}, "PyTorch's top K").verdict, ClaimVerdict::kNoRows);
  const ClaimResult fair = find({omnimoe_run(), full, torch}, "PyTorch's top K");
  EXPECT_NEAR(*fair.ours, (0.5 - 0.48 + 0.01) / 5e-3, 1e-9);
  EXPECT_EQ(fair.verdict, ClaimVerdict::kHoldsWithConditions);
}

TEST(Claims, CompareWithAndWithoutTheSharedMlp) {
  std::vector<RecordedRun> runs = {omnimoe_run(), omnimoe_run()};
  for (ResultRow& row : runs[1].rows) {
    row.shared_size = 0;
    row.value = *row.value * 0.9;
  }
  for (RecordedRun& run : runs) {
    add(run, "omnimoe", "staircase", Stage::kLayer, "peak_bytes", run.rows[0].shared_size == 0 ? 98 : 100,
        512, *run.rows[0].shared_size);
  }
  EXPECT_EQ(find(runs, "memory without the shared MLP").verdict, ClaimVerdict::kHolds);
  const ClaimResult claim = find(runs, "latency without the shared MLP");
  EXPECT_NEAR(*claim.ours, 0.9, 1e-12);
  EXPECT_EQ(claim.verdict, ClaimVerdict::kHolds);
}

}  // namespace
}  // namespace moescope
