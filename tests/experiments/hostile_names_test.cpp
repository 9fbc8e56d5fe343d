// Names from files of rows, devices and workloads are shown and never obeyed: by gnuplot, a browser, a
// spreadsheet, a terminal.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

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
using test::TemporaryDirectory;
using test::write_text;

/// What would run in a shell or in gnuplot, end a string, a tag or a line, or move a terminal's cursor; in
/// the name of a file, too.
constexpr const char* kHostile =
    "a`touch owned`$(touch owned)'\"%d\\<script>alert(1)<|script>&amp;{x}_@y\x1b[2J\xe9";
/// As a person sees it.
constexpr const char* kShown =
    "a`touch owned`$(touch owned)'\"%d\\<script>alert(1)<|script>&amp;{x}_@y\\x1b[2J\\xe9";

std::string html_of(std::string text) {
  const auto replace = [&](const std::string& from, const std::string& to) {
    for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
      text.replace(at, from.size(), to);
    }
  };
  replace("&", "&amp;");
  replace("<", "&lt;");
  replace(">", "&gt;");
  replace("\"", "&quot;");
  replace("'", "&#39;");
  return text;
}

/// Files under `directory`, but for what the test itself makes.
std::set<std::string> files_of(const fs::path& directory) {
  std::set<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    files.insert(entry.path().filename().string());
  }
  return files;
}

void expect_harmless(const Outcome& outcome, const TemporaryDirectory& directory) {
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos) << "an escape sequence reaches the terminal";
  EXPECT_EQ(outcome.out.find('\xe9'), std::string::npos) << "not UTF-8";
  EXPECT_FALSE(files_of(directory.path()).contains("owned")) << "a name was run";
}

/// The figure shows the name, of a long one both ends; passes where there is no gnuplot.
void expect_shown(const fs::path& svg) {
  if (!fs::exists(svg)) {
    return;
  }
  const std::string text = read_text(svg);
  EXPECT_EQ(text.find("<script>"), std::string::npos) << svg;
  EXPECT_EQ(text.find('\x1b'), std::string::npos) << svg;
  for (const char* word : {"a`touch owned`$(", "_@y\\x1b[2J\\xe9"}) {
    EXPECT_NE(text.find(word), std::string::npos) << svg << " lacks " << word;
  }
}

ResultRow row_of(const std::string& schedule, std::int64_t num_tokens, double value) {
  ResultRow row;
  row.set_shape(
      LayerShape{.num_tokens = num_tokens, .hidden_size = 8, .grid_rows = 4, .grid_cols = 4, .top_k = 2});
  row.schedule = schedule;
  row.stage = "layer";
  row.backend = "cpu";
  row.workload = kHostile;
  row.l2_state = "cold";
  row.metric = "time_s";
  row.unit = "s";
  row.value = value;
  row.repro = "moescope run";
  return row;
}

/// rows.jsonl of a run whose names are all hostile, with ceilings.
void write_rows(const fs::path& file) {
  RunHeader header;
  header.run_id = "run";
  header.command_line = kHostile;
  header.device = kHostile;
  header.driver = kHostile;
  header.git_revision = "0123456789";
  header.started_utc = "2026-01-02T03:04:05Z";
  const auto folder = file.parent_path() / "made";
  {
    ResultWriter writer(folder, header);
    for (const char* metric :
         {"hbm_copy_bytes_per_s", "hbm_read_bytes_per_s", "l2_read_bytes_per_s", "bf16_matrix_flop_per_s"}) {
      ResultRow ceiling = row_of("none", 0, 1e9);
      ceiling.system = ceiling.dtype = ceiling.workload = ceiling.l2_state = "none";
      ceiling.stage = kDeviceStage;
      ceiling.hidden_size = ceiling.grid_rows = ceiling.grid_cols = ceiling.top_k = 0;
      ceiling.shared_size.reset();
      ceiling.metric = metric;
      ceiling.unit = ceiling.metric.ends_with("flop_per_s") ? "flop_per_s" : "bytes_per_s";
      writer.write(ceiling);
    }
    for (const std::int64_t tokens : {16, 32}) {
      writer.write(row_of(kHostile, tokens, 1e-3));
      writer.write(row_of("staircase", tokens, 2e-3));
    }
  }
  fs::rename(folder / "rows.jsonl", file);
  fs::remove_all(folder);
}

