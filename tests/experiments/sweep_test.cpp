// The real program: sweeps that are killed and go on, shards, what is refused; reports of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "core/base/error.hpp"
#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::Outcome;
using test::read_text;
using test::run_moescope;
using test::RunningMoescope;
using test::TemporaryDirectory;
using test::write_text;

/// 12 points of a few milliseconds: emptying the cache before each sample would take most of the time.
constexpr const char* kExperiment = R"({
  "name": "quick",
  "schedules": ["token_centric", "staircase"],
  "workloads": ["zipf:1", "uniform"],
  "axes": {"num_tokens": [8, 16, 24], "seed": [0, 1], "hidden_size": 16, "grid": "8x6", "top_k": 4, "l2": "warm"},
  "min_samples": 2,
  "max_time_s": 0.001
})";

/// What a row says it measured, with the values that do not depend on the clock.
std::string fingerprint(const ResultRow& row) {
  const bool repeatable = row.source == Source::kAnalytic || row.metric == "relative_error" ||
                          row.metric == "max_absolute_error" || row.metric == "workspace_bytes";
  std::ostringstream text;
  text.precision(17);
  text << row.point << '|' << row.system << '|' << row.schedule << '|' << row.stage << '|' << row.backend
       << '|' << row.num_tokens << '|' << row.hidden_size << '|' << row.grid_rows << '|' << row.grid_cols
       << '|' << row.top_k << '|' << row.shared_size.value_or(-1) << '|' << row.group_size.value_or(-1) << '|'
       << row.tile_tokens.value_or(-1) << '|' << row.dtype << '|' << row.activation << '|' << row.gates << '|'
       << row.workload << '|' << row.seed << '|' << row.l2_state << '|' << to_string(row.source) << '|'
       << row.metric << '|' << row.unit << '|' << to_string(row.status) << '|' << row.repro << '|';
  if (repeatable && row.value) {
    text << *row.value;
  }
  return text.str();
}

struct Contents {
  std::vector<std::string> rows;  ///< sorted fingerprints
  std::vector<std::string> points;
};

Contents contents(const fs::path& directory) {
  Contents all;
  for (const RecordedRun& run : read_rows(directory / "rows.jsonl")) {
    for (const ResultRow& row : run.rows) {
      all.rows.push_back(fingerprint(row));
    }
    for (const RecordedPoint& point : run.points) {
      all.points.push_back(point.id);
    }
  }
  std::ranges::sort(all.rows);
  std::ranges::sort(all.points);
  return all;
}

