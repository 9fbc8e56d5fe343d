// The real program: rules for tokens of FFN experts in run, compare, sweep and check.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

constexpr const char* kTrace = "trace:tests/data/traces/ffn64_unbalanced.npz";

std::string recorded_trace() { return "trace:" + test::source_path(std::string(kTrace).substr(6)); }

/// Values of one schedule by metric.
std::map<std::string, double> values_of(const std::vector<RecordedRun>& runs, const std::string& schedule) {
  std::map<std::string, double> values;
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.schedule == schedule && row.value) {
      values[row.metric] = *row.value;
    }
  }
  return values;
}

TEST(TokenRules, RowsSayWhatWasDroppedAndWhatThatDoes) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"compare",
                                        "--system",
                                        "gshard",
                                        "--workload",
                                        recorded_trace(),
                                        "-d",
                                        "32",
                                        "--expert-size",
                                        "24",
                                        "--schedule",
                                        "expert_centric",
                                        "--schedule",
                                        "padded:1.25",
                                        "--schedule",
                                        "token_rounding:down:16",
                                        "--min-samples",
                                        "2",
                                        "--max-time",
                                        "0.001",
                                        "-q",
                                        "--output",
                                        "out"},
                                       directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  auto padded = values_of(runs, "padded:1.25");
  // Counts by NumPy: tests/data/token_rules/make.py.
  EXPECT_EQ(padded["dropped_pairs"], 387);
  EXPECT_EQ(padded["dropped_share"], 387.0 / 512);
  EXPECT_EQ(padded["tokens_without_experts"], 7);
  EXPECT_EQ(padded["expert_capacity"], 10);
  EXPECT_EQ(padded["added_pairs"], 0);
  EXPECT_EQ(padded["executed_rows"], 640);
  EXPECT_EQ(padded["padding_waste"], 640.0 / 125);
  EXPECT_LT(padded["relative_error"], 4e-3);
  EXPECT_GT(padded["dropless_relative_error"], 0.1);
  auto rounded = values_of(runs, "token_rounding:down:16");
  EXPECT_EQ(rounded["padding_waste"], 1);
  EXPECT_EQ(rounded["executed_rows"], 512 - rounded["dropped_pairs"]);
  EXPECT_EQ(rounded["dropless_executed_rows"], 13 * 128);  // 13 experts, none above a tile
  auto plain = values_of(runs, "expert_centric");
  EXPECT_EQ(plain["executed_rows"], 13 * 128);
  EXPECT_FALSE(plain.contains("dropped_pairs"));
  EXPECT_NE(outcome.out.find("padding"), std::string::npos);
  EXPECT_NE(outcome.out.find("75.6 %"), std::string::npos) << outcome.out;
}

TEST(TokenRules, RunSaysItInWords) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"run", "--system", "deepseekmoe", "-L", "64", "--workload", "zipf:1", "--schedule",
                    "token_rounding:nearest:8", "--min-samples", "2", "--max-time", "0.001", "-q"},
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("token_rounding:nearest:8 on cpu"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("pairs dropped"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("output against that of all pairs"), std::string::npos) << outcome.out;
}

TEST(TokenRules, CheckJudgesThePairsThatRun) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"check", "--system", "gshard", "-L", "64", "--workload", "zipf:1",
                                        "--schedule", "padded:0.5", "--output", "out"},
                                       directory);
  ASSERT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("padded:0.5: "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("pairs dropped"), std::string::npos) << outcome.out;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  EXPECT_EQ(runs.at(0).rows.at(0).schedule, "padded:0.5");
}

TEST(TokenRules, AreASweepsBaselineSchedules) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "rules.json", R"({
    "name": "rules", "systems": ["gshard", "peer", "omnimoe"], "presets": ["small"],
    "axes": {"num_tokens": 16, "hidden_size": 32, "l2": "warm"}, "schedules": ["token_centric"],
    "baseline_schedules": ["expert_centric", "padded:1.25", "token_centric"],
    "min_samples": 2, "max_time_s": 0.001})");
  const Outcome outcome = run_moescope({"sweep", "rules.json", "-q", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::map<std::string, std::multiset<std::string>> ran;
  std::string repro;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "time_s" && row.stage == "layer") {
      ran[row.system].insert(row.schedule);
      repro = row.system == "gshard" ? row.repro : repro;
    }
  }
  EXPECT_EQ(ran["gshard"], (std::multiset<std::string>{"expert_centric", "padded:1.25", "token_centric"}));
  EXPECT_EQ(ran["peer"], (std::multiset<std::string>{"token_centric"}));
  EXPECT_EQ(ran["omnimoe"], (std::multiset<std::string>{"token_centric"}));
  EXPECT_NE(repro.find("--schedule expert_centric --schedule padded:1.25 --schedule token_centric"),
            std::string::npos)
      << repro;
  write_text(directory.path() / "none.json",
             R"({"name": "none", "systems": ["gshard"], "baseline_schedules": ["staircase"]})");
  const Outcome refused = run_moescope({"sweep", "none.json", "-q"}, directory);
  EXPECT_EQ(refused.code, static_cast<int>(ExitCode::kBadFile));
  EXPECT_NE(refused.err.find("baseline_schedules: \"staircase\""), std::string::npos) << refused.err;
}

TEST(TokenRules, AreRefusedElsewhere) {
  const TemporaryDirectory directory;
  const Outcome omnimoe = run_moescope({"compare", "--schedule", "padded:1.25", "-q"}, directory);
  EXPECT_EQ(omnimoe.code, static_cast<int>(ExitCode::kInvalidArgument));
  EXPECT_NE(omnimoe.err.find("is for gshard, deepseekmoe"), std::string::npos) << omnimoe.err;
  const Outcome peer =
      run_moescope({"run", "--system", "peer", "--schedule", "token_rounding", "-L", "4", "-q"}, directory);
  EXPECT_EQ(peer.code, static_cast<int>(ExitCode::kInvalidArgument)) << peer.err;
  const Outcome trace = run_moescope({"run", "--system", "gshard", "--workload", recorded_trace(), "-d", "32",
                                      "--schedule", "token_rounding", "-q"},
                                     directory);
  EXPECT_EQ(trace.code, static_cast<int>(ExitCode::kInvalidArgument)) << trace.out << trace.err;
  EXPECT_NE(trace.err.find("token_rounding:down needs the recorded gates alone"), std::string::npos)
      << trace.err;
}

}  // namespace
}  // namespace moescope
