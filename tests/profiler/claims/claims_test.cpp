#include "profiler/claims/claims.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <numeric>
#include <sstream>

namespace moescope {
namespace {

constexpr const char* kDevice = "a GPU";

void add(RecordedRun& run, const std::string& system, const std::string& schedule, Stage stage,
         const std::string& metric, double value, std::int64_t top_k, std::int64_t shared) {
  ResultRow row;
  row.set_shape(LayerShape{.num_tokens = 4096, .hidden_size = 1024, .top_k = top_k, .shared_size = shared});
  row.system = system;
  row.activation = system == "peer" ? "gelu" : "silu";
  row.gates = "softmax";
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

void add_omnimoe(RecordedRun& run, const std::string& schedule, Stage stage, const std::string& metric,
                 double value) {
  add(run, "omnimoe", schedule, stage, metric, value, 512, 1024);
}

RecordedRun run_at(const std::string& started, const std::string& device = kDevice) {
  RecordedRun run;
  run.header.device = device;
  run.header.started_utc = started;
  run.header.git_revision = "0123456789";
  return run;
}

/// OmniMoE in 2 ms, 4 ms token_centric, scheduling 3 % and selection 10 % of expert_centric's 5 ms.
RecordedRun omnimoe_run() {
  RecordedRun run = run_at("2026-11-20T00:00:00Z");
  add_omnimoe(run, "token_centric", Stage::kLayer, "time_s", 4e-3);
  add_omnimoe(run, "token_centric", Stage::kLayer, "workspace_bytes", 2e6);
  add_omnimoe(run, "token_centric", Stage::kExperts, "workspace_bytes", 1e6);  // part of the layer's
  add_omnimoe(run, "expert_centric", Stage::kLayer, "time_s", 5e-3);
  add_omnimoe(run, "expert_centric", Stage::kLayer, "workspace_bytes", 4e6);
  add_omnimoe(run, "expert_centric", Stage::kSchedule, "time_s", 1.5e-4);
  add_omnimoe(run, "expert_centric", Stage::kRouterSelect, "time_s", 5e-4);
  add_omnimoe(run, "staircase", Stage::kLayer, "time_s", 2e-3);
  add_omnimoe(run, "staircase:atomics", Stage::kLayer, "time_s", 2.5e-3);
  return run;
}

/// Each run in a file of its own: 0.jsonl, 1.jsonl, ...
std::vector<DeviceClaims> judge(const std::vector<RecordedRun>& runs) {
  std::deque<RecordedFile> files;
  std::vector<Recording> recordings;
  for (const RecordedRun& run : runs) {
    files.push_back({std::to_string(files.size()) + ".jsonl", {run}});
    const auto more = recordings_of(files.back());
    recordings.insert(recordings.end(), more.begin(), more.end());
  }
  return judge_claims(recordings);
}

ClaimResult find(const std::vector<RecordedRun>& runs, const std::string& text,
                 const std::string& device = kDevice) {
  for (const DeviceClaims& table : judge(runs)) {
    for (const ClaimResult& claim : table.claims) {
      if (table.device == device && claim.claim.find(text) != std::string::npos) {
        return claim;
      }
    }
  }
  ADD_FAILURE() << "no " << text << " on " << device;
  return {};
}

using Names = std::vector<std::string>;

TEST(Claims, SayNoRowsWhereNothingIsRecorded) {
  const std::vector<DeviceClaims> devices = judge_claims({});
  ASSERT_EQ(devices.size(), 1U);
  EXPECT_EQ(devices[0].claims.size(), 19U);
  for (const ClaimResult& claim : devices[0].claims) {
    EXPECT_EQ(claim.verdict, ClaimVerdict::kNoRows) << claim.claim;
    EXPECT_FALSE(claim.ours.has_value());
    EXPECT_FALSE(claim.worst.has_value());
    EXPECT_FALSE(claim.why.empty()) << claim.claim;
  }
  EXPECT_NE(claims_text(devices).find("10.9x"), std::string::npos);
  EXPECT_NE(claims_markdown(devices).find("10.9x"), std::string::npos);
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
  RecordedRun bare = run_at("2026-11-20T00:00:00Z");
  add(bare, "omnimoe", "expert_centric", Stage::kLayer, "time_s", 4.3e-3, 512, 0);
  const ClaimResult claim = find({omnimoe_run(), bare}, "latency without the shared MLP");
  EXPECT_NEAR(*claim.ours, 4.3 / 5, 1e-12) << "not against staircase, which is faster";
}

/// S01: a newer layer that lacks a schedule hides nothing that older ones have.
TEST(Claims, TakeTheNewestRecordingThatHasWhatTheLineNeeds) {
  RecordedRun newer = run_at("2026-11-21T00:00:00Z");
  add_omnimoe(newer, "token_centric", Stage::kLayer, "time_s", 9e-3);
  const ClaimResult whole = find({omnimoe_run(), newer}, "time of an OmniMoE layer");
  EXPECT_DOUBLE_EQ(*whole.ours, 2e-3) << "the newer one has not the fastest schedule";
  EXPECT_EQ(whole.verdict, ClaimVerdict::kHoldsWithConditions);
  EXPECT_DOUBLE_EQ(*whole.worst, 9e-3) << "what it says is not left out";
  EXPECT_EQ(whole.worst_verdict, ClaimVerdict::kDoesNotHold);
  EXPECT_NE(whole.why.find("9.00 ms (token_centric); from 1"), std::string::npos) << whole.why;
  EXPECT_EQ(whole.used, Names{"0"});
  EXPECT_EQ(whole.passed_over, Names{"1"});
  const ClaimResult latency = find({omnimoe_run(), newer}, "latency without expert-centric");
  EXPECT_DOUBLE_EQ(*latency.ours, 0.8) << "of one recording, not 9 ms over the other's 5 ms";
  EXPECT_EQ(latency.used, Names{"0"});
  EXPECT_EQ(latency.passed_over, Names{"1"});

  add_omnimoe(newer, "expert_centric", Stage::kLayer, "time_s", 6e-3);
  const ClaimResult both = find({omnimoe_run(), newer}, "latency without expert-centric");
  EXPECT_DOUBLE_EQ(*both.ours, 1.5) << "the newest that has both";
  EXPECT_EQ(both.verdict, ClaimVerdict::kHoldsWithConditions);
  EXPECT_EQ(both.used, Names{"1"});
  EXPECT_DOUBLE_EQ(*both.worst, 0.8) << "the older one is not forgotten";
  EXPECT_EQ(both.worst_verdict, ClaimVerdict::kDoesNotHold);
  EXPECT_NE(both.why.find("Worst: 4.00 ms (token_centric) against 5.00 ms (expert_centric); from 0"),
            std::string::npos)
      << both.why;
}

TEST(Claims, CompareSchedulesOfTwoRunsWhereNoRunHasBoth) {
  RecordedRun slow = run_at("2026-11-21T00:00:00Z");
  add_omnimoe(slow, "token_centric", Stage::kLayer, "time_s", 6e-3);
  RecordedRun fast = run_at("2026-11-22T00:00:00Z");
  add_omnimoe(fast, "expert_centric", Stage::kLayer, "time_s", 5e-3);
  const ClaimResult claim = find({slow, fast}, "latency without expert-centric");
  EXPECT_DOUBLE_EQ(*claim.ours, 1.2);
  EXPECT_EQ(claim.used, (Names{"0", "1"}));
  EXPECT_DOUBLE_EQ(*find({slow, fast, omnimoe_run()}, "latency without expert-centric").ours, 0.8)
      << "one that has both, though it is older";
}

TEST(Claims, KnowTheNewestByItsStart) {
  const auto starts = [](const std::string& started, const std::string& run_id, double time_s) {
    RecordedRun run = run_at(started);
    run.header.run_id = run_id;
    add_omnimoe(run, "staircase", Stage::kLayer, "time_s", time_s);
    return run;
  };
  const auto newest = [](const RecordedRun& a, const RecordedRun& b) {
    const double one = *find({a, b}, "time of an OmniMoE layer").ours;
    EXPECT_EQ(*find({b, a}, "time of an OmniMoE layer").ours, one) << "whatever the order of files";
    return one;
  };
  EXPECT_EQ(newest(starts("2026-11-22T10:00:00Z", "z", 1), starts("2026-11-22T11:00:00Z", "a", 2)), 2);
  EXPECT_EQ(newest(starts("2026-11-22T10:00:00Z", "a", 1), starts("2026-11-22T10:00:00Z", "b", 2)), 2)
      << "of one second the greater run id";
  EXPECT_EQ(newest(starts("", "20261123T000000Z-a", 1), starts("2026-11-22T10:00:00Z", "b", 2)), 1)
      << "without a start, the run id's";
  EXPECT_EQ(newest(starts("yesterday", "c", 1), starts("2020-01-01T00:00:00Z", "b", 2)), 2)
      << "without either the oldest";
  EXPECT_EQ(newest(starts("2026-11-22T10:00:00Z", "a", 1), starts("2026-11-22T10:00:00Z", "a", 2)), 2)
      << "nothing says which is newer: the worse";
}

TEST(Claims, CountMeasuredRowsOfTheirConditionsAlone) {
  const auto counts = [](const auto& change) {
    RecordedRun run = run_at("2026-11-22T00:00:00Z");
    add_omnimoe(run, "staircase", Stage::kLayer, "time_s", 1e-3);
    change(run.rows[0]);
    return is_reached(judge({run})[0].claims[3].verdict);
  };
  EXPECT_TRUE(counts([](ResultRow&) {}));
  EXPECT_TRUE(counts([](ResultRow& row) { row.group_size = 64; }));
  EXPECT_TRUE(counts([](ResultRow& row) { row.shared_size.reset(); })) << "version 1 does not say";
  EXPECT_FALSE(counts([](ResultRow& row) { row.source = Source::kModelled; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.source = Source::kAnalytic; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.status = Status::kFailed; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.value.reset(); }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.value = 0; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.value = -708e-6; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.value = std::numeric_limits<double>::quiet_NaN(); }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.value = std::numeric_limits<double>::infinity(); }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.l2_state = "warm"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.dtype = "fp32"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.group_size = 8; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.tile_tokens = 16; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.workload = "zipf:1"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.activation = "relu"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.gates = "probability"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.grid_rows = row.grid_cols = 330; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.backend = "torch"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.backend = "sim: NVIDIA H100"; }));
  EXPECT_FALSE(counts([](ResultRow& row) { row.ranks = 8; })) << "a line is of one GPU";
  EXPECT_FALSE(counts([](ResultRow& row) { row.rank = 0; }));
}

