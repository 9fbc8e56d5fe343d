// What was recorded on every GPU says what README claims of it. Needs no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <string>

#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/recorded_rows.hpp"

namespace moescope {
namespace {

constexpr double kMillisecond = 1e-3;
constexpr double kMebibyte = 1024.0 * 1024.0;

class RecordedDevice : public test::RecordedGpu {
 protected:
  /// The runs of a file as one, each built from a committed revision.
  static RecordedRun read(const std::string& name) {
    RecordedRun all;
    for (RecordedRun& run : read_rows(file(name))) {
      all.header = run.header;
      std::ranges::move(run.rows, std::back_inserter(all.rows));
    }
    return all;
  }
  /// Of moescope itself: nothing failed when it was recorded.
  static RecordedRun read_own(const std::string& name) {
    auto run = read(name);
    EXPECT_EQ(run.header.git_revision.size(), 40U) << name;
    EXPECT_FALSE(run.header.git_dirty) << name;
    const auto failed = std::ranges::find(run.rows, Status::kFailed, &ResultRow::status);
    EXPECT_EQ(failed, run.rows.end()) << name << ": " << failed->reason;
    return run;
  }
};
INSTANTIATE_TEST_SUITE_P(Gpus, RecordedDevice, testing::ValuesIn(test::recorded_gpu_names()),
                         [](const auto& gpu) { return gpu.param; });

/// Folders below results/ with measured rows.
std::vector<std::string> measured_folders() {
  std::vector<std::string> folders = test::recorded_gpu_names();
  folders.emplace_back("cpu");
  return folders;
}

double experts_time_s(const RecordedRun& run, const std::string& schedule, std::int64_t num_tokens,
                      std::int64_t top_k) {
  double sum = 0;
  for (const auto& row : run.rows) {
    const bool expert_stage =
        row.stage == "experts" || row.stage == "expert_scores" || row.stage == "expert_combine";
    if (row.metric == "time_s" && expert_stage && row.schedule == schedule && row.workload == "gaussian:1" &&
        row.num_tokens == num_tokens && row.top_k == top_k) {
      EXPECT_GE(row.samples, 10) << schedule;
      sum += row.value.value();
    }
  }
  EXPECT_GT(sum, 0) << schedule << " L" << num_tokens << " K" << top_k;
  return sum;
}

/// The last of each quantity, as readers take it. Rows of known work and of devices have no layer.
TEST(RecordedRows, CountOfALayerWhatItsStagesCount) {
  std::int64_t layers = 0;
  for (const std::string& machine : measured_folders()) {
    for (const auto& file : test::recorded_rows(machine)) {
      for (const RecordedRun& run : read_rows(file)) {
        std::map<std::string, std::map<std::string, double>> counts;
        for (const ResultRow& row : run.rows) {
          const bool counted = row.source == Source::kAnalytic &&
                               (row.metric == "useful_flop" || row.metric == "executed_flop" ||
                                row.metric.ends_with("_read_bytes") || row.metric.ends_with("_write_bytes"));
          if (!counted || row.system == "known_work") {
            continue;
          }
          const bool fixed = row.workload == "uniform" || row.workload.starts_with("trace:");
          EXPECT_FALSE(fixed && row.stage.starts_with("router_")) << file << ' ' << row.stage;
          std::ostringstream name;
          name << row.point << ' ' << row.system << ' ' << row.schedule << ' ' << row.group_size.value_or(0)
               << ' ' << row.tile_tokens.value_or(0) << ' ' << row.num_tokens << ' ' << row.hidden_size << ' '
               << row.grid_rows << 'x' << row.grid_cols << ' ' << row.top_k << ' '
               << row.shared_size.value_or(-1) << ' ' << row.dtype << ' ' << row.workload << ' ' << row.seed
               << ' ' << row.metric;
          counts[name.str()][row.stage] = *row.value;
        }
        for (const auto& [name, of_stage] : counts) {
          ASSERT_TRUE(of_stage.contains("layer")) << file << ' ' << name;
          double sum = 0;
          for (const auto& [stage, value] : of_stage) {
            sum += stage == "layer" ? 0 : value;
          }
          EXPECT_EQ(of_stage.at("layer"), sum) << file << ' ' << name;
          ++layers;
        }
      }
    }
  }
  EXPECT_GT(layers, 5000);
}

/// Whoever wrote them: the program, scripts/gpu_evidence.py or experiments/peers. Of a long file its
/// beginning and every 16th line: one run's rows are alike.
TEST(RecordedRows, KeepToThePublishedSchema) {
  constexpr std::int64_t kAll = 500;
  constexpr std::int64_t kStep = 16;
  const test::JsonSchema schema(nlohmann::json::parse(result_schema_json()));
  int files = 0;
  for (const std::string& machine : measured_folders()) {
    for (const auto& file : test::recorded_rows(machine)) {
      ++files;
      std::istringstream lines(test::read_packed_text(file));
      std::int64_t number = 0;
      for (std::string line; std::getline(lines, line);) {
        ++number;
        if (number > kAll && number % kStep != 0) {
          continue;
        }
        ASSERT_EQ(schema.violation(nlohmann::json::parse(line)), "") << file << ", line " << number;
      }
    }
  }
  EXPECT_GE(files, 10);
}

/// A device's rows stay small enough to clone: what is large is packed.
TEST_P(RecordedDevice, TakesLessThan20MB) {
  std::uintmax_t bytes = 0;
  for (const auto& file : test::recorded_rows(GetParam())) {
    bytes += std::filesystem::file_size(file);
  }
  EXPECT_LT(bytes, 20U * 1000 * 1000);
}

TEST_P(RecordedDevice, ChecksOfEveryStageAndScheduleHold) {
  const auto run = read_own("check.jsonl.gz");
  std::map<std::string, int> layers;
  for (const auto& row : run.rows) {
    if (row.status == Status::kSkipped) {
      EXPECT_NE(row.reason, "") << row.schedule;
    } else if (row.metric == "relative_error") {
      EXPECT_LE(row.value.value(), row.dtype == "bf16" ? 4e-3 : 1e-5) << row.stage << ' ' << row.reason;
      layers[row.schedule] += row.stage == "layer" ? 1 : 0;
    }
    if (row.metric == "wrong_pairs" || row.metric == "mismatch") {
      EXPECT_EQ(row.value.value(), 0) << row.stage << ' ' << row.reason;
    }
  }
  for (const char* schedule :
       {"token_centric", "expert_centric", "staircase", "dense_masked", "sparse_library"}) {
    EXPECT_GE(layers[schedule], 20) << schedule;
  }
}

/// Every experiment that is for a GPU: all its points, and an error of every layer that has a time.
TEST_P(RecordedDevice, HasEveryExperimentWithAnErrorAtEveryPoint) {
  const auto configs = std::filesystem::path(test::source_dir()) / "experiments" / "configs";
  const auto recorded = test::recorded_rows(GetParam());
  std::vector<std::string> missing;
  std::size_t found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(configs)) {
    const Experiment experiment = read_experiment(entry.path());
    if (!experiment.minutes.contains("cuda")) {
      continue;
    }
    const auto file = std::ranges::find_if(recorded, [&](const std::filesystem::path& path) {
      return path.filename().string().starts_with(experiment.name + ".jsonl");
    });
    if (file == recorded.end()) {
      missing.push_back(experiment.name);
      continue;
    }
    std::set<std::string> points;
    std::map<std::string, std::optional<double>> errors;  // of a layer that was timed
    for (const RecordedRun& run : read_rows(*file)) {
      EXPECT_FALSE(run.header.git_dirty) << *file;
      for (const RecordedPoint& point : run.points) {
        points.insert(point.status == Status::kOk ? point.id : point.id + ": " + point.reason);
      }
      for (const ResultRow& row : run.rows) {
        const std::string layer = row.point + " " + row.schedule + " " + row.repro;
        if (row.stage == "layer" && row.metric == "time_s" && row.status == Status::kOk) {
          errors.try_emplace(layer);
        } else if (row.stage == "layer" && row.metric == "relative_error") {
          errors[layer] = row.value;
        }
      }
    }
    ++found;
    for (const ExperimentPoint& point : experiment.points) {
      EXPECT_TRUE(points.contains(point.id)) << *file << ": " << point.label;
    }
    for (const auto& [layer, error] : errors) {
      ASSERT_TRUE(error.has_value()) << *file << ": " << layer;
      EXPECT_LE(*error, 4e-3) << *file << ": " << layer;
    }
  }
  // All of them or none: what a part of the sweeps recorded is half a table.
  EXPECT_TRUE(found == 0 || missing.empty()) << missing.size() << " not recorded, " << missing.front();
}

TEST_P(RecordedDevice, GpuTestsPassedAndNoneWasSkipped) {
  double passed = 0;
  for (const auto& row : read_own("gpu_tests.jsonl").rows) {
    // kernels_gpu_rates_test is host code that reads recorded rows, which were not on that machine; CI runs
    // it.
    if (row.metric == "tests_failed" && row.reason != "kernels_gpu_rates_test") {
      EXPECT_EQ(row.value.value(), 0) << row.reason;
    }
    passed += row.metric == "tests_passed" ? row.value.value() : 0;
  }
  EXPECT_GT(passed, 1000);
}

/// Of each program the last: what had findings ran again once they were mended.
TEST_P(RecordedDevice, SanitizersFindNothingInOurKernels) {
  std::map<std::string, double> findings;
  for (const auto& row : read_own("sanitizers.jsonl").rows) {
    if (row.metric == "sanitizer_findings") {
      findings[row.reason] = row.value.value();
    }
  }
  std::map<std::string, int> programs;
  for (const auto& [program, number] : findings) {
    EXPECT_EQ(number, 0) << program;
    ++programs[program.substr(0, program.find(' '))];
  }
  for (const char* tool : {"memcheck", "racecheck", "initcheck", "synccheck"}) {
    EXPECT_GE(programs[tool], 10) << tool;
  }
}

TEST_P(RecordedDevice, BaselinesAreNoSlowerThanTheirPyTorchPeers) {
  const auto peers = read("torch_peers.jsonl");
  struct Point {
    std::int64_t num_tokens;
    std::int64_t top_k;
  };
  for (const auto& [num_tokens, top_k] :
       {Point{64, 512}, Point{1024, 512}, Point{4096, 512}, Point{1024, 4096}}) {
    const auto ours =
        read_own("compare-" + std::to_string(num_tokens) + "-" + std::to_string(top_k) + ".jsonl.gz");
    EXPECT_LE(experts_time_s(ours, "dense_masked", num_tokens, top_k),
              1.1 * experts_time_s(peers, "dense_masked", num_tokens, top_k));
    EXPECT_LE(experts_time_s(ours, "token_centric", num_tokens, top_k),
              experts_time_s(peers, "gather", num_tokens, top_k));
  }
  const auto table_a = read_own("compare-4096-512.jsonl.gz");
  if (table_a.header.device != "NVIDIA H100 80GB HBM3") {
    return;  // README's own numbers are of that one
  }
  EXPECT_LE(experts_time_s(table_a, "token_centric", 4096, 512), 10.4 * kMillisecond);
  EXPECT_LE(experts_time_s(table_a, "dense_masked", 4096, 512), 1.1 * 3.92 * kMillisecond);
}

TEST_P(RecordedDevice, StaircaseAndTokenCentricStayUnder64MiBOfExtraMemory) {
  int seen = 0;
  for (const auto& row : read_own("profile.jsonl").rows) {
    if (row.metric == "workspace_bytes" && row.stage == "layer" &&
        (row.schedule == "staircase" || row.schedule == "token_centric")) {
      EXPECT_LT(row.value.value(), 64 * kMebibyte) << row.schedule;
      ++seen;
    }
  }
  EXPECT_GE(seen, 2);
}

}  // namespace
}  // namespace moescope
