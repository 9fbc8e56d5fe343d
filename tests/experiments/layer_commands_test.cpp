// The real program: what run, compare, check and inspect print and write.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
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
using test::small;
using test::TemporaryDirectory;
using test::write_text;

/// Rows of a real run, checked against the published schema line by line.
std::vector<ResultRow> valid_rows(const std::filesystem::path& results) {
  const test::JsonSchema schema(
      nlohmann::json::parse(read_text(test::source_path("core/results/result.schema.json"))));
  std::istringstream lines(read_text(results / "rows.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "");
  }
  EXPECT_EQ(schema.violation(nlohmann::json::parse(read_text(results / "run.json"))), "");
  return read_rows(results / "rows.jsonl").at(0).rows;
}

bool has_row(const std::vector<ResultRow>& rows, std::string_view schedule, std::string_view stage,
             std::string_view metric, Status status) {
  return std::any_of(rows.begin(), rows.end(), [&](const ResultRow& row) {
    return row.schedule == schedule && row.stage == stage && row.metric == metric && row.status == status;
  });
}

TEST(Compare, MeasuresEveryScheduleAndWritesRowsAndAFigure) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"compare", "--output", "out", "--dtype", "fp32", "--shared-size", "8"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = valid_rows(directory.path() / "out");
  std::set<std::string> workloads;
  for (const ResultRow& row : rows) {
    workloads.insert(row.workload);
    EXPECT_EQ(row.backend, "cpu");
    EXPECT_EQ(row.num_tokens, 32);
    EXPECT_EQ(row.grid_rows, 8);
    EXPECT_EQ(row.grid_cols, 6);
    if (row.metric == "relative_error" && row.status == Status::kOk) {
      EXPECT_LE(*row.value, 1e-5) << row.schedule;
    }
  }
  EXPECT_EQ(workloads, (std::set<std::string>{"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2"}));
  for (const char* schedule : {"token_centric", "expert_centric", "staircase", "dense_masked"}) {
    for (const char* metric :
         {"time_s", "l2_read_bytes", "hbm_read_bytes", "useful_flop", "executed_flop", "relative_error"}) {
      EXPECT_TRUE(has_row(rows, schedule, "layer", metric, Status::kOk)) << schedule << " " << metric;
    }
    EXPECT_TRUE(has_row(rows, schedule, "layer", "speed_up_over_token_centric", Status::kOk)) << schedule;
    EXPECT_NE(outcome.out.find(schedule), std::string::npos);
  }
  EXPECT_TRUE(has_row(rows, "sparse_library", "layer", "time_s", Status::kSkipped));
  EXPECT_TRUE(has_row(rows, "none", "router_select", "reuse", Status::kOk));
  EXPECT_TRUE(has_row(rows, "none", "experts", "floor_bytes", Status::kOk));
  EXPECT_NE(outcome.out.find("rows:   out/rows.jsonl"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out" / "skew.gp"));
  EXPECT_NE(outcome.out.find("figure: "), std::string::npos);
  EXPECT_EQ(outcome.err.find('\r'), std::string::npos) << "plain lines when not on a terminal";
  EXPECT_NE(outcome.err.find("[1/5] zipf:0\n[2/5] zipf:0.5, about"), std::string::npos) << outcome.err;
  EXPECT_TRUE(read_text(directory.path() / "out" / "rows.csv").starts_with("schema_version,run_id,system"));
}

/// Analytic bytes and FLOP by schedule, metric and stage.
std::map<std::string, std::map<std::string, double>> analytic_counts(const std::vector<ResultRow>& rows) {
  std::map<std::string, std::map<std::string, double>> counts;
  for (const ResultRow& row : rows) {
    const bool counted =
        row.metric.ends_with("_flop") || row.metric.starts_with("hbm_") || row.metric.starts_with("l2_");
    if (row.source == Source::kAnalytic && counted) {
      counts[row.schedule + ' ' + row.metric][row.stage] = row.value.value();
    }
  }
  return counts;
}

// FLOP of stages that did not run would make the layer look faster than it is.
TEST(AnalyticRows, OfALayerAreTheSumOfTheStagesThatRan) {
  for (const char* workload : {"uniform", "zipf:1"}) {
    const TemporaryDirectory directory;
    const Outcome outcome = run_moescope(
        small({"compare", "--output", "out", "--quiet", "--workload", workload, "--shared-size", "8"}),
        directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto rows = valid_rows(directory.path() / "out");
    std::map<std::string, std::set<std::string>> ran;  // stages with a time, by schedule
    for (const ResultRow& row : rows) {
      if (row.metric == "time_s") {
        ran[row.schedule].insert(row.stage);
      }
    }
    const auto counts = analytic_counts(rows);
    ASSERT_GE(counts.size(), 4U * 6U);
    for (const auto& [name, of_stage] : counts) {
      double sum = 0;
      for (const auto& [stage, value] : of_stage) {
        EXPECT_TRUE(ran[name.substr(0, name.find(' '))].contains(stage))
            << workload << ' ' << name << ' ' << stage;
        sum += stage == "layer" ? 0 : value;
      }
      EXPECT_EQ(of_stage.at("layer"), sum) << workload << ' ' << name;
    }
  }
}

TEST(AnalyticRows, HoldWhatIsAddedUpOfMemory) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(small({"run", "--output", "out", "--quiet"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::set<std::string> seen;
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    if (row.metric == "workspace_bytes" || row.metric == "peak_bytes" || row.metric == "weight_bytes") {
      EXPECT_EQ(row.source, Source::kAnalytic) << row.metric;
      seen.insert(row.metric);
    }
  }
  EXPECT_EQ(seen.size(), 3U);
}

TEST(Inspect, CountsTheSmallestCoverOfARecordedRouting) {
  const TemporaryDirectory directory;
  ASSERT_EQ(run_moescope({"inspect", "--workload", "uniform", "-L", "64", "--grid", "32x32", "-K", "64", "-d",
                          "8", "--save-trace", "trace.safetensors", "--output", "made"},
                         directory)
                .code,
            0);
  ASSERT_EQ(run_moescope({"inspect", "--workload", "trace:trace.safetensors", "--grid", "32x32", "-d", "8",
                          "--output", "read"},
                         directory)
                .code,
            0);
  for (const char* folder : {"made", "read"}) {
    for (const ResultRow& row : valid_rows(directory.path() / folder)) {
      if (row.metric == "strips_per_token") {
        EXPECT_LT(*row.value, 25.9) << folder;  // by row length it is 26.4
        EXPECT_GT(*row.value, 24.9) << folder;
      }
    }
  }
}

TEST(Simulate, RefusesALayerThatTheDeviceCannotHoldAndGoesOnWithTheOthers) {
  const TemporaryDirectory directory;
  const std::vector<std::string> arguments = {"simulate",  "--calibration",
                                              "none",      "--schedule",
                                              "staircase", "-L",
                                              "64",        "--grid",
                                              "64x64",     "-d",
                                              "256",       "-K",
                                              "16",        "--quiet",
                                              "--vary",    "memory_bytes=1MiB,80GiB",
                                              "--output",  "out"};
  const Outcome outcome = run_moescope(arguments, directory);
  EXPECT_EQ(outcome.code, test::code_of(ExitCode::kOutOfMemory));
  EXPECT_NE(outcome.err.find("1048576 bytes"), std::string::npos) << outcome.err;
  std::map<Status, int> layers;
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    if (row.metric == "time_s" && row.stage == "layer") {
      ++layers[row.status];
    }
  }
  EXPECT_EQ(layers[Status::kFailed], 1);
  EXPECT_EQ(layers[Status::kOk], 1);
}

TEST(Compare, PutsSystemsSideBySide) {
  const TemporaryDirectory directory;
  std::vector<std::string> arguments = {"compare", "--output", "out", "-L", "24", "-d", "32"};
  for (const char* system : {"dense_mlp", "gshard", "deepseekmoe", "pkm", "peer", "omnimoe"}) {
    arguments.insert(arguments.end(), {"--system", system});
  }
  arguments.insert(arguments.end(), {"--min-samples", "3", "--max-time", "0.01"});
  const Outcome outcome = run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = valid_rows(directory.path() / "out");
  const auto find = [&](const std::string& system, const std::string& schedule, const std::string& metric) {
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const ResultRow& r) {
      return r.system == system && r.schedule == schedule && r.stage == "layer" && r.metric == metric;
    });
    return row == rows.end() ? nullptr : &*row;
  };
  const std::vector<std::pair<std::string, std::string>> layers = {
      {"dense_mlp", "none"},    {"gshard", "expert_centric"}, {"deepseekmoe", "expert_centric"},
      {"pkm", "token_centric"}, {"peer", "token_centric"},    {"omnimoe", "expert_centric"},
      {"omnimoe", "staircase"}};
  for (const auto& [system, schedule] : layers) {
    for (const char* metric : {"time_s", "weight_bytes", "peak_bytes", "useful_flop", "relative_error"}) {
      const ResultRow* row = find(system, schedule, metric);
      ASSERT_TRUE(row != nullptr) << system << " " << metric;
      EXPECT_EQ(row->status, Status::kOk) << system << " " << metric;
      EXPECT_EQ(row->num_tokens, 24);
      if (row->metric == "relative_error") {
        EXPECT_LE(*row->value, 4e-3) << system;
      }
    }
  }
  EXPECT_EQ(find("gshard", "expert_centric", "time_s")->group_size, 1);
  EXPECT_EQ(find("gshard", "expert_centric", "time_s")->grid_cols, 32);
  EXPECT_EQ(find("peer", "token_centric", "time_s")->grid_rows, 64);
  EXPECT_EQ(find("peer", "token_centric", "time_s")->heads, 10);
  EXPECT_EQ(find("pkm", "token_centric", "time_s")->activation, "none");
  EXPECT_EQ(find("dense_mlp", "none", "time_s")->gates, "none");
}

TEST(Compare, GoesOnPastAPointThatFails) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"compare", "--output", "out", "--quiet", "--workload", "hot:0.5,7", "--workload",
                          "zipf:1", "--schedule", "staircase"}),
                   directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "") << "quiet";
  const auto rows = valid_rows(directory.path() / "out");
  int failed = 0;
  int measured = 0;
  for (const ResultRow& row : rows) {
    failed += row.workload.starts_with("hot") && row.status == Status::kFailed ? 1 : 0;
    measured += row.workload == "zipf:1" && row.metric == "time_s" && row.status == Status::kOk ? 1 : 0;
  }
  EXPECT_EQ(failed, 1) << outcome.out;
  EXPECT_GT(measured, 0);
  const auto summary = outcome.out.find("1 of 2 points failed\nfailed: hot:0.5,7: staircase: ");
  ASSERT_NE(summary, std::string::npos) << outcome.out;
  EXPECT_GT(summary, outcome.out.find("rows: ")) << "at the end";
  EXPECT_NE(outcome.out.find("COUNT = 7 must not exceed", summary), std::string::npos)
      << "the reason is shown";
}

