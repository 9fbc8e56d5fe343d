// What the real program prints fits the terminal: every command, its help and its errors at 80 columns.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/help_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::commands;
using test::expect_fits;
using test::lines_of;
using test::Outcome;
using test::run_moescope;
using test::small;
using test::TemporaryDirectory;
using Arguments = std::vector<std::string>;

/// COLUMNS of the programs that are started while it lives.
class Columns {
 public:
  explicit Columns(const char* columns) {
    const char* before = std::getenv("COLUMNS");
    before_ = before == nullptr ? "" : before;
    ::setenv("COLUMNS", columns, 1);
  }
  ~Columns() { before_.empty() ? ::unsetenv("COLUMNS") : ::setenv("COLUMNS", before_.c_str(), 1); }
  Columns(const Columns&) = delete;
  Columns& operator=(const Columns&) = delete;
  Columns(Columns&&) = delete;
  Columns& operator=(Columns&&) = delete;

 private:
  std::string before_;
};

std::string words_of(const std::string& text) {
  std::string words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) {
    words += word == "\\" ? "" : word + ' ';
  }
  return words;
}

/// Calls that print every kind of text a command has. `paper` takes seconds at any size: it is among the
/// examples of help_test.cpp, which fit too.
std::multimap<std::string, Arguments> calls(const TemporaryDirectory& directory) {
  const std::string recorded = test::source_path("results/h100/compare-64-512.jsonl.gz");
  const std::string ceilings = test::source_path("results/h100/ceilings.jsonl");
  const std::string profile = test::source_path("results/h200/profile.jsonl");
  for (const char* name : {"compare", "ceilings", "profile", "layers"}) {
    const std::string from = name == std::string("ceilings")  ? ceilings
                             : name == std::string("profile") ? profile
                                                              : recorded;
    const std::string ending = from.ends_with(".gz") ? ".jsonl.gz" : ".jsonl";
    std::filesystem::copy_file(from, directory.path() / (name + ending));
  }
  for (const char* name : {"trace.npz", "mixtral"}) {
    std::filesystem::create_directory_symlink(test::source_path(std::string("tests/data/import/") + name),
                                              directory.path() / name);
  }
  std::filesystem::copy_file(test::source_path("tests/data/golden/pkm.npz"), directory.path() / "pkm.npz");
  test::write_text(directory.path() / "my.json",
                   R"({"name": "mine", "schedules": ["staircase", "token_centric"], "workloads": ["zipf:1"],
       "axes": {"num_tokens": [8, 16], "hidden_size": 16, "grid": "8x6", "top_k": [2, 4]}, "min_samples": 2,
       "max_time_s": 0.01})");
  const auto more = [](Arguments arguments, const Arguments& rest) {
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    return arguments;
  };
  return {
      {"compare", small({"compare", "--output", "compare"})},
      {"compare", more(small({"compare", "--output", "auto"}), {"--schedule", "auto", "--explain"})},
      {"run", small({"run"})},
      {"run", small({"run", "--schedule", "auto", "--explain"})},
      {"run", small({"run", "--direction", "backward"})},
      {"run", small({"run", "--ranks", "2", "--placement", "strips", "--exchange", "dispatch"})},
      {"run",
       {"run", "--system", "gshard", "--preset", "small", "-L", "32", "--min-samples", "2", "--max-time",
        "0.01"}},
      {"sweep", {"sweep", "my.json", "--dry-run"}},
      {"sweep", {"sweep", "my.json", "--output", "sweep", "--phase-diagram"}},
      {"diff", {"diff", "compare.jsonl.gz", "layers.jsonl.gz", "--all"}},
      {"diff", {"diff", "compare.jsonl.gz", "profile.jsonl", "--any-device"}},
      {"check", {"check", "-L", "32", "-d", "16", "--grid", "8x6", "-K", "4", "--verbose"}},
      {"check", {"check", "--system", "peer", "-L", "32"}},
      {"inspect", {"inspect", "--preset", "tiny", "-L", "32", "--direction", "backward"}},
      {"inspect", {"inspect", "trace.npz"}},
      {"place", {"place", "--preset", "tiny", "-L", "64", "--ranks", "4", "--output", "place"}},
      {"profile", small({"profile", "--output", "profile"})},
      {"profile", small({"profile", "--profile"})},
      {"ceilings", {"ceilings", "--min-samples", "2", "--max-time", "0.01"}},
      {"calibrate",
       {"calibrate", "--recorded", "--rows", "ceilings.jsonl", "--rows", "compare.jsonl.gz", "--output",
        "made", "--max-accesses", "2000"}},
      {"roofline", {"roofline", "profile.jsonl", "--output", "roofline"}},
      {"headroom", {"headroom", "ceilings.jsonl", "compare.jsonl.gz"}},
      {"report", {"report", "compare.jsonl.gz", "--baseline", "layers.jsonl.gz"}},
      {"claims", {"claims", "compare.jsonl.gz"}},
      {"golden", {"golden", "pkm.npz"}},
      {"counters", {"counters"}},
      {"doctor", {"doctor"}},
      {"simulate", {"simulate", "--preset", "tiny", "-L", "64", "--max-accesses", "2000"}},
      {"simulate",
       {"simulate", "--preset", "tiny", "--max-accesses", "2000", "--vary", "num_tokens=16,32", "--device",
        "h200-sxm,b200"}},
      {"validate", {"validate", "compare.jsonl.gz", "--max-accesses", "2000"}},
      {"import", {"import", "trace.npz", "--output", "layers.npz"}},
      {"import", {"import", "mixtral", "--layer", "1", "--output", "layer.safetensors"}},
      {"import", {"import", "trace.npz", "--against", "trace.npz"}},
      {"presets", {"presets"}},
  };
}

