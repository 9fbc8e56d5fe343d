// The real program: sweeps over baseline systems beside omnimoe.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "core/base/error.hpp"
#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "core/systems/system.hpp"
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

constexpr const char* kAllSystems = R"({
  "name": "systems",
  "systems": ["dense_mlp", "gshard", "deepseekmoe", "pkm", "peer", "omnimoe"],
  "presets": ["small"],
  "schedules": ["token_centric", "staircase"],
  "axes": {"num_tokens": 8, "hidden_size": 32, "l2": "warm"},
  "min_samples": 2,
  "max_time_s": 0.001
})";

/// Rows of the layer: what a row of each system has to say.
std::map<std::string, const ResultRow*> layer_rows(const RecordedRun& run, const std::string& system) {
  std::map<std::string, const ResultRow*> rows;
  for (const ResultRow& row : run.rows) {
    if (row.system == system && row.stage == "layer") {
      rows[row.metric] = &row;
    }
  }
  return rows;
}

std::vector<std::string> arguments_of(const std::string& repro) {
  std::istringstream text(repro);
  std::vector<std::string> words;
  for (std::string word; text >> word;) {
    words.push_back(word);
  }
  words.erase(words.begin());  // the program
  words.insert(words.end(), {"--quiet", "--output", "again"});
  return words;
}

TEST(SweepOfSystems, GivesEachItsTimeMemoryErrorAndCommand) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "systems.json", kAllSystems);
  const Outcome outcome = run_moescope({"sweep", "systems.json", "-q", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.at(0).points.size(), systems().size());
  for (const RecordedPoint& point : runs[0].points) {
    EXPECT_EQ(point.status, Status::kOk) << point.reason;
  }
  for (const System system : systems()) {
    const std::string name(to_string(system));
    auto rows = layer_rows(runs[0], name);
    for (const char* metric : {"time_s", "peak_bytes", "weight_bytes", "relative_error", "hbm_read_bytes"}) {
      ASSERT_TRUE(rows.contains(metric)) << name << ' ' << metric;
      EXPECT_TRUE(rows[metric]->value.value_or(0) > 0) << name << ' ' << metric;
    }
    EXPECT_LT(*rows["relative_error"]->value, 4e-3) << name;
    const std::string& repro = rows["time_s"]->repro;
    EXPECT_EQ(repro.find("--system " + name) != std::string::npos, system != System::kOmniMoe) << repro;
    EXPECT_EQ(repro.find("--schedule") != std::string::npos, system == System::kOmniMoe) << repro;
  }
}

TEST(SweepOfSystems, TheCommandOfABaselinesRowMeasuresTheSameLayer) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "systems.json", kAllSystems);
  // The fifth of six points: peer.
  ASSERT_EQ(
      run_moescope({"sweep", "systems.json", "-q", "--shard", "5/6", "--output", "out"}, directory).code, 0);
  const auto swept = read_rows(directory.path() / "out" / "rows.jsonl");
  auto expected = layer_rows(swept.at(0), "peer");
  ASSERT_TRUE(expected.contains("relative_error"));
  const Outcome outcome = run_moescope(arguments_of(expected["relative_error"]->repro), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "again" / "rows.jsonl");
  auto actual = layer_rows(runs.at(0), "peer");
  for (const char* metric : {"relative_error", "weight_bytes", "hbm_read_bytes"}) {
    ASSERT_TRUE(actual.contains(metric)) << metric;
    EXPECT_EQ(actual[metric]->value, expected[metric]->value) << metric;
    EXPECT_TRUE(same_point(*actual[metric], *expected[metric], kResultSchemaVersion)) << metric;
  }
}

