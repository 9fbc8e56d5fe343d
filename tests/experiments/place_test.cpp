// The real program: `place`, and layers on several ranks.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
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

/// Rows of the first table of --format json by placement.
std::map<std::string, nlohmann::json> by_placement(const std::string& text) {
  std::map<std::string, nlohmann::json> rows;
  const auto document = nlohmann::json::parse(text);
  for (const auto& row : document.at("tables").at(0).at("rows")) {
    rows[row.at("placement")] = row;
  }
  return rows;
}

std::string trace() { return test::source_path("tests/data/traces/ffn64_unbalanced_layer1.npz"); }

TEST(Place, ShowsEveryPlacementThatFitsAndAConclusion) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"place", trace(), "-d", "256", "--expert-size", "128"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* name : {"linear", "round_robin", "lpt", "eplb", "clustered", "clustered+tokens"}) {
    EXPECT_NE(outcome.out.find(name), std::string::npos) << outcome.out;
  }
  EXPECT_EQ(outcome.out.find("strips"), std::string::npos) << "a flat router has none";
  EXPECT_NE(outcome.out.find("Judged on the last 2048 tokens"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("copies do not pay. With eplb "), std::string::npos) << outcome.out;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("  ") != std::string::npos) {
      EXPECT_LE(line.size(), 120U) << line;
    }
  }
}

TEST(Place, WritesRowsAndAFigure) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"place", trace(), "-d", "256", "--ranks", "4", "--nodes", "2", "--links", "--placement",
                    "linear", "--placement", "eplb:4", "--output", "out"},
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const test::JsonSchema schema(
      nlohmann::json::parse(read_text(test::source_path("core/results/result.schema.json"))));
  std::istringstream lines(read_text(directory.path() / "out/rows.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "") << line;
  }
  const auto runs = read_rows(directory.path() / "out/rows.jsonl");
  std::set<std::string> seen;
  for (const ResultRow& row : runs.at(0).rows) {
    seen.insert(row.placement + " " + row.metric);
    EXPECT_EQ(row.ranks, 4);
    EXPECT_EQ(row.peer.has_value(), row.metric == "link_bytes");
  }
  for (const char* metric : {"load_max_over_mean", "link_bytes", "between_nodes_bytes", "rank_experts"}) {
    EXPECT_TRUE(seen.contains(std::string("eplb:4 ") + metric)) << metric;
  }
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out/placement.gp"));
  const Outcome report = run_moescope({"report", "out/rows.jsonl", "--output", "out.html"}, directory);
  EXPECT_EQ(report.code, 0) << report.err;
}

/// A trained router of Table A's size, 1024 tokens of text: the 64 hottest strips on every rank, chosen on
/// one half and judged on the other. Counted by NumPy with its own covers of strips. Of all 4096 tokens that
/// were recorded it is 1.5 at P = 8 and 1.7 at P = 64.
TEST(Place, StripsWithHotOnesTouchFewRanksOnATrainedRouter) {
  struct Counted {
    const char* ranks;
    double strips;
    double hot;
  };
  const TemporaryDirectory directory;
  const std::string workload = "snapshot:" + test::source_path("data/tablea_layer2_1024.safetensors");
  for (const Counted& numpy :
       {Counted{"8", 7.330078125, 1.787109375}, Counted{"64", 17.189453125, 2.0859375}}) {
    const Outcome outcome =
        run_moescope({"place", "--workload", workload, "--ranks", numpy.ranks, "--placement", "strips",
                      "--placement", "strips+hot:64", "--format", "json"},
                     directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    auto rows = by_placement(outcome.out);
    EXPECT_NEAR(rows["strips"]["ranks/token"].get<double>(), numpy.strips, 1e-9);
    EXPECT_NEAR(rows["strips+hot:64"]["ranks/token"].get<double>(), numpy.hot, 1e-9);
  }
}

TEST(Place, TakesEverySystemAndWorkload) {
  const TemporaryDirectory directory;
  for (const char* system : {"gshard", "deepseekmoe", "pkm", "peer", "omnimoe"}) {
    for (const char* workload : {"zipf:1", "hot:0.5,4", "uniform"}) {
      const Outcome outcome = run_moescope({"place", "--system", system, "--preset", "small", "--workload",
                                            workload, "-L", "64", "--ranks", "3"},
                                           directory);
      EXPECT_EQ(outcome.code, 0) << system << workload << outcome.err;
    }
  }
}

TEST(Place, RefusesWhatCannotWork) {
  const TemporaryDirectory directory;
  const auto message = [&](std::vector<std::string> arguments) {
    const Outcome outcome = run_moescope(std::move(arguments), directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.err;
    return outcome.err;
  };
  EXPECT_EQ(message({"place", trace(), "--ranks", "0"}), "moescope: --ranks = 0: must be from 1 to 1024\n");
  EXPECT_EQ(message({"place", trace(), "--ranks", "8", "--nodes", "3"}),
            "moescope: --nodes = 3: must divide ranks = 8\n");
  EXPECT_NE(message({"place", trace(), "--placement", "best"}).find("--placement = best: must be linear"),
            std::string::npos);
  EXPECT_EQ(message({"place", trace(), "--output", "out"}),
            "moescope: hidden_size = 0: rows name it, and the routing does not say it: must be given\n");
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "out"));
  EXPECT_EQ(message({"place", trace(), "--workload", "zipf:1"}),
            "moescope: --workload = zipf:1: cannot be given beside a file\n");
}