TEST(Claims, TakeMemoryThatSaysItIsCounted) {
  RecordedRun run = omnimoe_run();
  for (ResultRow& row : run.rows) {
    row.source = row.metric == "workspace_bytes" ? Source::kAnalytic : row.source;
  }
  EXPECT_DOUBLE_EQ(*find({run}, "memory without expert-centric").ours, 0.5);
  std::erase_if(run.rows, [](const ResultRow& row) { return row.metric == "time_s"; });
  EXPECT_EQ(judge({run})[0].claims[7].verdict, ClaimVerdict::kNoRows) << "of layers that ran";
}

TEST(Claims, CompareSystemsOnOneDeviceAlone) {
  RecordedRun peer = run_at("2026-11-21T00:00:00Z", "another GPU");
  add(peer, "peer", "token_centric", Stage::kLayer, "time_s", 21e-3, 1250, 0);
  EXPECT_EQ(find({omnimoe_run(), peer}, "PEER").verdict, ClaimVerdict::kNoRows);
  EXPECT_EQ(find({omnimoe_run(), peer}, "PEER", "another GPU").verdict, ClaimVerdict::kNoRows);
  peer.header.device = kDevice;
  const ClaimResult claim = find({omnimoe_run(), peer}, "PEER");
  EXPECT_DOUBLE_EQ(*claim.ours, 10.5);
  EXPECT_EQ(claim.verdict, ClaimVerdict::kHolds) << "0.96 of the paper's 10.9";
  EXPECT_NE(claim.why.find("21.0 ms (token_centric) against 2.00 ms (staircase); from 0, 1"),
            std::string::npos)
      << claim.why;
  peer.rows[0].seed = 7;
  EXPECT_EQ(find({omnimoe_run(), peer}, "PEER").verdict, ClaimVerdict::kNoRows) << "another seed";
  peer.rows[0].seed = 0;
  peer.rows[0].backend = "cpu";
  EXPECT_EQ(find({omnimoe_run(), peer}, "PEER").verdict, ClaimVerdict::kNoRows) << "another backend";
}