TEST(Sweep, MeasuresEveryPointOnceAndSaysHowToDoItAgain) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  const Outcome outcome = run_moescope({"sweep", "experiment.json"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("[1/12] num_tokens 8, seed 0, zipf:1\n"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("left"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.out.find("12 points"), std::string::npos) << outcome.out;
  const auto runs = read_rows(directory.path() / "results" / "quick-cpu" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0].points.size(), 12U);
  std::set<std::string> repros;
  for (const ResultRow& row : runs[0].rows) {
    repros.insert(row.repro);
    EXPECT_EQ(row.system, "omnimoe");
  }
  EXPECT_EQ(repros.size(), 12U);
  // The command of a row measures what the row says.
  const ResultRow& row = runs[0].rows.back();
  std::vector<std::string> words;
  std::istringstream text(row.repro);
  for (std::string word; text >> word;) {
    words.push_back(word);
  }
  ASSERT_EQ(words.front(), "moescope");
  words.erase(words.begin());
  words.insert(words.end(), {"--quiet", "--output", "again"});
  ASSERT_EQ(run_moescope(words, directory).code, 0) << row.repro;
  std::vector<std::string> again;
  const auto repeated = read_rows(directory.path() / "again" / "rows.jsonl");
  ASSERT_EQ(repeated.size(), 1U);
  for (ResultRow same : repeated[0].rows) {
    same.point = row.point;
    same.repro = row.repro;
    again.push_back(fingerprint(same));
  }
  EXPECT_EQ(std::ranges::count(again, fingerprint(row)), 1) << fingerprint(row);
}

std::uintmax_t size_or_none(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  return error ? 0 : size;
}

/// Returns once `file` has that many bytes, or the process has ended.
void wait_for_bytes(const fs::path& file, std::uintmax_t bytes, const RunningMoescope& process) {
  while (size_or_none(file) < bytes && !process.ended()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

/// Every other kill comes after a random time; the rest after a random number of further bytes, so that on a
/// machine that has become slower since the clock was taken, too, some come between points and inside lines.
TEST(Sweep, EndsWithTheRowsOfAnUninterruptedOneHoweverOftenItIsKilled) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(run_moescope(test::sweep_into("whole"), directory).code, 0);
  const std::chrono::duration<double> whole_s = std::chrono::steady_clock::now() - start;
  const Contents expected = contents(directory.path() / "whole");
  const auto whole_bytes = size_or_none(directory.path() / "whole" / "rows.jsonl");
  ASSERT_EQ(expected.points.size(), 12U);

  std::mt19937 random(20261122);
  std::uniform_real_distribution<double> delay_s(0, whole_s.count());
  std::uniform_int_distribution<std::uintmax_t> further_bytes(1, whole_bytes / 2);
  int kills = 0;
  int resumed = 0;
  for (int sweeps = 0; kills < 20; ++sweeps) {
    const std::string output = "killed" + std::to_string(sweeps);
    const fs::path rows = directory.path() / output / "rows.jsonl";
    for (bool done = false; !done;) {
      const RunningMoescope process(test::sweep_into(output), directory);
      if (kills < 20) {
        if (kills % 2 == 0) {
          std::this_thread::sleep_for(std::chrono::duration<double>(delay_s(random)));
        } else {
          wait_for_bytes(rows, size_or_none(rows) + further_bytes(random), process);
        }
        process.kill();
      }
      const Outcome outcome = process.wait();
      done = outcome.code == 0;
      kills += done ? 0 : 1;
      ASSERT_TRUE(done || outcome.code == -SIGKILL) << outcome.err;
    }
    const Contents actual = contents(directory.path() / output);
    EXPECT_EQ(actual.points, expected.points) << "each point once";
    EXPECT_EQ(actual.rows, expected.rows);
    resumed += read_rows(rows).size() > 1 ? 1 : 0;
    ASSERT_LT(sweeps, 100) << "kills come too late to interrupt anything";
  }
  EXPECT_GT(resumed, 0) << "some kill came between points";
}

TEST(Sweep, DoesNothingWhenNothingIsLeft) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  ASSERT_EQ(run_moescope(test::sweep_into("out"), directory).code, 0);
  const std::string before = read_text(directory.path() / "out" / "rows.jsonl");
  const Outcome again = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(read_text(directory.path() / "out" / "rows.jsonl"), before);
  for (const char* words :
       {"nothing was run: every point of this sweep was recorded before. To start anew,", "remove out\n"}) {
    EXPECT_NE(again.out.find(words), std::string::npos) << again.out;
  }
  fs::remove(directory.path() / "out" / "run.json");
  const Outcome without_run = run_moescope(test::sweep_into("out"), directory);
  EXPECT_NE(without_run.out.find("out/run.json is missing: it is made again of rows.jsonl"),
            std::string::npos)
      << without_run.out;
  EXPECT_TRUE(fs::exists(directory.path() / "out" / "run.json"));
}

TEST(Sweep, RefusesADirectoryOfAnotherExperiment) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json",
             R"({"name": "a", "axes": {"num_tokens": 8, "hidden_size": 8,
    "grid": "4x4", "top_k": 2}, "schedules": ["staircase"], "min_samples": 2, "max_time_s": 0.001})");
  ASSERT_EQ(run_moescope(test::sweep_into("out"), directory).code, 0);
  write_text(directory.path() / "experiment.json", kExperiment);
  const Outcome other = run_moescope(test::sweep_into("out"), directory);
  EXPECT_EQ(other.code, static_cast<int>(ExitCode::kBadFile));
  EXPECT_NE(other.err.find("experiment: is another one"), std::string::npos) << other.err;
}