TEST(SweepOfSystems, VariesTheExtentsThatOnlyBaselinesHave) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "ffn.json", R"({
    "name": "ffn", "systems": ["gshard", "deepseekmoe"], "presets": ["small"],
    "axes": {"num_tokens": 8, "hidden_size": 32, "l2": "warm", "expert_size": [16, 24]},
    "min_samples": 2, "max_time_s": 0.001})");
  write_text(directory.path() / "keys.json", R"({
    "name": "keys", "systems": ["peer"], "presets": ["small"], "zip": [["heads", "key_size"]],
    "axes": {"num_tokens": 8, "hidden_size": 32, "l2": "warm", "top_k": 20, "heads": [4, 5], "key_size": [8, 16]},
    "min_samples": 2, "max_time_s": 0.001})");
  std::map<std::string, std::multiset<std::string>>
      found;  // of a metric: the values its rows say were asked for
  for (const std::string file : {"ffn", "keys"}) {
    const Outcome outcome = run_moescope({"sweep", file + ".json", "-q", "--output", file}, directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto runs = read_rows(directory.path() / file / "rows.jsonl");
    for (const ResultRow& row : runs.at(0).rows) {
      if (row.metric != "relative_error") {
        continue;
      }
      const std::vector<std::tuple<const char*, const char*, std::optional<std::int64_t>>> extents = {
          {"expert_size", "--expert-size", row.expert_size},
          {"heads", "--heads", row.heads},
          {"key_size", "--key-size", row.key_size}};
      for (const auto& [name, option, extent] : extents) {
        if (extent) {
          const auto value = std::to_string(*extent);
          found[name].insert(value);
          EXPECT_NE((row.repro + ' ').find(' ' + std::string(option) + ' ' + value + ' '), std::string::npos)
              << row.repro;
        }
      }
    }
  }
  EXPECT_EQ(found["expert_size"], (std::multiset<std::string>{"16", "16", "24", "24"}));
  EXPECT_EQ(found["heads"], (std::multiset<std::string>{"4", "5"}));
  EXPECT_EQ(found["key_size"], (std::multiset<std::string>{"16", "8"}));
}

TEST(SweepOfSystems, RecordsWhatABaselineCannotBeWithTheReason) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "systems.json", R"({
    "name": "holes", "systems": ["gshard", "peer"], "presets": ["small"], "workloads": ["gaussian:1", "hot:1,40"],
    "axes": {"num_tokens": 8, "hidden_size": 32, "l2": "warm", "top_k": [3, 20]},
    "min_samples": 2, "max_time_s": 0.001})");
  const Outcome outcome = run_moescope({"sweep", "systems.json", "-q", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.at(0).points.size(), 8U);
  std::multiset<std::string> reasons;
  for (const RecordedPoint& point : runs[0].points) {
    reasons.insert(point.reason);
  }
  // peer has 10 heads, and gshard 32 experts, of which 40 cannot be hot.
  EXPECT_EQ(reasons.count("top_k = 3: must be a multiple of heads = 10"), 2U);
  EXPECT_EQ(reasons.count("workload = hot:1,40: COUNT = 40 must not exceed num_experts = 32"), 2U);
  EXPECT_EQ(reasons.count(""), 4U);
  for (const ResultRow& row : runs[0].rows) {
    if (row.status == Status::kFailed) {
      EXPECT_TRUE(row.system == "gshard" || row.system == "peer");
      EXPECT_EQ(row.schedule, row.system == "peer" ? "token_centric" : "expert_centric");
    }
  }
}

TEST(ExperimentFiles, SayHowLongTheyTake) {
  for (const auto& entry :
       fs::directory_iterator(std::filesystem::path(test::source_dir()) / "experiments" / "configs")) {
    const Experiment experiment = read_experiment(entry.path());
    EXPECT_FALSE(experiment.minutes.empty()) << entry.path();
    EXPECT_TRUE(!experiment.name.ends_with("-small") || experiment.minutes.contains("cpu")) << entry.path();
  }
}

TEST(ExperimentFiles, TableASmallHasEverySystemAndRunsOnACpu) {
  const auto file =
      std::filesystem::path(test::source_dir()) / "experiments" / "configs" / "table-a-small.json";
  std::set<std::string> found;
  for (const ExperimentPoint& point : read_experiment(file).points) {
    found.insert(point.system);
  }
  EXPECT_EQ(found.size(), 5U) << "those of the paper's Table A";
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"sweep", file.string(), "-q", "--shard", "1/9", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const RecordedPoint& point : runs.at(0).points) {
    EXPECT_EQ(point.status, Status::kOk) << point.reason;
  }
}

}  // namespace
}  // namespace moescope