TEST(Narrow, EveryCommandFitsEightyColumns) {
  const TemporaryDirectory directory;
  const Columns narrow("80");
  const auto all = calls(directory);
  for (const std::string& name : commands()) {
    const bool for_programs = name == "schema" || name == "completion" || name == "man";
    if (name == "paper") continue;
    EXPECT_EQ(all.contains(name), !for_programs) << name;
  }
  for (const auto& [name, arguments] : all) {
    const Outcome outcome = run_moescope(arguments, directory);
    const std::string what = fmt::format("{}", fmt::join(arguments, " "));
    EXPECT_TRUE(outcome.code == 0 || (name == "diff" && outcome.code == 1)) << what << '\n' << outcome.err;
    EXPECT_GT(lines_of(outcome.out).size(), 0U) << what;
    expect_fits(outcome.out, 80, what);
    expect_fits(outcome.err, 80, what);
  }
}

TEST(Narrow, HelpFitsTheTerminalAndSaysTheSame) {
  const TemporaryDirectory directory;
  std::vector<std::string> names = commands();
  names.emplace_back();
  for (const std::string& name : names) {
    const Arguments arguments = name.empty() ? Arguments{"--help"} : Arguments{name, "--help"};
    std::map<std::string, std::string> words;
    for (const char* columns : {"60", "80", "200"}) {
      const Columns here(columns);
      const Outcome outcome = run_moescope(arguments, directory);
      expect_fits(outcome.out, std::min<std::size_t>(std::strtoul(columns, nullptr, 10), 100),
                  name + " --help");
      words[columns] = words_of(outcome.out);
    }
    EXPECT_EQ(words["60"], words["200"]);
    EXPECT_EQ(words["80"], words["200"]);
  }
}

TEST(Narrow, ErrorsFitATerminalAndAreOneLineInAFile) {
  const TemporaryDirectory directory;
  for (const Arguments& arguments : std::vector<Arguments>{{"run", "--preset", "nope"},
                                                           {"run", "--workload", "nope:3"},
                                                           {"run", "--scedule", "x"},
                                                           {"sweep", "none.json"},
                                                           {"run", "--backend", "cuda", "--preset", "tiny"},
                                                           {"import"},
                                                           {}}) {
    const Outcome in_file = run_moescope(arguments, directory);
    const Columns narrow("60");
    const Outcome outcome = run_moescope(arguments, directory);
    const std::string what = fmt::format("{}", fmt::join(arguments, " "));
    expect_fits(outcome.err, 60, what);
    EXPECT_EQ(lines_of(in_file.err).size(), outcome.code == 0 ? 0U : 1U) << in_file.err;
    EXPECT_EQ(words_of(outcome.err), words_of(in_file.err));
  }
}

TEST(Narrow, WhatProgramsReadIsLeftAlone) {
  const TemporaryDirectory directory;
  const Columns narrow("40");
  EXPECT_NE(run_moescope({"presets", "--format", "csv"}, directory).out.find("small,"), std::string::npos);
  for (const Arguments& arguments : std::vector<Arguments>{{"presets", "--format", "csv"},
                                                           {"presets", "--wide"},
                                                           {"schema", "result"},
                                                           {"presets", "--format", "md"},
                                                           {"presets", "--format", "json"},
                                                           {"man"}}) {
    const std::string here = run_moescope(arguments, directory).out;
    const Columns wide("100000");
    const std::string there = run_moescope(arguments, directory).out;
    if (arguments.back() == "--wide") {  // sentences are fitted, tables are not
      EXPECT_EQ(here.substr(0, here.find("\n\n")), there.substr(0, there.find("\n\n")));
    } else {
      EXPECT_EQ(here, there);
    }
  }
}

}  // namespace
}  // namespace moescope