TEST(Sweep, ListsItsPointsWithoutMeasuringThem) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  const Outcome outcome = run_moescope({"sweep", "experiment.json", "--dry-run"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("num_tokens 24, seed 1, uniform"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("moescope compare -L 24 -d 16 --grid 8x6 -K 4 --workload uniform --seed 1"),
            std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("12 points, 0 done"), std::string::npos) << outcome.out;
  EXPECT_FALSE(fs::exists(directory.path() / "results"));
}

TEST(Sweep, SharesItsPointsBetweenMachines) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  std::vector<std::string> points;
  for (const char* shard : {"1/5", "2/5", "3/5", "4/5", "5/5"}) {
    const Outcome outcome = run_moescope({"sweep", "experiment.json", "-q", "--shard", shard}, directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::string name = std::string("quick-cpu-") + shard[0] + "-of-5";
    const Contents part = contents(directory.path() / "results" / name);
    points.insert(points.end(), part.points.begin(), part.points.end());
  }
  std::ranges::sort(points);
  EXPECT_EQ(points.size(), 12U);
  EXPECT_EQ(std::ranges::adjacent_find(points), points.end()) << "no point twice";
}

TEST(Sweep, NamesFieldAndValueOfWhatCannotWorkAndWritesNothing) {
  const TemporaryDirectory directory;
  const auto message = [&](const std::string& text, std::vector<std::string> more = {}) {
    write_text(directory.path() / "experiment.json", text);
    more.insert(more.begin(), {"sweep", "experiment.json"});
    const Outcome outcome = run_moescope(more, directory);
    EXPECT_NE(outcome.code, 0);
    EXPECT_FALSE(fs::exists(directory.path() / "results")) << text;
    return outcome.err;
  };
  EXPECT_NE(message(R"({"name": "x", "axes": {"num_tokens": 0}})")
                .find("experiment.json: axes.num_tokens: 0: must be an integer >= 1"),
            std::string::npos);
  EXPECT_NE(
      message(R"({"name": "x", "metrics": ["speed"]})").find("metrics = speed: must be one of num_pairs"),
      std::string::npos);
  EXPECT_NE(message(kExperiment, {"--shard", "3/2"}).find("shard = 3/2"), std::string::npos);
  for (const std::string bad : {"much", "5", "1", "-1%", "05%", "nan", "%"}) {
    EXPECT_NE(message(kExperiment, {"--threshold", bad}).find("threshold = " + bad), std::string::npos);
  }
  for (const std::string bad : {"01/2", "1/02", "0/2", "1", "1/", "/2", "-1/2", "1/18446744073709551617"}) {
    EXPECT_NE(message(kExperiment, {"--shard", bad}).find("shard = " + bad), std::string::npos);
  }
  EXPECT_NE(message(R"({"name": "x", "workloads": ["zipf:010"]})").find("workloads: \"zipf:010\""),
            std::string::npos);
  EXPECT_NE(message(R"({"name": "x", "axes": {"grid": "010x010"}})").find("axes.grid: \"010x010\""),
            std::string::npos);
  EXPECT_NE(message(kExperiment, {"--backend", "abacus"}).find("backend = abacus"), std::string::npos);
}

TEST(Report, MakesOnePageOfASweep) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kExperiment);
  ASSERT_EQ(run_moescope(test::sweep_into("out"), directory).code, 0);
  const Outcome outcome = run_moescope({"report", "out/rows.jsonl", "--output", "page.html"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::string page = read_text(directory.path() / "page.html");
  EXPECT_NE(page.find("Figures</h2>\n<figure"), std::string::npos);
  EXPECT_NE(page.find("moescope compare -L 24 -d 16"), std::string::npos);
  // An address may stand in the library's banner; nothing is fetched.
  for (const char* text : {"src=\"", "src='", "href=\"http", "<link", "url(http", "@import"}) {
    EXPECT_EQ(page.find(text), std::string::npos) << text << ": needs no network";
  }
  EXPECT_EQ(run_moescope({"report", "absent"}, directory).code, static_cast<int>(ExitCode::kBadFile));
}

TEST(ExperimentFiles, AllParseAndCanBeListed) {
  int files = 0;
  for (const auto& entry :
       fs::directory_iterator(std::filesystem::path(test::source_dir()) / "experiments" / "configs")) {
    const TemporaryDirectory directory;
    const Experiment experiment = read_experiment(entry.path());
    EXPECT_EQ(experiment.name, entry.path().stem().string());
    EXPECT_FALSE(experiment.about.empty()) << entry.path();
    const bool modelled = std::ranges::any_of(
        experiment.points, [](const ExperimentPoint& point) { return !point.device.empty(); });
    const Outcome outcome = run_moescope(
        {"sweep", entry.path().string(), "--dry-run", "--backend", modelled ? "model" : "cpu"}, directory);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    ++files;
  }
  EXPECT_GE(files, 10);
}

TEST(ExperimentFiles, SkewSmallCoversEveryFamilyAndRunsOnACpu) {
  const auto file = std::filesystem::path(test::source_dir()) / "experiments" / "configs" / "skew-small.json";
  std::set<std::string> families;
  for (const ExperimentPoint& point : read_experiment(file).points) {
    families.insert(point.workload.substr(0, point.workload.find(':')));
  }
  EXPECT_EQ(families,
            (std::set<std::string>{"uniform", "gaussian", "zipf", "hot", "clustered", "drift", "snapshot"}));
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"sweep", file.string(), "-q", "--shard", "13/13", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  EXPECT_EQ(runs.at(0).points.at(0).status, Status::kOk) << runs[0].points[0].reason;
  EXPECT_EQ(runs[0].rows.at(0).workload, "snapshot:data/small_layer2.safetensors");
}

/// The first ```json block of the guide after the heading.
std::string guide_example() {
  const std::string text = read_text(std::filesystem::path(test::source_dir()) / "docs/guide/sweeps.md");
  const auto heading = text.find("## Write your own sweep");
  const auto begin = text.find("```json\n", heading) + 8;
  return text.substr(begin, text.find("```", begin) - begin);
}

TEST(Guide, ItsTenLineSweepRuns) {
  const TemporaryDirectory directory;
  const std::string example = guide_example();
  EXPECT_EQ(std::ranges::count(example, '\n'), 10) << example;
  write_text(directory.path() / "my-sweep.json", example);
  const Outcome outcome = run_moescope({"sweep", "my-sweep.json"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Experiment experiment = parse_experiment(example, "the guide");
  const auto runs = read_rows(directory.path() / "results" / (experiment.name + "-cpu") / "rows.jsonl");
  EXPECT_EQ(runs.at(0).points.size(), experiment.points.size());
  EXPECT_GE(experiment.points.size(), 4U);
  for (const RecordedPoint& point : runs[0].points) {
    EXPECT_EQ(point.status, Status::kOk) << point.reason;
  }
}

TEST(Sweep, SimulatesPointsAndDrawsWhichScheduleIsFastest) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "model.json", R"({
    "name": "model",
    "schedules": ["token_centric", "staircase"],
    "axes": {"device": ["h100-sxm", "h100-sxm@l2_bytes=1MiB"], "num_tokens": [8, 32], "top_k": [2, 8],
             "hidden_size": 16, "grid": "8x6"},
    "metrics": ["time_s", "hbm_read_bytes", "unevenness_nats"]
  })");
  const std::vector<std::string> command = {"sweep",   "model.json",      "--backend", "model",
                                            "--quiet", "--phase-diagram", "--output",  "out"};
  const Outcome outcome = run_moescope(command, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("NVIDIA H100 SXM5 80GB, l2_bytes=1MiB, gaussian:1"), std::string::npos)
      << outcome.out;
  EXPECT_TRUE(fs::exists(directory.path() / "out" / "phase-diagram.gp"));
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0].header.device, "modelled");
  EXPECT_EQ(runs[0].points.size(), 8U);
  std::string repro;
  for (const ResultRow& row : runs[0].rows) {
    EXPECT_TRUE(row.backend.starts_with("sim: NVIDIA H100")) << row.backend;
    EXPECT_NE(row.source, Source::kMeasured);
    repro = row.repro;
  }
  EXPECT_NE(repro.find("moescope simulate -L 32"), std::string::npos) << repro;
  EXPECT_NE(repro.find("--device h100-sxm@l2_bytes=1MiB"), std::string::npos) << repro;
  // The command of a row gives its value again.
  std::istringstream words(repro);
  std::vector<std::string> again(std::istream_iterator<std::string>(words), {});
  again.erase(again.begin());
  again.insert(again.end(), {"--quiet", "--output", "again"});
  EXPECT_EQ(run_moescope(again, directory).code, 0);
  const auto repeated = read_rows(directory.path() / "again" / "rows.jsonl");
  const ResultRow& wanted = runs[0].rows.back();
  const auto same = std::ranges::find_if(repeated.at(0).rows, [&](const ResultRow& row) {
    return row.schedule == wanted.schedule && row.stage == wanted.stage && row.metric == wanted.metric;
  });
  ASSERT_NE(same, repeated[0].rows.end());
  EXPECT_EQ(same->value, wanted.value);
  // Nothing is left to do, and a backend that measures has no such devices.
  EXPECT_EQ(run_moescope(command, directory).code, 0);
  EXPECT_EQ(read_rows(directory.path() / "out" / "rows.jsonl").size(), 1U);
  const Outcome measured = run_moescope({"sweep", "model.json", "--quiet", "--output", "cpu"}, directory);
  EXPECT_EQ(measured.code, static_cast<int>(ExitCode::kInvalidArgument));
  EXPECT_NE(measured.err.find("device = h100-sxm: is for --backend model"), std::string::npos)
      << measured.err;
}