/// A trace of one token whose one expert, 99, is not among the 16 of a 4 x 4 grid: found out when it is read.
void write_bad_trace(const std::filesystem::path& file) {
  std::string header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1), }";
  header.resize(117, ' ');
  write_text(file, std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + '\n' +
                       std::string("\x63\0\0\0\0\0\0\0", 8));
}

TEST(Profile, GoesOnPastAPointThatFails) {
  const TemporaryDirectory directory;
  const auto profile = [&](std::vector<std::string> workloads, const char* output) {
    std::vector<std::string> arguments = {"profile", "--source",      "none",      "-q",         "--output",
                                          output,    "--schedule",    "staircase", "-L",         "1",
                                          "--grid",  "4x4",           "-d",        "8",          "-K",
                                          "1",       "--min-samples", "2",         "--max-time", "0.01"};
    for (std::string& workload : workloads) {
      arguments.insert(arguments.end(), {"--workload", std::move(workload)});
    }
    return run_moescope(arguments, directory);
  };
  write_bad_trace(directory.path() / "bad.npy");
  const Outcome outcome = profile({"trace:bad.npy", "zipf:1"}, "out");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("1 of 2 points failed\nfailed: trace:bad.npy: staircase: "), std::string::npos)
      << outcome.out;
  int measured = 0;
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    measured += row.workload == "zipf:1" && row.metric == "time_s" && row.status == Status::kOk ? 1 : 0;
  }
  EXPECT_GT(measured, 0);
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out" / "trace.json"));
  EXPECT_EQ(profile({"trace:bad.npy"}, "alone").code, test::code_of(ExitCode::kBadFile));
}