TEST(HostileNames, InRowsReachPageFigureAndTableAsText) {
  const TemporaryDirectory directory;
  write_rows(directory.path() / "rows.jsonl");
  Outcome outcome = run_moescope({"report", "rows.jsonl", "--output", "page.html"}, directory);
  expect_harmless(outcome, directory);
  const std::string page = read_text(directory.path() / "page.html");
  // The page's own script; with a plotting library that, too, and the figures' data.
  std::set<std::size_t> scripts;
  for (std::size_t at = page.find("<script"); at != std::string::npos; at = page.find("<script", at + 1)) {
    scripts.insert(at);
  }
  EXPECT_EQ(scripts.size(), outcome.out.find("figures: none") == std::string::npos ? 3U : 1U) << outcome.out;
  EXPECT_EQ(page.find('\x1b'), std::string::npos);
  // The writer of rows has replaced the byte that is no UTF-8.
  const std::string shown = std::string(kShown).substr(0, std::string(kShown).find("\\xe9"));
  for (const std::string before : {"<td class=t>", "<b>", "<code>"}) {
    EXPECT_NE(page.find(before + html_of(shown)), std::string::npos) << before;
  }
  outcome = run_moescope({"roofline", "rows.jsonl", "--output", "."}, directory);
  expect_harmless(outcome, directory);
  EXPECT_NE(outcome.out.find(shown), std::string::npos) << outcome.out;
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--format", "md"}}) {
    std::vector<std::string> arguments = {"claims", "rows.jsonl"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_harmless(run_moescope(arguments, directory), directory);
  }
}

TEST(HostileNames, OfAWorkloadsFileReachTableTraceAndFigureAsText) {
  const TemporaryDirectory directory;
  std::string name = std::string(kHostile) + ".safetensors";
  ASSERT_EQ(run_moescope({"inspect", "-L", "8", "-d", "16", "--grid", "8x6", "-K", "4", "--workload",
                          "zipf:1", "--save-trace", name},
                         directory)
                .code,
            0);
  ASSERT_TRUE(fs::exists(directory.path() / name));
  const auto with_shape = [&](std::vector<std::string> arguments) {
    for (const char* more : {"--min-samples", "2", "--max-time", "0.01", "-d", "16"}) {
      arguments.emplace_back(more);
    }
    return run_moescope(std::move(arguments), directory);
  };
  expect_harmless(run_moescope({"inspect", "-d", "16", "--workload", "trace:" + name}, directory), directory);
  const Outcome profile = with_shape({"profile", "--source", "none", "--schedule", "token_centric",
                                      "--workload", "trace:" + name, "--output", "profile"});
  expect_harmless(profile, directory);
  EXPECT_NE(profile.out.find(kShown), std::string::npos) << profile.out;
  const auto trace = nlohmann::json::parse(read_text(directory.path() / "profile" / "trace.json"));
  EXPECT_NE(trace.dump().find(nlohmann::json(kShown).dump().substr(1, 40)), std::string::npos);
  const Outcome compare = with_shape({"compare", "--workload", "trace:" + name, "--workload", "zipf:1", "-L",
                                      "8", "--grid", "8x6", "-K", "4", "--output", "compare"});
  expect_harmless(compare, directory);
  EXPECT_NE(compare.out.find(kShown), std::string::npos) << compare.out;
  expect_shown(directory.path() / "compare" / "skew.svg");
}

TEST(HostileNames, OfADeviceReachThePhaseDiagramAsText) {
  const TemporaryDirectory directory;
  auto device = nlohmann::json::parse(read_text(test::source_path("data/devices/h100-sxm/device.json")));
  device["name"] = "a`touch owned`$(touch owned)'\"%d {x}_@y\x1b[2J";
  write_text(directory.path() / "device.json", device.dump());
  write_text(directory.path() / "phase.json",
             R"({"name": "phase", "schedules": ["token_centric", "staircase"], "workloads": ["gaussian:1"],
                 "axes": {"num_tokens": [16, 32], "hidden_size": 64, "grid": "8x8", "top_k": [2, 4]}})");
  const Outcome outcome = run_moescope({"sweep", "phase.json", "--backend", "model", "--device",
                                        "device.json", "--phase-diagram", "--output", "phase"},
                                       directory);
  expect_harmless(outcome, directory);
  EXPECT_NE(outcome.out.find("a`touch owned`$(touch owned)'\"%d {x}_@y\\x1b[2J"), std::string::npos)
      << outcome.out;
  if (const fs::path svg = directory.path() / "phase" / "phase-diagram.svg"; fs::exists(svg)) {
    EXPECT_NE(read_text(svg).find("a`touch owned`$(touch owned)"), std::string::npos);
  }
}

}  // namespace
}  // namespace moescope
