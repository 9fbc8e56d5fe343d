// run, compare and sweep of a layer's backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;

const std::vector<std::string> kLayer = {"-L",      "24",   "--grid",        "8x6", "-d",         "16",
                                         "-K",      "4",    "--shared-size", "8",   "--workload", "zipf:1",
                                         "--dtype", "fp32", "--min-samples", "2",   "--max-time", "0.01",
                                         "-q"};

std::vector<std::string> with(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  words.insert(words.end(), kLayer.begin(), kLayer.end());
  return words;
}

std::vector<ResultRow> rows_in(const TemporaryDirectory& directory, const std::string& folder) {
  std::vector<ResultRow> rows;
  for (const RecordedRun& run : read_rows(directory.path() / folder / "rows.jsonl")) {
    rows.insert(rows.end(), run.rows.begin(), run.rows.end());
  }
  return rows;
}

TEST(Step, RunTimesAndJudgesEveryStageOfTheBackward) {
  const TemporaryDirectory directory;
  const Outcome out = run_moescope(with({"run"}, {"--direction", "backward", "--save", "minimal",
                                                  "--schedule", "staircase", "--output", "r"}),
                                   directory);
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.out.find("backward, minimal saved, staircase on cpu"), std::string::npos) << out.out;
  EXPECT_NE(out.out.find("nearest to its tolerance, "), std::string::npos) << out.out;
  std::set<std::string> timed;
  for (const ResultRow& row : rows_in(directory, "r")) {
    EXPECT_EQ(row.direction, "backward");
    EXPECT_EQ(row.save, "minimal");
    if (row.metric == "time_s") {
      timed.insert(row.stage);
    }
    if (row.metric == "relative_error") {
      EXPECT_LE(row.value.value(), 1e-5) << row.reason;
      EXPECT_FALSE(row.reason.empty());
    }
    if (row.metric == "peak_bytes") {
      // W, V and their gradients, and X, dY and dX at least.
      EXPECT_GT(row.value.value(), 4.0 * (4 * 48 * 16 + 3 * 24 * 16));
    }
  }
  EXPECT_EQ(timed, (std::set<std::string>{"router_project", "router_select", "schedule",
                                          "shared_mlp_backward", "experts_dgrad", "experts_wgrad",
                                          "router_select_backward", "router_project_backward", "layer"}));
}

TEST(Step, CompareHoldsSchedulesOfTheBackwardSideBySide) {
  const TemporaryDirectory directory;
  const Outcome out =
      run_moescope(with({"compare"}, {"--direction", "backward", "--schedule", "token_centric", "--schedule",
                                      "dense_masked", "--output", "c"}),
                   directory);
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.out.find("backward, log_probs saved"), std::string::npos) << out.out;
  std::set<std::string> schedules;
  for (const ResultRow& row : rows_in(directory, "c")) {
    EXPECT_EQ(row.direction, "backward");
    EXPECT_NE(row.metric, "floor_bytes") << "the forward's";
    if (row.metric == "time_s" && row.stage == "layer") {
      schedules.insert(row.schedule);
    }
  }
  EXPECT_EQ(schedules, (std::set<std::string>{"token_centric", "dense_masked"}));
}

TEST(Step, EndsWithTheOptimizerAndLeavesRowsOut) {
  const TemporaryDirectory directory;
  const Outcome out = run_moescope(with({"run"}, {"--direction", "backward", "--gradients", "touched",
                                                  "--optimizer", "touched", "--output", "o"}),
                                   directory);
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.out.find("gradients touched, optimizer touched"), std::string::npos) << out.out;
  std::set<std::string> timed;
  for (const ResultRow& row : rows_in(directory, "o")) {
    if (row.schedule == "none") continue;
    EXPECT_EQ(row.gradients, "touched");
    EXPECT_EQ(row.optimizer, "touched");
    if (row.metric == "time_s") timed.insert(row.stage);
  }
  EXPECT_TRUE(timed.contains("experts_optimizer"));
  const Outcome added = run_moescope(
      with({"run"}, {"--direction", "backward", "--gradients", "added", "--output", "a"}), directory);
  ASSERT_EQ(added.code, 0) << added.err;
  EXPECT_EQ(added.out.find("no error"), std::string::npos) << added.out;
}

TEST(Step, RefusesAnOptimizerThatHasNoRows) {
  const TemporaryDirectory directory;
  const auto refusal = [&](std::vector<std::string> options) {
    const Outcome out = run_moescope(with({"run"}, std::move(options)), directory);
    EXPECT_EQ(out.code, 3) << out.out;
    return out.err;
  };
  EXPECT_NE(refusal({"--optimizer", "touched"}).find("--direction backward"), std::string::npos);
  EXPECT_NE(refusal({"--gradients", "added"}).find("--direction backward"), std::string::npos);
  EXPECT_NE(refusal({"--direction", "backward", "--gradients", "touched", "--optimizer", "dense"})
                .find("must be stored"),
            std::string::npos);
}