TEST(Compare, EndsWithTheCodeOfTheFailureWhenNothingCouldBeMeasured) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      small({"compare", "--output", "out", "--workload", "hot:0.5,7", "--schedule", "staircase"}), directory);
  EXPECT_EQ(outcome.code, test::code_of(ExitCode::kInvalidArgument)) << outcome.err;
}

TEST(Compare, GoesOnPastASystemThatDoesNotFit) {
  const TemporaryDirectory directory;
  // Terabytes of FFN experts, and a small dense layer.
  std::vector<std::string> arguments = {
      "compare",       "--output", "out",           "-L", "8",  "-d",         "1024", "--system", "gshard",
      "--expert-size", "30000000", "--min-samples", "2",  "-q", "--max-time", "0.001"};
  const Outcome alone = run_moescope(arguments, directory);
  EXPECT_EQ(alone.code, test::code_of(ExitCode::kOutOfMemory)) << "nothing could be measured: " << alone.err;
  arguments[2] = "both";
  arguments.insert(arguments.end(), {"--system", "dense_mlp"});
  const Outcome outcome = run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* output : {"out", "both"}) {
    std::map<std::string, ResultRow> times;
    for (const ResultRow& row : valid_rows(directory.path() / output)) {
      if (row.metric == "time_s" && row.stage == "layer") {
        times[row.system] = row;
      }
    }
    EXPECT_EQ(times["gshard"].status, Status::kFailed);
    EXPECT_EQ(times["gshard"].schedule, "expert_centric");
    EXPECT_NE(times["gshard"].reason.find("GiB"), std::string::npos) << times["gshard"].reason;
    EXPECT_EQ(times.contains("dense_mlp"), std::string(output) == "both");
    EXPECT_EQ(times["dense_mlp"].status, Status::kOk);
  }
  EXPECT_NE(outcome.out.find("GiB"), std::string::npos) << "the table says why\n" << outcome.out;
}

