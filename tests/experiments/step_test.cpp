// run, compare and sweep of a layer's backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

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
  refused(with({"profile"}, {"--direction", "backward"}), "counters are of the forward");
  refused(with({"compare"}, {"--direction", "backward", "--tuned-on", "uniform"}), "is for the forward");
}

}  // namespace
}  // namespace moescope
