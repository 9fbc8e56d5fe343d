// The real program: what a sweep says and how it ends, with points that failed and against a baseline.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

/// Points of a few milliseconds.
constexpr const char* kPartlyPossible = R"({
  "name": "quick",
  "schedules": ["token_centric", "staircase"],
  "workloads": ["zipf:1"],
  "axes": {"num_tokens": [8, 16], "hidden_size": 16, "grid": "8x6", "top_k": 4, "l2": "warm"},
  "min_samples": 2,
  "max_time_s": 0.001
})";

TEST(SweepOutcome, RecordsPointsThatFailAndGoesOn) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", R"({
    "name": "holes", "schedules": ["staircase"],
    "workloads": ["hot:0.5,7", "snapshot:absent.safetensors", "zipf:1"],
    "axes": {"num_tokens": 8, "hidden_size": 16, "grid": "8x6", "top_k": [4, 49]},
    "metrics": ["relative_error"], "min_samples": 2, "max_time_s": 0.001})");
  const Outcome outcome = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("absent.safetensors"), std::string::npos) << outcome.out;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.at(0).points.size(), 6U);
  int ok = 0;
  for (const RecordedPoint& point : runs[0].points) {
    ok += point.status == Status::kOk ? 1 : 0;
  }
  EXPECT_EQ(ok, 1);
  for (const ResultRow& row : runs[0].rows) {
    if (row.status == Status::kOk) {
      EXPECT_EQ(row.metric, "relative_error") << "nothing else was asked for";
      EXPECT_EQ(row.top_k, 4);
    } else if (row.status == Status::kFailed) {
      EXPECT_TRUE(row.reason.find("COUNT = 7") != std::string::npos ||
                  row.reason.find("absent") != std::string::npos ||
                  row.reason.find("top_k = 49") != std::string::npos)
          << row.reason;
    }
  }
  const Outcome again = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(again.code, 0);
  EXPECT_EQ(read_rows(directory.path() / "out" / "rows.jsonl").size(), 1U) << "a failure is not tried again";
  for (const Outcome& each : {outcome, again}) {
    const auto summary = each.out.find("5 of 6 points failed\n");
    ASSERT_NE(summary, std::string::npos) << each.out;
    EXPECT_GT(summary, each.out.find("rows: ")) << "at the end";
    for (const char* failed : {"top_k 4, hot:0.5,7: ", "top_k 49, hot:0.5,7: ", "top_k 49, zipf:1: ",
                               "top_k 4, snapshot:absent.safetensors: "}) {
      EXPECT_NE(each.out.find(std::string("failed: ") + failed, summary), std::string::npos)
          << failed << each.out;
    }
  }
}

TEST(SweepOutcome, EndsWithAFailureAsLongAsNoPointCameOff) {
  const TemporaryDirectory directory;
  const auto experiment = [&](const char* tokens) {
    write_text(directory.path() / "experiment.json",
               std::string(R"({"name": "holes", "schedules": ["staircase"], "workloads": ["hot:0.5,7"],
      "axes": {"num_tokens": )") +
                   tokens + R"(, "hidden_size": 16, "grid": "8x6", "top_k": [4, 3]}})");
  };
  experiment("8");
  const Outcome outcome = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.out;
  const Outcome again = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(again.code, static_cast<int>(ExitCode::kCheckFailed)) << "nothing was tried, nothing is there";
  EXPECT_NE(again.out.find("2 of 2 points failed"), std::string::npos) << again.out;
}

TEST(SweepOutcome, NamesTheScheduleThatFailedWhereOthersDidNot) {
  const TemporaryDirectory directory;
  // The simulator of sparse_library's stream, asked for by name, is not there; staircase is.
  write_text(directory.path() / "experiment.json",
             R"({"name": "half", "schedules": ["sparse_library", "staircase"], "workloads": ["gaussian:1"],
      "axes": {"num_tokens": 8, "hidden_size": 16, "grid": "8x6", "top_k": 4}})");
  const Outcome outcome =
      run_moescope({"sweep", "experiment.json", "--backend", "model", "-q", "--output", "out"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.at(0).points.size(), 1U);
  EXPECT_EQ(runs[0].points[0].status, Status::kOk);
  EXPECT_NE(outcome.out.find("1 of 1 points failed\nfailed: half: sparse_library: "), std::string::npos)
      << outcome.out;
}

/// A run's rows with every time multiplied, as another run's file.
void write_scaled(const fs::path& from, const fs::path& to, double factor) {
  const auto runs = read_rows(from / "rows.jsonl");
  ResultWriter writer(to, runs.at(0).header);
  for (ResultRow row : runs[0].rows) {
    if (row.metric == "time_s" && row.value) {
      row.value = *row.value * factor;
      row.spread = 0;
    }
    row.point.clear();
    writer.write(row);
  }
}

TEST(SweepOutcome, ExitsWithOneWhenItBecameSlowerThanItsBaseline) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kPartlyPossible);
  ASSERT_EQ(run_moescope(test::sweep_into("out"), directory).code, 0);
  write_scaled(directory.path() / "out", directory.path() / "fast", 1e-3);
  write_scaled(directory.path() / "out", directory.path() / "slow", 1e3);
  const auto against = [&](const std::string& baseline) {
    auto arguments = test::sweep_into("out");
    arguments.insert(arguments.end(), {"--baseline", baseline, "--threshold", "5%"});
    return run_moescope(arguments, directory);
  };
  const Outcome slower = against("fast/rows.jsonl");
  EXPECT_EQ(slower.code, static_cast<int>(ExitCode::kCheckFailed)) << slower.out;
  EXPECT_NE(slower.out.find("SLOW"), std::string::npos) << slower.out;
  const Outcome faster = against("slow/rows.jsonl");
  EXPECT_EQ(faster.code, 0) << faster.out;
  EXPECT_NE(faster.out.find("FAST"), std::string::npos) << faster.out;
  EXPECT_EQ(against("out/rows.jsonl").code, 0) << "no slower than itself";
  EXPECT_EQ(against("absent").code, static_cast<int>(ExitCode::kBadFile));
}

TEST(SweepOutcome, HoldsModelledTimesAgainstTheirBaseline) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json",
             R"({"name": "model", "schedules": ["staircase"], "workloads": ["gaussian:1"],
      "axes": {"num_tokens": [8, 16], "hidden_size": 16, "grid": "8x6", "top_k": 4}})");
  const auto sweep = [&](const std::string& output, const std::string& baseline) {
    return run_moescope({"sweep", "experiment.json", "--backend", "model", "-q", "--output", output,
                         "--baseline", baseline, "--threshold", "0.1%"},
                        directory);
  };
  ASSERT_EQ(
      run_moescope({"sweep", "experiment.json", "--backend", "model", "-q", "--output", "a"}, directory).code,
      0);
  const Outcome same = sweep("b", "a/rows.jsonl");
  EXPECT_EQ(same.code, 0) << same.out << same.err;
  EXPECT_EQ(same.out.find(" 0 same"), std::string::npos) << same.out;
  EXPECT_NE(same.out.find("0 only in the baseline, 0 only in this run"), std::string::npos) << same.out;
  write_scaled(directory.path() / "a", directory.path() / "fast", 0.5);
  EXPECT_EQ(sweep("b", "fast/rows.jsonl").code, static_cast<int>(ExitCode::kCheckFailed));
}

}  // namespace
}  // namespace moescope