TEST(Sweep, TileTokensChangeWhatStripsReadAndNothingElse) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json",
             R"({"name": "tiles", "schedules": ["staircase", "staircase:rows", "token_centric"],
    "workloads": ["gaussian:1"],
    "axes": {"tile_tokens": [8, 32, 128], "num_tokens": 256, "hidden_size": 64, "grid": "16x16", "top_k": 16}})");
  const Outcome outcome =
      run_moescope({"sweep", "experiment.json", "--backend", "model", "-q", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::map<std::string, std::map<std::int64_t, double>>
      requested;  // of L2 by the experts, by schedule and tile
  std::int64_t other_points = 0;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric != "l2_read_bytes" || row.stage != "experts") continue;
    EXPECT_EQ(row.tile_tokens.has_value(), row.schedule.starts_with("staircase")) << row.schedule;
    if (row.tile_tokens) {
      requested[row.schedule][*row.tile_tokens] = row.value.value();
      EXPECT_NE(row.repro.find("--tile-tokens " + std::to_string(*row.tile_tokens)), std::string::npos)
          << row.repro;
    } else {
      ++other_points;
    }
  }
  EXPECT_EQ(other_points, 3);
  for (const char* schedule : {"staircase", "staircase:rows"}) {
    const auto& of_tiles = requested[schedule];
    ASSERT_EQ(of_tiles.size(), 3U) << schedule;
    EXPECT_GT(of_tiles.at(8), 1.2 * of_tiles.at(32)) << schedule << ": each tile reads its W and V";
    EXPECT_GT(of_tiles.at(32), 1.02 * of_tiles.at(128)) << schedule;
  }
}

TEST(Sweep, FailsModelledPointsWithAReason) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "model.json", R"({
    "name": "model", "systems": ["omnimoe", "peer"], "schedules": ["staircase"],
    "axes": {"num_tokens": 8, "hidden_size": 16, "num_experts": 64, "top_k": [4, 65]}
  })");
  const Outcome outcome =
      run_moescope({"sweep", "model.json", "--backend", "model", "--quiet", "--output", "out"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  std::map<Status, int> points;
  for (const RecordedPoint& point : runs.at(0).points) {
    ++points[point.status];
  }
  EXPECT_EQ(points,
            (std::map<Status, int>{{Status::kOk, 1}, {Status::kFailed, 3}}));  // a peer needs key_size
  EXPECT_NE(outcome.out.find("top_k = 65"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace moescope
