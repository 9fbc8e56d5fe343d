// The real program's help: its lines, its examples, completion and manual page made from the same tree.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "core/files/npz_writer.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/help_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::commands;
using test::lines_of;
using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

std::string help_of(const std::string& command) {
  const TemporaryDirectory directory;
  const Outcome help =
      command.empty() ? run_moescope({"--help"}, directory) : run_moescope({command, "--help"}, directory);
  EXPECT_EQ(help.code, 0) << command << help.err;
  return help.out;
}

/// Commands of the examples of a help text, lines joined as a shell does.
std::vector<std::string> examples_of(const std::string& help) {
  std::vector<std::string> examples;
  bool inside = false;
  bool goes_on = false;
  for (std::string line : lines_of(help)) {
    inside = (inside && line.starts_with("  ")) || line.starts_with("Example");
    if (!inside || line.starts_with("Example")) {
      continue;
    }
    line = line.substr(line.find_first_not_of(' '));
    const bool continues = line.ends_with(" \\");
    line = continues ? line.substr(0, line.size() - 1) : line;
    if (goes_on) {
      examples.back() += line;
    } else {
      examples.push_back(line);
    }
    goes_on = continues;
  }
  return examples;
}

TEST(Help, HasShortLinesAndExamplesEverywhere) {
  const auto names = commands();
  ASSERT_GE(names.size(), 20U);
  for (const std::string& name : names) {
    const std::string help = help_of(name);
    for (const std::string& line : lines_of(help)) {
      EXPECT_LE(text_width(line), 100U) << name << ": " << line;
    }
    EXPECT_FALSE(examples_of(help).empty()) << name;
    const char first = help.front();
    EXPECT_TRUE(first >= 'a' && first <= 'z') << name << ": all alike in style: " << help.substr(0, 60);
    EXPECT_NE(help.find("Usage: moescope " + name + " [OPTIONS]"), std::string::npos) << help;
  }
  for (const std::string& line : lines_of(help_of(""))) {
    EXPECT_LE(text_width(line), 100U) << line;
  }
}

TEST(Help, CallsEveryValueByAName) {
  for (const std::string& name : commands()) {
    const std::string help = help_of(name);
    for (const char* type : {" TEXT", " INT", " UINT", " FLOAT", " VALUE"}) {
      EXPECT_EQ(help.find(type), std::string::npos) << name << type;
    }
  }
}