TEST(Step, SweepsTakeDirectionAndWhatIsSavedAsAxes) {
  const TemporaryDirectory directory;
  test::write_text(directory.path() / "e.json", R"({"name": "steps", "schedules": ["staircase"],
    "axes": {"num_tokens": 8, "hidden_size": 16, "grid": "8x6", "top_k": 4, "shared_size": 0,
             "direction": ["forward", "backward", "backward"], "save": ["", "minimal", "scores"]},
    "zip": [["direction", "save"]], "min_samples": 2, "max_time_s": 0.01})");
  const Outcome refused = run_moescope({"sweep", "e.json", "-q"}, directory);
  EXPECT_EQ(refused.code, 4);
  EXPECT_NE(refused.err.find("axes.save"), std::string::npos) << refused.err;
  test::write_text(directory.path() / "f.json", R"({"name": "steps", "schedules": ["staircase"],
    "axes": {"num_tokens": 8, "hidden_size": 16, "grid": "8x6", "top_k": 4, "shared_size": 0,
             "direction": "backward", "save": ["minimal", "scores"]}, "min_samples": 2, "max_time_s": 0.01})");
  const Outcome out = run_moescope({"sweep", "f.json", "-q", "--output", "s"}, directory);
  ASSERT_EQ(out.code, 0) << out.err << out.out;
  std::set<std::string> saves;
  for (const ResultRow& row : rows_in(directory, "s")) {
    EXPECT_NE(row.status, Status::kFailed) << row.reason;
    EXPECT_NE(row.repro.find("--direction backward"), std::string::npos) << row.repro;
    saves.insert(row.save);
  }
  EXPECT_EQ(saves, (std::set<std::string>{"minimal", "scores"}));
}

/// What `profile` writes of the backward is what a roofline, a report and the simulator's validation read.
TEST(Step, ProfileHasTheStagesOfTheBackward) {
  const TemporaryDirectory directory;
  const Outcome out = run_moescope(
      with({"profile"}, {"--direction", "backward", "--save", "minimal", "--source", "none", "--schedule",
                         "staircase", "--schedule", "dense_masked", "--output", "p"}),
      directory);
  ASSERT_EQ(out.code, 0) << out.err;
  std::set<std::string> timed;
  bool unavailable = false;
  for (const ResultRow& row : rows_in(directory, "p")) {
    if (row.stage == "device") {
      continue;  // ceilings
    }
    EXPECT_EQ(row.direction, "backward");
    EXPECT_EQ(row.save, "minimal");
    if (row.metric == "time_s" && row.schedule == "staircase") {
      timed.insert(row.stage);
    }
    unavailable = unavailable || (row.metric == "counters" && row.status == Status::kUnavailable);
  }
  EXPECT_EQ(timed, (std::set<std::string>{"router_project", "router_select", "schedule",
                                          "shared_mlp_backward", "experts_dgrad", "experts_wgrad",
                                          "router_select_backward", "router_project_backward", "layer"}));
  EXPECT_TRUE(unavailable);
  const std::string trace = test::read_text(directory.path() / "p" / "trace.json");
  EXPECT_NE(trace.find("experts_wgrad"), std::string::npos);
  const Outcome roofline = run_moescope({"roofline", "p/rows.jsonl"}, directory);
  EXPECT_EQ(roofline.code, 0) << roofline.err;
  EXPECT_NE(roofline.out.find("router_select_backward"), std::string::npos) << roofline.out;
}

const std::vector<std::string> kModelledLayer = {"-L",     "64", "--grid",     "24x20",         "-d",
                                                 "128",    "-K", "12",         "--shared-size", "32",
                                                 "--seed", "3",  "--workload", "zipf:1"};

TEST(Step, SimulateHasTheStagesOfTheBackward) {
  const TemporaryDirectory directory;
  std::vector<std::string> words = {"simulate", "--direction", "backward", "--save",   "scores",
                                    "--device", "h200-sxm",    "-q",       "--output", "m"};
  words.insert(words.end(), kModelledLayer.begin(), kModelledLayer.end());
  const Outcome out = run_moescope(words, directory);
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.out.find("backward, scores saved"), std::string::npos) << out.out;
  std::set<std::string> stages;
  std::set<std::string> schedules;
  for (const ResultRow& row : rows_in(directory, "m")) {
    EXPECT_EQ(row.direction, "backward");
    EXPECT_EQ(row.save, "scores");
    if (row.metric == "time_s") {
      EXPECT_GT(row.value.value(), 0);
      stages.insert(row.stage);
      schedules.insert(row.schedule);
    }
  }
  EXPECT_EQ(stages, (std::set<std::string>{"shared_mlp_backward", "experts_dgrad", "experts_wgrad",
                                           "router_select_backward", "router_project_backward", "layer"}));
  EXPECT_EQ(schedules,
            (std::set<std::string>{"token_centric", "expert_centric", "staircase", "dense_masked"}));
}

