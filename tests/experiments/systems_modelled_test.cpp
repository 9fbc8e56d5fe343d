// The real program: simulate, sweep --backend model, validate and profile of the baseline systems.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "core/systems/system.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

std::vector<std::string> with_devices(std::vector<std::string> arguments) {
  for (const char* word : {"--device", "--max-accesses", "50000", "-q"}) {
    arguments.emplace_back(word);
    if (arguments.back() == "--device") {
      arguments.push_back(test::source_path("data/devices/h100-sxm"));
    }
  }
  return arguments;
}

/// Modelled values of the layer, by schedule and metric.
std::map<std::string, std::map<std::string, double>> layers_of(const std::filesystem::path& folder) {
  std::map<std::string, std::map<std::string, double>> layers;
  const auto runs = read_rows(folder / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.stage == "layer" && row.value) {
      EXPECT_EQ(row.source, Source::kModelled) << row.metric;
      layers[row.schedule][row.metric] = *row.value;
    }
  }
  return layers;
}

TEST(SystemsModelled, EveryBaselineIsSimulated) {
  const std::map<std::string, std::set<std::string>> schedules = {
      {"dense_mlp", {"none"}},
      {"gshard", {"expert_centric"}},
      {"deepseekmoe", {"expert_centric"}},
      {"pkm", {"token_centric", "dense_masked"}},
      {"peer", {"token_centric", "dense_masked"}}};
  for (const auto& [system, own] : schedules) {
    const TemporaryDirectory directory;
    const Outcome outcome = run_moescope(
        with_devices({"simulate", "--system", system, "-L", "32", "--output", "out"}), directory);
    ASSERT_EQ(outcome.code, 0) << system << outcome.err;
    const auto layers = layers_of(directory.path() / "out");
    std::set<std::string> found;
    for (const auto& [schedule, values] : layers) {
      found.insert(schedule);
      EXPECT_GT(values.at("time_s"), 1e-6) << system;
      EXPECT_LT(values.at("time_s"), 1e-3) << system;
      EXPECT_GT(values.at("hbm_read_bytes"), 1e5) << system;
    }
    EXPECT_EQ(found, own) << system;
  }
}

TEST(SystemsModelled, ARuleForTokensChangesWhatIsExecuted) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(with_devices({"simulate", "--system", "gshard", "-L", "256", "--workload", "zipf:1",
                                 "--schedule", "expert_centric", "--schedule", "padded:1.25", "--schedule",
                                 "token_rounding:down:16", "--output", "out"}),
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  auto layers = layers_of(directory.path() / "out");
  EXPECT_EQ(layers.size(), 3U);
  EXPECT_GT(layers["padded:1.25"]["tensor_flop"], 0);
  std::map<std::string, double> dropped;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "dropped_pairs") {
      dropped[row.schedule] = *row.value;
    }
  }
  EXPECT_EQ(dropped.size(), 2U);
  EXPECT_GT(dropped["padded:1.25"], 0);
}

TEST(SystemsModelled, ASweepTakesThemAndSaysWhatItCannot) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "systems.json", R"({
    "name": "systems", "systems": ["gshard", "peer", "dense_mlp", "omnimoe"], "presets": ["small"],
    "axes": {"num_tokens": 16}, "schedules": ["token_centric"],
    "baseline_schedules": ["expert_centric", "padded:2", "token_centric"]})");
  const Outcome outcome = run_moescope(
      with_devices({"sweep", "systems.json", "--backend", "model", "--output", "out"}), directory);
  std::map<std::string, std::multiset<std::string>> times;
  std::string failed;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "time_s" && row.stage == "layer") {
      if (row.value) {
        times[row.system].insert(row.schedule);
      } else {
        failed = row.reason;
      }
    }
  }
  EXPECT_EQ(times["gshard"], (std::multiset<std::string>{"expert_centric", "padded:2"})) << outcome.err;
  EXPECT_NE(failed.find("GPU kernels run FFN experts as expert_centric"), std::string::npos) << failed;
  EXPECT_EQ(times["peer"], (std::multiset<std::string>{"token_centric"}));
  EXPECT_EQ(times["dense_mlp"], (std::multiset<std::string>{"none"}));
  EXPECT_EQ(times["omnimoe"], (std::multiset<std::string>{"token_centric"}));
}

/// Stage times of every baseline that were recorded on an H100 before schema version 4, and are predicted
/// with extents that those rows have as metrics.
TEST(SystemsModelled, ValidateTakesRecordedRowsOfOneSystem) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"validate", test::source_path("results/h100/dense-mlp.jsonl"), "--system", "dense_mlp",
                    "--metric", "time_s", "--max-accesses", "50000", "--calibration", "none", "-q"},
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("3 points"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("dense_mlp_L1024_d1024"), std::string::npos) << outcome.out;
  const Outcome none = run_moescope(
      {"validate", test::source_path("results/h100/dense-mlp.jsonl"), "--system", "gshard", "-q"}, directory);
  EXPECT_EQ(none.code, static_cast<int>(ExitCode::kInvalidArgument)) << none.out;
  const Outcome unknown = run_moescope(
      {"validate", test::source_path("results/h100/dense-mlp.jsonl"), "--system", "mixtral", "-q"},
      directory);
  EXPECT_EQ(unknown.code, static_cast<int>(ExitCode::kInvalidArgument)) << unknown.out;
}

TEST(SystemsModelled, ProfileTakesABaselineUnderItsSchedules) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      {"profile",    "--system",       "gshard",     "-L",          "16",       "--workload", "zipf:1",
       "--schedule", "expert_centric", "--schedule", "padded:1.25", "--source", "none",       "--min-samples",
       "2",          "--max-time",     "0.001",      "-q",          "--output", "out"},
      directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("gshard_L16"), std::string::npos) << outcome.out;
  std::set<std::string> timed;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "time_s" && row.stage == "experts") {
      timed.insert(row.schedule);
    }
  }
  EXPECT_EQ(timed, (std::set<std::string>{"expert_centric", "padded:1.25"}));
  const Outcome drawn = run_moescope({"roofline", "out/rows.jsonl", "--output", "figure"}, directory);
  EXPECT_EQ(drawn.code, 0) << drawn.err;
  EXPECT_NE(drawn.out.find("padded:1.25"), std::string::npos) << drawn.out;
}

}  // namespace
}  // namespace moescope