TEST(Compare, KeepsEarlierResults) {
  const TemporaryDirectory directory;
  const auto arguments =
      small({"compare", "--output", "out", "--workload", "zipf:1", "--schedule", "staircase"});
  ASSERT_EQ(run_moescope(arguments, directory).code, 0);
  const std::string before = read_text(directory.path() / "out" / "rows.jsonl");
  const Outcome again = run_moescope(arguments, directory);
  EXPECT_EQ(again.code, test::code_of(ExitCode::kBadFile));
  EXPECT_NE(again.err.find("exists already"), std::string::npos) << again.err;
  EXPECT_EQ(read_text(directory.path() / "out" / "rows.jsonl"), before);
}

TEST(Run, ShowsEveryStageAndWritesOnlyWhenAsked) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"run", "--shared-size", "8", "--schedule", "expert_centric"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* stage :
       {"router_project", "router_select", "schedule", "experts", "shared_mlp", "layer"}) {
    EXPECT_NE(outcome.out.find(std::string("\n") + stage), std::string::npos) << stage << "\n" << outcome.out;
  }
  EXPECT_NE(outcome.out.find("relative error"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
  const Outcome writing = run_moescope(small({"run", "--output", "out"}), directory);
  ASSERT_EQ(writing.code, 0) << writing.err;
  EXPECT_TRUE(has_row(valid_rows(directory.path() / "out"), "staircase", "layer", "time_s", Status::kOk));
}

TEST(Run, ShowsEveryStageOfABaseline) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"run", "--system", "deepseekmoe", "-L", "32", "-d", "32", "--dtype",
                                        "fp32", "--min-samples", "3", "--max-time", "0.01"},
                                       directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* word : {"deepseekmoe_L32_d32_N64_K4", "router_project", "router_select", "schedule",
                           "experts", "shared_mlp", "peak", "bit-identical"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome.out;
  }
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
}

TEST(Run, FindsTheRecordedLayerFromAnywhereAndNamesNoPathOfThisMachine) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      {"run", "-L", "16", "--min-samples", "2", "--max-time", "0.01", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("snapshot:data/small_layer2.safetensors"), std::string::npos);
  EXPECT_EQ(outcome.out.find(test::source_dir()), std::string::npos);
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    EXPECT_EQ(row.workload, "snapshot:data/small_layer2.safetensors");
  }
}

TEST(Check, GoesOnPastAWorkloadThatCannotBeReadAndSaysSoAtTheEnd) {
  const TemporaryDirectory directory;
  write_bad_trace(directory.path() / "bad.npy");
  const auto check = [&](std::vector<std::string> workloads) {
    std::vector<std::string> arguments = {"check", "-L", "1", "--grid",     "4x4",      "-d",
                                          "8",     "-K", "1", "--schedule", "staircase"};
    for (std::string& workload : workloads) {
      arguments.insert(arguments.end(), {"--workload", std::move(workload)});
    }
    return run_moescope(arguments, directory);
  };
  const Outcome both = check({"trace:bad.npy", "zipf:1"});
  EXPECT_EQ(both.code, test::code_of(ExitCode::kBadFile)) << both.out << both.err;
  const auto tally = both.out.find("1 passed, 1 failed, 0 skipped");
  ASSERT_NE(tally, std::string::npos) << both.out;
  EXPECT_NE(both.out.find("bad.npy: expert_ids", tally), std::string::npos) << "again at the end\n"
                                                                            << both.out;
  EXPECT_EQ(check({"trace:bad.npy"}).code, test::code_of(ExitCode::kBadFile));
}