/// What examples name, in a folder of their own; rows are of the repository.
class HelpExamples : public testing::TestWithParam<std::string> {
 protected:
  HelpExamples() {
    const fs::path here = directory_.path();
    for (const char* folder : {"data", "experiments", "tests"}) {
      fs::create_directory_symlink(test::source_path(folder), here / folder);
    }
    for (const char* folder : {"results/old", "results/before", "results/after", "results/skew-small-cpu",
                               "before", "after", "one-gpu", "another", "profile", "ceilings", "results"}) {
      fs::create_directories(here / folder);
    }
    for (const char* folder : {"h100", "h200"}) {
      fs::create_directory_symlink(test::source_path(std::string("results/") + folder),
                                   here / "results" / folder);
    }
    const fs::path rows = test::source_path("results/h100/layer-64-512.jsonl");
    for (const char* file : {"rows.jsonl", "results/before/rows.jsonl", "results/after/rows.jsonl",
                             "before/rows.jsonl", "after/rows.jsonl", "one-gpu/rows.jsonl",
                             "another/rows.jsonl", "results/skew-small-cpu/rows.jsonl"}) {
      fs::copy_file(rows, here / file);
    }
    fs::copy_file(test::source_path("tests/data/import/trace.npz"), here / "mine.npz");
    make_recorded_routing();
    fs::copy_file(test::source_path("results/h100/profile.jsonl"), here / "profile/rows.jsonl");
    fs::copy_file(test::source_path("results/h100/ceilings.jsonl"), here / "ceilings/rows.jsonl");
    write_text(here / "my.json", R"({"name": "mine", "schedules": ["staircase"], "workloads": ["gaussian:1"],
        "axes": {"num_tokens": 8, "hidden_size": 16, "grid": "8x6", "top_k": 4}, "min_samples": 2,
        "max_time_s": 0.01})");
    fs::create_directories(here / "bin");
    fs::create_symlink(test::moescope_binary(), here / "bin/moescope");
  }

  /// What engines record, and a checkpoint: `import` reads it.
  void make_recorded_routing() const {
    const fs::path here = directory_.path();
    fs::copy_file(test::source_path("tests/data/import/routed_experts.npz"), here / "routing.npz");
    fs::copy_file(test::source_path("tests/data/import/mixtral/hidden.safetensors"),
                  here / "hidden.safetensors");
    for (const auto& [folder, name] : {std::pair("mixtral", "checkpoint"), {"megatron", "trace_folder"}}) {
      fs::create_directory_symlink(test::source_path(std::string("tests/data/import/") + folder),
                                   here / name);
    }
    constexpr std::int64_t kExperts = 64;
    std::vector<float> logits;
    for (std::int64_t i = 0; i < 6 * kExperts; ++i) {
      logits.push_back(static_cast<float>(i * 37 % 101) / 101);
    }
    write_text(here / "router_logits.npy", test::npy("<f4", "(6, 64)", test::bytes_of(logits)));
    const std::vector<std::int64_t> ids = {0, 7, 63, 5, 1, 2, 8, 9, 4, 3, 6, 62};  // [2 tokens, 2 layers, 3]
    write_text(here / "topk.npz", npz_content({{"my_ids", file_array<std::int64_t>(ids, {2, 2, 3})}}));
  }

  /// Exit code of a line of shell, at a terminal of 80 columns.
  int run(const std::string& line) const {
    const std::string shell = "cd '" + directory_.path().string() +
                              "' && export COLUMNS=80 PATH=\"$PWD/bin:$PATH\" && " + line +
                              " >out.txt 2>err.txt";
    const int status = std::system(shell.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string output() const { return test::read_text(directory_.path() / "out.txt"); }
  std::string error() const { return test::read_text(directory_.path() / "err.txt"); }

  TemporaryDirectory directory_;
};

/// The example at a size for tests: the same options, smaller extents.
std::string at_test_size(std::string line) {
  const auto has = [&](const char* word) { return line.find(word) != std::string::npos; };
  const auto replace = [&](const std::string& from, const std::string& to) {
    for (std::size_t at = 0; (at = line.find(from, at)) != std::string::npos; at += to.size()) {
      line.replace(at, from.size(), to);
    }
  };
  for (const char* preset : {"table-a-1024-512", "table-a-4096-512"}) {
    replace(preset, "tiny");
  }
  if (!has("--system")) {
    replace("--preset table-a", "--preset tiny");
  }
  replace(" --full", "");
  replace("-L 1024", "-L 32");
  const std::string command = line.substr(0, line.find(' ', 9));
  for (const char* name : {"compare", "run", "check", "inspect", "profile", "simulate"}) {
    if (command == std::string("moescope ") + name && !has(" -L ") && !has("num_tokens=") && !has("trace:") &&
        !has("mine.npz")) {
      line += " -L 32";
    }
  }
  for (const char* name : {"compare", "run", "profile", "ceilings"}) {
    if (command == std::string("moescope ") + name) {
      line += has("--min-samples") || has("--rows") ? "" : " --min-samples 2";
      line += has("--max-time") || has("--rows") ? "" : " --max-time 0.01";
    }
  }
  replace("top_k=64,512", "top_k=4,8");
  const std::string h100 = " results/h100/compare-";  // held-out shapes need three of them
  replace("validate rows.jsonl --fit",
          "validate" + h100 + "1-512.jsonl.gz" + h100 + "64-512.jsonl.gz" + h100 + "256-512.jsonl.gz --fit");
  replace("--max-time 20", "--max-time 0.01");
  replace("experiments/configs/skew-small.json",
          "experiments/configs/skew-small.json --shard 1/13 --output results/skew");
  for (const char* name : {"simulate", "paper", "validate"}) {
    if (command == std::string("moescope ") + name) {
      line += " --max-accesses 20000";
    }
  }
  for (const std::string gpu : {"h100", "h200"}) {
    replace("validate results/" + gpu + "/compare-*.jsonl.gz",
            "validate results/" + gpu + "/compare-64-*.jsonl.gz");
    replace("moescope report results/" + gpu + "/*.jsonl*",
            "moescope report results/" + gpu + "/compare-64-*.jsonl*");
  }
  replace("--layer 2", "--layer 1");  // the checkpoint has two
  if (command == "moescope calibrate") {
    // With a GPU the first measures; without, all are made of rows, of few points here.
    replace("results/h200/compare-*.jsonl.gz",
            "results/h200/compare-64-*.jsonl.gz --output made --max-accesses 2000");
    replace("validation.jsonl.gz --part calibration",
            "compare-64-512.jsonl.gz --part calibration --max-accesses 2000");
    replace("--record results/calibrate",
            "--record results/calibrate --part device,rates --output made --min-samples 2 --max-time 0.01");
  }
  return line;
}

/// Whether it prints what is not for reading at a terminal.
bool is_for_programs(const std::string& line) {
  const std::vector<std::string> marks = {"--format", "--json", "--wide", " completion",
                                          " schema",  " man",   "|",      ">"};
  return std::ranges::any_of(marks, [&](const auto& mark) { return line.find(mark) != std::string::npos; });
}

TEST_P(HelpExamples, AllRun) {
  // A trace of two tokens with two experts each, in a grid of 64 x 64.
  std::string header = "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 2), }";
  header.resize(117, ' ');
  std::string trace = std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + '\n';
  for (const char expert : {1, 2, 3, 4}) {
    trace += expert + std::string(7, '\0');
  }
  write_text(directory_.path() / "routing.npy", trace);
  ASSERT_EQ(run("moescope sweep my.json -q --output results/mine"), 0) << error();
  fs::copy_file(directory_.path() / "results/mine/rows.jsonl", directory_.path() / "results/old/rows.jsonl");
  for (const std::string& example : examples_of(help_of(GetParam()))) {
    if (example.starts_with("ncu ") && std::system("command -v ncu >/dev/null 2>&1") != 0) {
      continue;  // NVIDIA's profiler does not come with this program
    }
    const std::string line = at_test_size(example);
    const int code = run(line);
    std::set<int> expected = {0};
    if (line.find("cuda") != std::string::npos || line.find("counters --check") != std::string::npos) {
      expected.insert(static_cast<int>(ExitCode::kNoDevice));
      expected.insert(static_cast<int>(ExitCode::kNoCounters));
    }
    if (line.starts_with("moescope diff") || line.find("--baseline") != std::string::npos) {
      expected.insert(static_cast<int>(ExitCode::kCheckFailed));  // two measurements differ, or not
    }
    EXPECT_TRUE(expected.contains(code)) << line << "\nexit code " << code << '\n' << error();
    if (!is_for_programs(line)) {
      test::expect_fits(output(), 80, line);
      test::expect_fits(error(), 80, line);
    }
  }
}

const std::vector<std::string> kCommands = {
    "compare",   "run",      "sweep",    "diff",   "check",   "inspect",    "place",    "profile", "ceilings",
    "calibrate", "roofline", "headroom", "report", "claims",  "golden",     "counters", "doctor",  "simulate",
    "validate",  "paper",    "schema",   "import", "presets", "completion", "man"};

INSTANTIATE_TEST_SUITE_P(Of, HelpExamples, testing::ValuesIn(kCommands),
                         [](const auto& one) { return one.param; });

TEST(Help, ListsNoCommandWhoseExamplesAreNotRun) { EXPECT_EQ(commands(), kCommands); }

TEST(Help, ListsPresetsWithTheirShapes) {
  const TemporaryDirectory directory;
  const Outcome csv = run_moescope({"presets", "--format", "csv"}, directory);
  EXPECT_NE(csv.out.find("omnimoe,table-a-1024-512,1024,1024,102400,512,320x320,1024,,,,\"paper Table A"),
            std::string::npos)
      << csv.out;
  EXPECT_NE(csv.out.find("peer,table-a,"), std::string::npos) << csv.out;
}

TEST(Help, NamesOptionsInErrorsAsTyped) {
  const TemporaryDirectory directory;
  const std::vector<std::pair<std::vector<std::string>, std::string>> calls = {
      {{"run", "-L", "0"}, "moescope: -L = 0: must be >= 1\n"},
      {{"run", "--num-tokens", "0"}, "moescope: --num-tokens = 0: must be >= 1\n"},
      {{"run", "--num-tokens=0"}, "moescope: --num-tokens = 0: must be >= 1\n"},
      {{"run", "-L", "x"}, "moescope: -L = 'x': must be a whole number"},
      {{"run", "--num-tokens", "x"}, "moescope: --num-tokens = 'x': must be a whole number"},
      {{"compare", "--format", "xml"}, "moescope: --format = xml: must be table, md, csv or json\n"},
  };
  for (const auto& [arguments, message] : calls) {
    const Outcome outcome = run_moescope(arguments, directory);
    EXPECT_TRUE(outcome.err.starts_with(message)) << outcome.err;
  }
}

TEST(Completion, OffersCommandsAndOptionsInBash) {
  const TemporaryDirectory directory;
  const auto complete = [&](const std::string& words, int index) {
    const std::string script = "eval \"$('" + test::moescope_binary() + "' completion bash)\"; COMP_WORDS=(" +
                               words + "); COMP_CWORD=" + std::to_string(index) +
                               "; _moescope; echo \"${COMPREPLY[@]}\"";
    write_text(directory.path() / "script.sh", script);
    EXPECT_EQ(std::system(("bash '" + (directory.path() / "script.sh").string() + "' >'" +
                           (directory.path() / "out.txt").string() + "'")
                              .c_str()),
              0);
    return test::read_text(directory.path() / "out.txt");
  };
  EXPECT_EQ(complete("moescope si", 1), "simulate\n");
  EXPECT_EQ(complete("moescope run --num-t", 2), "--num-tokens\n");
  EXPECT_EQ(complete("moescope completion z", 2), "zsh\n");
  EXPECT_EQ(complete("moescope run --seed ''", 3), "\n") << "a number: nothing to offer";
}

TEST(Completion, NamesEveryCommandForEveryShell) {
  const TemporaryDirectory directory;
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome outcome = run_moescope({"completion", shell}, directory);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    for (const std::string& command : kCommands) {
      EXPECT_NE(outcome.out.find(command), std::string::npos) << shell << command;
    }
    EXPECT_NE(outcome.out.find("min-samples"), std::string::npos) << shell;
    // Each shell that is here reads its own without a complaint.
    if (std::system((std::string("command -v ") + shell + " >/dev/null 2>&1").c_str()) == 0) {
      EXPECT_EQ(
          std::system(
              (std::string(shell) + " -n '" + (directory.path() / "stdout.txt").string() + "'").c_str()),
          0)
          << shell;
    }
  }
  EXPECT_EQ(run_moescope({"completion", "csh"}, directory).code,
            static_cast<int>(ExitCode::kInvalidArgument));
}

TEST(ManPage, HasEveryCommand) {
  const TemporaryDirectory directory;
  const Outcome page = run_moescope({"man"}, directory);
  EXPECT_TRUE(page.out.starts_with(".TH moescope 1 ")) << page.out.substr(0, 80);
  for (const std::string& command : kCommands) {
    EXPECT_NE(page.out.find(".SS moescope " + command + "\n"), std::string::npos) << command;
  }
  if (std::system("command -v groff >/dev/null 2>&1") == 0) {
    EXPECT_EQ(std::system(("groff -man -Tutf8 -ww -z '" + (directory.path() / "stdout.txt").string() +
                           "' 2>'" + (directory.path() / "groff.txt").string() + "'")
                              .c_str()),
              0);
    EXPECT_EQ(test::read_text(directory.path() / "groff.txt"), "");
  }
}

}  // namespace
}  // namespace moescope