TEST(Claims, MakeATableOfEachDevice) {
  RecordedRun other = run_at("2026-11-21T00:00:00Z", "another GPU");
  add_omnimoe(other, "staircase", Stage::kLayer, "time_s", 1e-3);
  const std::vector<DeviceClaims> devices = judge({other, omnimoe_run()});
  ASSERT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices[0].device, kDevice) << "the one with most verdicts first";
  EXPECT_EQ(devices[1].device, "another GPU");
  EXPECT_DOUBLE_EQ(*devices[0].claims[3].ours, 2e-3);
  EXPECT_DOUBLE_EQ(*devices[1].claims[3].ours, 1e-3);
  EXPECT_EQ(devices[1].claims[4].verdict, ClaimVerdict::kNotOnThisDevice);
  EXPECT_EQ(devices[1].claims[0].verdict, ClaimVerdict::kNoRows) << "on neither";
  for (const std::string& text : {claims_text(devices), claims_markdown(devices)}) {
    EXPECT_LT(text.find(kDevice), text.find("another GPU"));
    EXPECT_NE(text.find("not on this device"), std::string::npos);
  }
}

TEST(Claims, CountSharesByTheNewestRecordingOfALayer) {
  std::vector<RecordedRun> runs = {omnimoe_run(), omnimoe_run()};
  runs[0].header.started_utc = "2026-11-21T00:00:00Z";
  for (ResultRow& row : runs[1].rows) {
    row.value = *row.value * (row.stage == "schedule" ? 2 : 1);
  }
  const ClaimResult scheduling = find(runs, "scheduling, share");
  EXPECT_DOUBLE_EQ(*scheduling.ours, 0.03) << "the older run says 6 %";
  EXPECT_EQ(scheduling.verdict, ClaimVerdict::kHolds);
  EXPECT_DOUBLE_EQ(*scheduling.worst, 0.06);
  EXPECT_EQ(scheduling.worst_verdict, ClaimVerdict::kDoesNotHold);
  EXPECT_EQ(scheduling.used, Names{"0"});
  EXPECT_EQ(scheduling.passed_over, Names{"1"});
  EXPECT_NE(scheduling.why.find("an older recording of 1 is not"), std::string::npos) << scheduling.why;
}