TEST(Check, PassesOnThePointAskedForAndWritesRows) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"check", "-L", "32", "-d", "24", "--grid", "48x16", "-K", "24",
                                        "--dtype", "fp32", "--workload", "zipf:1.5", "--output", "out"},
                                       directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("cpu: 4 passed, 0 failed, 1 skipped"), std::string::npos) << outcome.out;
  const auto rows = valid_rows(directory.path() / "out");
  EXPECT_TRUE(has_row(rows, "staircase", "layer", "relative_error", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "schedule", "mismatch", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "router_select", "wrong_pairs", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "router_select", "near_ties", Status::kOk));
  EXPECT_TRUE(has_row(rows, "sparse_library", "layer", "relative_error", Status::kSkipped));
}

TEST(Check, NamesTheKernelsThatWereCompared) {
  const TemporaryDirectory directory;
  const std::vector<std::string> arguments = {"check",     "-L",       "32",  "-d",         "24",
                                              "--grid",    "8x8",      "-K",  "6",          "--schedule",
                                              "staircase", "--output", "out", "--workload", "gaussian:1"};
  const Outcome brief = run_moescope(arguments, directory);
  EXPECT_EQ(brief.code, 0) << brief.out << brief.err;
  EXPECT_EQ(brief.out.find("cpu experts (staircase)"), std::string::npos) << brief.out;
  int named = 0;
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    named += row.reason.find("cpu experts (staircase)") != std::string::npos ? 1 : 0;
  }
  EXPECT_EQ(named, 2);  // the output, and that it is repeatable
  std::vector<std::string> more = arguments;
  more[12] = "out2";
  more.emplace_back("--verbose");
  const Outcome verbose = run_moescope(more, directory);
  EXPECT_EQ(verbose.code, 0) << verbose.err;
  EXPECT_NE(verbose.out.find("cpu router_select + cpu schedule (staircase) + cpu experts (staircase)"),
            std::string::npos)
      << verbose.out;
}

TEST(Check, FailsWhenNothingCouldBeCompared) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      {"check", "-L", "8", "-d", "8", "--grid", "4x4", "-K", "2", "--schedule", "sparse_library"}, directory);
  EXPECT_EQ(outcome.code, test::code_of(ExitCode::kCheckFailed)) << outcome.out;
  EXPECT_NE(outcome.out.find("0 passed, 0 failed, 1 skipped"), std::string::npos) << outcome.out;
}

TEST(Check, ComparesBaselineSystemsWithTheOracle) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"check", "--system", "gshard", "--system", "peer", "--output", "out"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("cpu: 14 passed, 0 failed, 0 skipped"), std::string::npos) << outcome.out;
  std::set<std::string> systems;
  const auto rows = valid_rows(directory.path() / "out");
  for (const ResultRow& row : rows) {
    EXPECT_EQ(row.metric, "relative_error");
    systems.insert(row.system);
  }
  EXPECT_EQ(systems, (std::set<std::string>{"gshard", "peer"}));
  const Outcome refused = run_moescope({"check", "--system", "omnimoe"}, directory);
  EXPECT_EQ(refused.code, test::code_of(ExitCode::kInvalidArgument));
  EXPECT_NE(refused.err.find("system = omnimoe"), std::string::npos) << refused.err;
}

TEST(Inspect, ShowsSkewAndAHistogramAndRecordsATraceThatReplays) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"inspect", "-L", "64", "-d", "16", "--grid", "8x8", "-K", "4", "--workload", "zipf:1",
                    "--save-trace", "t.safetensors", "--output", "out"},
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("unevenness_nats"), std::string::npos);
  EXPECT_NE(outcome.out.find("pairs per expert"), std::string::npos);
  EXPECT_NE(outcome.out.find("##"), std::string::npos);
  const auto rows = valid_rows(directory.path() / "out");
  const Outcome replay = run_moescope(
      {"inspect", "-d", "16", "--workload", "trace:t.safetensors", "--output", "replayed"}, directory);
  ASSERT_EQ(replay.code, 0) << replay.err;
  const auto replayed = valid_rows(directory.path() / "replayed");
  ASSERT_EQ(replayed.size(), rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(replayed[i].metric, rows[i].metric);
    EXPECT_EQ(replayed[i].value, rows[i].value) << rows[i].metric;
  }
}

}  // namespace
}  // namespace moescope
