// The real program: `moescope diff` on recordings of an H100, moved by known factors.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

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

constexpr const char* kRecording = "results/h100/compare-4096-512.jsonl.gz";

/// The recording with `change` made to each of its rows, as a run's folder.
void write_changed(const std::filesystem::path& folder, const std::function<void(ResultRow&)>& change) {
  const auto run = read_rows(test::source_path(kRecording)).front();
  ResultWriter writer(folder, run.header);
  for (ResultRow row : run.rows) {
    change(row);
    row.point.clear();
    writer.write(row);
  }
}

/// What another recording of the same program has: its median lies elsewhere within a third of the spread.
void jitter(ResultRow& row) {
  if (row.metric == "time_s" && row.value) {
    const auto draw =
        static_cast<double>(std::hash<std::string>{}(row.workload + row.schedule + row.stage) % 1000);
    *row.value *= 1 + row.spread.value_or(0) * (draw / 999 - 0.5) / 1.5;
  }
}

void slower(ResultRow& row) {
  jitter(row);
  if (row.metric == "time_s" && row.value && row.schedule == "expert_centric") {
    *row.value *= 1.1;
  }
}

TEST(Diff, SaysTheSameOfTwoRecordingsOfOneProgram) {
  const TemporaryDirectory directory;
  write_changed(directory.path() / "a", [](ResultRow&) {});
  write_changed(directory.path() / "b", jitter);
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--stages"}}) {
    std::vector<std::string> arguments = {"diff", "a", "b/rows.jsonl"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run_moescope(arguments, directory);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("B is the same beyond noise at every one of "), std::string::npos)
        << outcome.out;
    EXPECT_EQ(outcome.out.find("SLOW"), std::string::npos) << outcome.out;
  }
}

TEST(Diff, NamesTheScheduleThatBecameSlowerAndNothingElse) {
  const TemporaryDirectory directory;
  write_changed(directory.path() / "a", [](ResultRow&) {});
  write_changed(directory.path() / "b", slower);
  const Outcome outcome =
      run_moescope({"diff", "a", "b", "--output", "figure", "--format", "json"}, directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kCheckFailed));
  const auto table = nlohmann::json::parse(outcome.out)["tables"][0];
  std::set<std::string> named;
  std::set<std::string> workloads;
  for (const auto& row : table["rows"]) {
    if (row["verdict"] == "SLOW" || row["verdict"] == "FAST" || row["verdict"] == "LOST") {
      named.insert(row["schedule"]);
      workloads.insert(row["workload"]);
      EXPECT_NEAR(row["ratio"].get<double>(), 1.1, 0.03);
    }
  }
  EXPECT_EQ(named, std::set<std::string>{"expert_centric"});
  EXPECT_EQ(workloads.size(), 5U);
  EXPECT_EQ(table["rows"].size(), 45U) << "programs get what is the same, too";
  EXPECT_NE(outcome.err.find("B is slower beyond noise at 5 of 45 points: expert_centric on"),
            std::string::npos)
      << outcome.err;
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "figure" / "diff.gp"));
  const Outcome back = run_moescope({"diff", "b", "a"}, directory);
  EXPECT_EQ(back.code, 0) << "faster is no failure";
  EXPECT_NE(back.out.find("B is faster beyond noise at 5 of 45 points"), std::string::npos) << back.out;
}

TEST(Diff, ComparesDevicesOnlyWhenAsked) {
  const TemporaryDirectory directory;
  const std::string h100 = test::source_path(kRecording);
  const std::string h200 = test::source_path("results/h200/compare-4096-512.jsonl.gz");
  const Outcome refused = run_moescope({"diff", h100, h200}, directory);
  EXPECT_EQ(refused.code, static_cast<int>(ExitCode::kInvalidArgument));
  EXPECT_NE(refused.err.find("--any-device"), std::string::npos) << refused.err;
  const Outcome shown = run_moescope({"diff", h100, h200, "--any-device", "--all"}, directory);
  EXPECT_NE(shown.out.find("A: " + h100 + ": NVIDIA H100"), std::string::npos) << shown.out << shown.err;
  EXPECT_NE(shown.out.find("B: " + h200 + ": NVIDIA H200"), std::string::npos);
}

TEST(Diff, SaysWhenNothingIsInBoth) {
  const TemporaryDirectory directory;
  write_changed(directory.path() / "a", [](ResultRow&) {});
  write_changed(directory.path() / "b", [](ResultRow& row) { row.seed = 99; });
  const Outcome outcome = run_moescope({"diff", "a", "b"}, directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kCheckFailed));
  EXPECT_NE(outcome.out.find("nothing to compare"), std::string::npos) << outcome.out;
  EXPECT_EQ(run_moescope({"diff", "a", "absent"}, directory).code, static_cast<int>(ExitCode::kBadFile));
}

}  // namespace
}  // namespace moescope