TEST(Claims, NameRunsByTheirFiles) {
  const auto name_of = [](const std::vector<RecordedFile>& files) {
    std::vector<Recording> recordings;
    for (const RecordedFile& file : files) {
      const auto more = recordings_of(file);
      recordings.insert(recordings.end(), more.begin(), more.end());
    }
    Names names;
    const std::vector<DeviceClaims> devices = judge_claims(recordings);
    for (const NamedRecording& recording : devices[0].recordings) {
      names.push_back(recording.name + " = " + recording.file + " " + recording.started_utc);
    }
    return names;
  };
  const RecordedRun run = omnimoe_run();
  EXPECT_EQ(name_of({{"a/rows.jsonl.gz", {run}}}), Names{"rows = rows.jsonl.gz 2026-11-20T00:00:00Z"});
  EXPECT_EQ(name_of({{"a/rows.jsonl", {run, run}}}),
            (Names{"rows:1 = rows.jsonl 2026-11-20T00:00:00Z", "rows:2 = rows.jsonl 2026-11-20T00:00:00Z"}));
  EXPECT_EQ(
      name_of({{"a/rows.jsonl", {run}}, {"b/rows.jsonl", {run}}}),
      (Names{"a/rows = a/rows.jsonl 2026-11-20T00:00:00Z", "b/rows = b/rows.jsonl 2026-11-20T00:00:00Z"}));
  EXPECT_EQ(joined_names({"b:10", "b:9", "a", "c:d"}), "a, b:9,10, c:d");
}

/// A name of a rows file is text, wherever it comes from.
TEST(Claims, ShowNamesAndObeyNone) {
  RecordedRun run = run_at("2026-11-20T00:00:00Z", "GPU \x1b[31m|\nx");
  add_omnimoe(run, "staircase\x1b]0;title\a|\n", Stage::kLayer, "time_s", 1e-3);
  run.header.run_id = "id\x1b|\n";
  run.header.git_revision = "\x1b|\nabc";
  const std::string text = claims_text(judge({run}));
  EXPECT_EQ(text.find_first_of("\x1b\a"), std::string::npos);
  EXPECT_NE(text.find("staircase"), std::string::npos);
}

TEST(Claims, FitATerminal) {
  RecordedRun older = omnimoe_run();
  older.header.started_utc = "2026-11-19T00:00:00Z";
  for (ResultRow& row : older.rows) {
    row.value = *row.value * 1.5;
  }
  // Below the table are sentences, which are fitted where they are printed.
  const std::string text = claims_text(judge({omnimoe_run(), older}));
  const std::size_t begin = text.find("\n\n") + 2;
  std::istringstream table(text.substr(begin, text.find("\n\n", begin) + 1 - begin));
  std::int64_t lines = 0;
  for (std::string line; std::getline(table, line); ++lines) {
    EXPECT_LE(line.size(), 80U) << line;
  }
  EXPECT_GT(lines, 20);
  std::istringstream rules{std::string(claim_rules())};
  for (std::string line; std::getline(rules, line);) {
    EXPECT_LE(line.size(), 80U) << line;
  }
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
  RecordedRun full = run_at("2026-11-20T00:00:00Z");
  add(full, "omnimoe", "expert_centric", Stage::kLayer, "time_s", 0.5, 512, 1024);
  add(full, "omnimoe", "expert_centric", Stage::kRouterSelect, "time_s", 0.48, 512, 1024);
  for (ResultRow& row : full.rows) {
    row.grid_rows = 1;
    row.grid_cols = 102400;
  }
  RecordedRun torch = run_at("2026-11-20T00:00:00Z");
  add(torch, "omnimoe", "topk_all_scores", Stage::kRouterSelect, "time_s", 0.01, 512, 1024);
  torch.rows[0].backend = "torch";
  torch.rows[0].seed = 5;  // its own numbers
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
