// The real program: `simulate --cluster`.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/results/result.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::read_text;
using test::run_moescope;
using test::TemporaryDirectory;

std::vector<std::string> cluster(std::vector<std::string> more) {
  std::vector<std::string> words = {"simulate", "--grid", "16x16", "-d", "64",         "-K",
                                    "12",       "-L",     "96",    "-q", "--workload", "zipf:1"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(Cluster, ScalesOverGpusAndSaysWhatIsExtrapolated) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      cluster({"--cluster", "h200-8x8", "--ranks", "1,4,16", "--chunks", "1,2", "--output", "out"}),
      directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"strong scaling on 64 H200 in 8 nodes", "Everything here is modelled",
                           "extrapolated: exchanges of more than 2 GPUs were not measured",
                           "extrapolated: assumed: message_s, nic_bytes_per_s, nic_latency_s"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << outcome.out;
  }
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 120U) << line;
  }
  const test::JsonSchema schema(
      nlohmann::json::parse(read_text(test::source_path("core/results/result.schema.json"))));
  std::istringstream rows(read_text(directory.path() / "out/rows.jsonl"));
  for (std::string line; std::getline(rows, line);) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "") << line;
  }
  std::set<std::string> seen;
  const auto runs = read_rows(directory.path() / "out/rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    EXPECT_EQ(row.source, Source::kModelled);
    if (!row.rank && row.stage == "layer") {
      seen.insert(std::to_string(row.ranks) + " " + row.metric);
    }
  }
  for (const char* value : {"1 time_s", "4 time_s", "16 time_s", "16 chunks2_time_s", "4 exposed_s",
                            "16 strong_scaling_efficiency"}) {
    EXPECT_TRUE(seen.contains(value)) << value;
  }
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out/scaling.gp"));
}

TEST(Cluster, WeakScalingGivesEveryGpuAsManyTokens) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      cluster({"--cluster", "h200-x2", "--scaling", "weak", "--exchange", "dispatch", "--format", "json"}),
      directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = nlohmann::json::parse(outcome.out).at("tables").at(0).at("rows");
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows.at(0).at("tokens"), 96);
  EXPECT_EQ(rows.at(1).at("tokens"), 192);
  EXPECT_EQ(rows.at(1).at("measured"), "exchanges");
  EXPECT_NEAR(rows.at(1).at("efficiency").get<double>(),
              rows.at(0).at("layer").get<double>() / rows.at(1).at("layer").get<double>(), 1e-9);
}

TEST(Cluster, OneNumberOfGpusShowsTheStagesOfItsRanks) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(cluster({"--cluster", "h200-node", "--ranks", "4", "--no-overlap"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("schedule and experts"), std::string::npos) << outcome.out;
}

TEST(Cluster, ExportsGoalAndChakraOfOneLayer) {
  const TemporaryDirectory directory;
  const auto words = cluster({"--cluster", "h200-node", "--ranks", "4", "--exchange", "dispatch", "--goal",
                              "layer.goal", "--chakra", "traces"});
  const Outcome outcome = run_moescope(words, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("goal:   layer.goal"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("chakra: traces/moescope.RANK.json"), std::string::npos) << outcome.out;
  EXPECT_TRUE(read_text(directory.path() / "layer.goal").starts_with("num_ranks 4\n"));
  for (int rank = 0; rank < 4; ++rank) {
    const auto trace = nlohmann::json::parse(
        read_text(directory.path() / ("traces/moescope." + std::to_string(rank) + ".json")));
    EXPECT_FALSE(trace.at("workload_graph").empty());
  }
  const Outcome again = run_moescope(words, directory);
  EXPECT_EQ(again.code, 4) << "traces are somebody's data";
  const Outcome several = run_moescope(cluster({"--cluster", "h200-x2", "--goal", "two.goal"}), directory);
  EXPECT_EQ(several.code, 3);
  EXPECT_NE(several.err.find("goal = two.goal: is of one layer"), std::string::npos) << several.err;
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "two.goal"));
  const Outcome alone = run_moescope({"simulate", "--preset", "tiny", "--chakra", "x"}, directory);
  EXPECT_EQ(alone.code, 3) << alone.err;
}

TEST(Cluster, RefusesByNameBeforeAnythingIsSimulated) {
  const TemporaryDirectory directory;
  const auto refused = [&](std::vector<std::string> more, const std::string& text) {
    more.insert(more.end(), {"--output", "out"});
    const Outcome outcome = run_moescope(cluster(std::move(more)), directory);
    EXPECT_EQ(outcome.code, 3) << outcome.err;
    EXPECT_NE(outcome.err.find(text), std::string::npos) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(directory.path() / "out"));
  };
  refused({"--cluster", "h201"}, "cluster = h201: must be a file of a cluster, or one of ");
  refused({"--cluster", "h200-node", "--ranks", "9"}, "ranks = 9: ");
  refused({"--cluster", "h200-8x8", "--ranks", "12"}, "ranks = 12: must fill its nodes");
  refused({"--cluster", "h200-x2", "--ranks", "two"}, "ranks = two: ");
  refused({"--cluster", "h200-x2", "--chunks", "2", "--no-overlap"}, "chunks = 2: ");
  refused({"--cluster", "h200-x2", "--scaling", "tall"}, "scaling = tall: must be strong or weak");
  refused({"--cluster", "h200-x2", "--exchange", "shout"}, "exchange = shout");
  refused({"--cluster", "h200-x2", "--schedule", "dense_masked"}, "schedule = dense_masked: ");
  refused({"--cluster", "h200-x2", "--device", "h200-sxm,b200"}, "device = b200: ");
  refused({"--ranks", "2"}, "ranks = 2: is for several GPUs: --cluster");
  refused({"--chunks", "2"}, "chunks = 2: is for several GPUs: --cluster");
}

TEST(Volume, ShowsEveryAxisAndThePapersClaim) {
  const TemporaryDirectory directory;
  const std::vector<std::string> small = {"place", "--volume", "--grid", "32x32", "-d",
                                          "64",    "-K",       "8",      "-L",    "32"};
  std::vector<std::string> words = small;
  words.insert(words.end(), {"--cluster", "h200-node", "--output", "out"});
  const Outcome outcome = run_moescope(words, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part :
       {"N from 16 to 16384 (L 32, K 8, P 8): gather constant", "P from 2 to 8", "0.521 ms"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << outcome.out;
  }
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out/volume.gp"));
  const auto refused = [&](const std::vector<std::string>& more, const std::string& text) {
    std::vector<std::string> asked = small;
    asked.insert(asked.end(), more.begin(), more.end());
    const Outcome refusal = run_moescope(asked, directory);
    EXPECT_EQ(refusal.code, 3) << refusal.err;
    EXPECT_NE(refusal.err.find(text), std::string::npos) << refusal.err;
  };
  refused({"--nodes", "2"}, "nodes = 2: come from --cluster");
  refused({"--system", "gshard"}, "system = gshard");
  refused({"--ranks", "16", "--cluster", "h200-node"}, "ranks = 16: ");
  refused({"--placement", "linear", "--placement", "strips"}, "placement = strips: --volume is of one");
}

}  // namespace
}  // namespace moescope