/// A sweep by the model has the backward, and its points say how to simulate them again.
TEST(Step, SweepsByTheModelHaveTheBackward) {
  const TemporaryDirectory directory;
  test::write_text(directory.path() / "e.json", R"({"name": "steps", "schedules": ["token_centric"],
    "axes": {"num_tokens": 64, "hidden_size": 128, "grid": "24x20", "top_k": 12, "shared_size": 0,
             "direction": "backward", "save": ["minimal", "scores"]}})");
  const Outcome out = run_moescope(
      {"sweep", "e.json", "--backend", "model", "--device", "h200-sxm", "-q", "--output", "s"}, directory);
  ASSERT_EQ(out.code, 0) << out.err << out.out;
  std::map<std::string, std::set<std::string>> stages;
  for (const ResultRow& row : rows_in(directory, "s")) {
    EXPECT_NE(row.status, Status::kFailed) << row.reason;
    EXPECT_EQ(row.direction, "backward");
    EXPECT_NE(row.repro.find("moescope simulate"), std::string::npos) << row.repro;
    EXPECT_NE(row.repro.find("--direction backward --save " + row.save), std::string::npos) << row.repro;
    if (row.metric == "time_s") {
      stages[row.save].insert(row.stage);
    }
  }
  EXPECT_TRUE(stages["minimal"].contains("router_select"));
  EXPECT_FALSE(stages["scores"].contains("router_select"));
}

/// Rows of a backward are held beside a backward's model: modelled ones, said to be measured, come out even.
TEST(Step, ValidateTakesRowsOfTheBackward) {
  const TemporaryDirectory directory;
  for (const std::string save : {"minimal", "scores"}) {
    std::vector<std::string> words = {"simulate", "--direction", "backward", "--save",   save,
                                      "--device", "h200-sxm",    "-q",       "--output", save};
    words.insert(words.end(), kModelledLayer.begin(), kModelledLayer.end());
    ASSERT_EQ(run_moescope(words, directory).code, 0);
    std::string text = test::read_text(directory.path() / save / "rows.jsonl");
    for (const auto& [from, to] :
         {std::pair<std::string, std::string>{"\"sim: NVIDIA H200 SXM 141GB\"", "\"cuda\""},
          {"\"modelled\"", "\"measured\""}}) {
      std::size_t found = 0;
      for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
        ++found;
      }
      ASSERT_GT(found, 0U) << from;
    }
    test::write_text(directory.path() / (save + ".jsonl"), text);
  }
  const Outcome out = run_moescope(
      {"validate", "minimal.jsonl", "scores.jsonl", "--device", "h200-sxm", "-q", "--output", "v"},
      directory);
  ASSERT_EQ(out.code, 0) << out.err;
  EXPECT_NE(out.out.find("8 points"), std::string::npos) << out.out;
  std::istringstream csv(test::read_text(directory.path() / "v" / "predictions.csv"));
  std::string line;
  std::getline(csv, line);
  std::set<std::string> schedules;
  while (std::getline(csv, line)) {
    std::vector<std::string> fields;  // the workload is quoted, and has no comma here; a schedule is quoted
    std::istringstream words(line);
    for (std::string field; std::getline(words, field, ',');) {
      fields.push_back(field);
    }
    const std::size_t n = fields.size();
    ASSERT_GE(n, 9U) << line;
    EXPECT_NEAR(std::stod(fields[n - 3]), std::stod(fields[n - 2]), 1e-5 * std::stod(fields[n - 2])) << line;
    schedules.insert(fields[3]);
  }
  EXPECT_TRUE(schedules.contains("token_centric backward scores")) << *schedules.begin();
  EXPECT_TRUE(schedules.contains("staircase backward minimal"));
}

TEST(Step, SaysWhatHasTheForwardAlone) {
  const TemporaryDirectory directory;
  const auto refused = [&](const std::vector<std::string>& words, const std::string& text) {
    const Outcome out = run_moescope(words, directory);
    EXPECT_EQ(out.code, 3) << words.front();
    EXPECT_NE(out.err.find(text), std::string::npos) << out.err;
  };
  refused(with({"run"}, {"--save", "scores"}), "scores");
  refused(with({"run"}, {"--direction", "sideways"}), "must be forward or backward");
  refused({"run", "--system", "peer", "--direction", "backward", "-L", "4"},
          "their backward is an oracle alone");
  refused({"compare", "--system", "omnimoe", "--system", "peer", "--direction", "backward"},
          "their backward is an oracle alone");
  refused({"profile", "--system", "peer", "--direction", "backward", "-L", "4"},
          "their backward is an oracle alone");
  refused({"simulate", "--system", "peer", "--direction", "backward", "-L", "4"},
          "their backward is an oracle alone");
  refused({"simulate", "--cluster", "h200-node", "--direction", "backward"}, "has the forward alone");
  refused({"simulate", "--save", "scores"}, "scores");
  refused(with({"compare"}, {"--direction", "backward", "--tuned-on", "uniform"}), "is for the forward");
}

}  // namespace
}  // namespace moescope