// ---- layers on several ranks

TEST(RanksOfALayer, RunAndWriteRowsOfEachRank) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"run", "--ranks", "4", "--placement", "lpt", "--exchange", "dispatch",
                          "--shared-size", "8", "--workload", "zipf:1", "--output", "out"}),
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("4 ranks, placement lpt, exchange dispatch: busiest over mean"),
            std::string::npos)
      << outcome.out;
  std::map<std::string, std::set<std::int64_t>> ranks;
  std::map<std::string, double> whole;
  const auto runs = read_rows(directory.path() / "out/rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.schedule == "none") {
      continue;
    }
    EXPECT_EQ(row.ranks, 4);
    EXPECT_EQ(row.placement, "lpt");
    EXPECT_EQ(row.exchange, "dispatch");
    if (row.rank) {
      ranks[row.metric + " " + row.stage].insert(*row.rank);
    } else if (row.value) {
      whole[row.metric + " " + row.stage] = *row.value;
    }
  }
  for (const char* stage : {"router_project", "router_select", "token_dispatch", "schedule", "experts",
                            "token_combine", "shared_mlp"}) {
    EXPECT_EQ(ranks[std::string("time_s ") + stage].size(), 4U) << stage;
    EXPECT_GT(whole[std::string("time_s ") + stage], 0) << stage;
  }
  EXPECT_EQ(whole["moved_bytes layer"], whole["exchange_bytes layer"]);
  EXPECT_GT(whole["moved_bytes layer"], 0);
  EXPECT_LE(whole["relative_error layer"], 4e-3);
  EXPECT_FALSE(whole.contains("hbm_read_bytes layer")) << "of one device";
}

TEST(RanksOfALayer, AreComparedCheckedAndSwept) {
  const TemporaryDirectory directory;
  const Outcome compared = run_moescope(
      small({"compare", "--ranks", "3", "--placement", "strips", "--workload", "zipf:1", "--output", "c"}),
      directory);
  EXPECT_EQ(compared.code, 0) << compared.err;
  EXPECT_NE(compared.out.find("staircase: 3 ranks, placement strips, exchange gather"), std::string::npos)
      << compared.out;
  const Outcome checked =
      run_moescope({"check", "--ranks", "8", "--placement", "strips+hot:4", "--exchange", "dispatch",
                    "--grid", "8x6", "-d", "16", "-K", "4", "-L", "21", "--workload", "zipf:1", "--verbose"},
                   directory);
  EXPECT_EQ(checked.code, 0) << checked.out << checked.err;
  EXPECT_NE(checked.out.find("exchange against its plan"), std::string::npos) << checked.out;
  test::write_text(directory.path() / "ranks.json", R"({"name": "ranks", "schedules": ["staircase"],
      "workloads": ["zipf:1"], "axes": {"num_tokens": 16, "hidden_size": 16, "grid": "8x6", "top_k": 4,
      "ranks": 2, "placement": ["linear", "strips"], "exchange": ["gather", "dispatch"]},
      "min_samples": 2, "max_time_s": 0.01})");
  const Outcome swept = run_moescope({"sweep", "ranks.json", "-q", "--output", "s"}, directory);
  EXPECT_EQ(swept.code, 0) << swept.out << swept.err;
  std::set<std::string> seen;
  const auto runs = read_rows(directory.path() / "s/rows.jsonl");
  for (const ResultRow& row : runs.at(0).rows) {
    if (row.metric == "relative_error") {
      seen.insert(row.placement + " " + row.exchange);
      EXPECT_NE(row.repro.find("--ranks 2 --placement " + row.placement), std::string::npos) << row.repro;
    }
  }
  EXPECT_EQ(seen,
            (std::set<std::string>{"linear gather", "linear dispatch", "strips gather", "strips dispatch"}));
}

TEST(RanksOfALayer, AreRefusedWhereThereAreNone) {
  const TemporaryDirectory directory;
  const auto message = [&](std::vector<std::string> arguments) {
    const Outcome outcome = run_moescope(small(std::move(arguments)), directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.err;
    return outcome.err;
  };
  EXPECT_EQ(message({"run", "--placement", "strips"}),
            "moescope: --placement = strips: is for several ranks: --ranks\n");
  EXPECT_EQ(message({"run", "--ranks", "65"}), "moescope: --ranks = 65: must be from 1 to 64\n");
  EXPECT_NE(message({"run", "--ranks", "2", "--schedule", "dense_masked"}).find("dense_masked"),
            std::string::npos);
}

TEST(Place, BoundsTheRowsOfLinks) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"place", "--grid", "64x64", "-L", "64", "-K", "4", "-d", "16", "--workload", "zipf:1",
                    "--ranks", "1024", "--placement", "linear", "--links", "--output", "out"},
                   directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.out;
  EXPECT_NE(outcome.err.find("links = 1024 ranks, 1 placements, 1 layers: --links would write up to 4190208 "
                             "rows, and at most 1000000 are written"),
            std::string::npos)
      << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "out"));
}

}  // namespace
}  // namespace moescope
