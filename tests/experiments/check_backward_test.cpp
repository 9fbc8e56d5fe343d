// The real program: check --direction backward, its rows and its refusals.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;

const std::vector<std::string> kSmall = {"check", "--direction", "backward", "-L", "12", "-d",
                                         "16",    "--grid",      "6x5",      "-K", "4"};

std::vector<std::string> small_and(std::vector<std::string> more) {
  std::vector<std::string> all = kSmall;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(CheckBackward, HoldsEveryGradientAgainstTheOracle) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      small_and({"--shared-size", "8", "--gates", "probability", "--output", "out", "--verbose"}), directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  for (const char* word :
       {"dW", "dV", "dWr", "down matrix", "minimal saved", "scores saved", "auxiliary losses: balance loss",
        "batch norm", "second run against the first", "cpu experts_wgrad (staircase)"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word;
  }
  std::set<std::string> stages;
  for (const RecordedRun& run : read_rows(directory.path() / "out" / "rows.jsonl")) {
    for (const ResultRow& row : run.rows) {
      EXPECT_EQ(row.direction, "backward");
      stages.insert(row.stage);
    }
  }
  for (const char* stage : {"experts_dgrad", "experts_wgrad", "router_select_backward",
                            "router_project_backward", "shared_mlp_backward", "layer"}) {
    EXPECT_TRUE(stages.contains(stage)) << stage;
  }
}

TEST(CheckBackward, ChecksOneSaveModeWhereOneIsNamed) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small_and({"--save", "scores", "--schedule", "staircase", "--verbose"}), directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("scores saved"), std::string::npos);
  EXPECT_EQ(outcome.out.find("minimal saved"), std::string::npos);
}

TEST(CheckBackward, RefusesWhatItCannotDo) {
  const TemporaryDirectory directory;
  const auto refusal = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run_moescope(arguments, directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.out;
    return outcome.err;
  };
  EXPECT_NE(refusal({"check", "--direction", "sideways"}).find("direction = sideways"), std::string::npos);
  EXPECT_NE(refusal(small_and({"--save", "all"})).find("save = all"), std::string::npos);
  EXPECT_NE(refusal({"check", "--save", "minimal"}).find("save = minimal"), std::string::npos);
  EXPECT_NE(refusal({"check", "--direction", "backward", "--system", "gshard"}).find("direction = backward"),
            std::string::npos);
}

TEST(InspectBackward, SaysWhatAStepTakesBeforeAnythingRuns) {
  const TemporaryDirectory directory;
  const std::vector<std::string> shape = {"inspect", "-L", "12", "-d", "16", "--grid", "6x5", "-K", "4"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = shape;
    all.insert(all.end(), more.begin(), more.end());
    return run_moescope(all, directory);
  };
  const Outcome outcome = with({"--direction", "backward", "--output", "out"});
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  for (const char* word :
       {"memory of a training step", "strips", "mirror", "minimal", "log_probs", "scores", "dense_masked"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word;
  }
  double saved = -1;
  for (const RecordedRun& run : read_rows(directory.path() / "out" / "rows.jsonl")) {
    for (const ResultRow& row : run.rows) {
      if (row.metric == "minimal_saved_bytes" && row.schedule == "staircase") {
        EXPECT_EQ(row.direction, "backward");
        saved = row.value.value_or(-1);
      }
    }
  }
  EXPECT_EQ(saved, 0);  // the mirror selects again from nothing
  EXPECT_EQ(with({}).out.find("memory of a training step"), std::string::npos);
  EXPECT_NE(with({"--save", "scores"}).err.find("save = scores"), std::string::npos);
}

}  // namespace
}  // namespace moescope
