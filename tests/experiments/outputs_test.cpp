#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/results/result.hpp"
#include "tests/support/file_size_limit.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

/// Runs the real program: what it writes, and what it leaves alone.
namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::Outcome;
using test::read_text;
using test::run_moescope;
using test::RunningMoescope;
using test::small;
using test::TemporaryDirectory;
using test::write_text;
using Words = std::vector<std::string>;

constexpr int kInvalid = static_cast<int>(ExitCode::kInvalidArgument);
constexpr int kBadFile = static_cast<int>(ExitCode::kBadFile);

constexpr const char* kTwoPoints =
    R"({"name": "a", "axes": {"num_tokens": [8, 16], "hidden_size": 8, "grid": "4x4", "top_k": 2},
    "schedules": ["token_centric", "staircase"], "min_samples": 2, "max_time_s": 0.001})";

Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

const Words kShape = {"-L", "8", "--grid", "4x4", "-d", "8", "-K", "2", "-q"};
const Words kQuick = {"--min-samples", "2", "--max-time", "0.01"};

std::string recorded(const std::string& name) { return test::source_path("results/h100/" + name); }

/// Every command that fills a folder, but for --output; none takes longer than a moment.
std::map<std::string, Words> folder_commands() {
  return {
      {"run", Words{"run", "--workload", "zipf:1"} + kShape + kQuick},
      {"compare", Words{"compare", "--workload", "zipf:1"} + kShape + kQuick},
      {"compare systems",
       Words{"compare", "--system", "gshard", "-L", "8", "--num-experts", "4", "-d", "8", "-q"} + kQuick},
      {"profile", Words{"profile", "--source", "none", "--schedule", "token_centric"} + kShape + kQuick},
      {"inspect", Words{"inspect"} + kShape},
      {"check", Words{"check", "--schedule", "token_centric"} + kShape},
      {"check systems", {"check", "--system", "gshard", "-L", "8", "--num-experts", "4", "-d", "8", "-q"}},
      {"simulate", Words{"simulate", "--schedule", "token_centric"} + kShape},
      {"ceilings", Words{"ceilings", "-q"} + kQuick},
      {"paper", {"paper", "-q", "--max-accesses", "100000"}},
      {"sweep", {"sweep", "experiment.json", "-q"}}};
}

/// Names and contents of everything below a folder.
std::map<std::string, std::string> every_file_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    files[entry.path().lexically_relative(folder)] =
        entry.is_regular_file() ? read_text(entry.path()) : std::string("no file");
  }
  return files;
}

TEST(Outputs, OfEveryCommandArePutIntoAFolderThatIsMade) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kTwoPoints);
  for (const auto& [name, words] : folder_commands()) {
    if (name == "paper") {
      continue;  // half a minute; the others show that these lines run
    }
    const fs::path out = directory.path() / "deep" / name;
    const Outcome outcome = run_moescope(words + Words{"--output", out.string()}, directory);
    EXPECT_EQ(outcome.code, 0) << name << ": " << outcome.err;
    for (const char* file : {"rows.jsonl", "rows.csv", "run.json"}) {
      EXPECT_TRUE(fs::exists(out / file)) << name << ' ' << file;
    }
    for (const auto& entry : fs::directory_iterator(out)) {
      EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
    }
  }
}

TEST(Outputs, ThatCannotBeMadeAreRefusedBeforeAnyWork) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kTwoPoints);
  write_text(directory.path() / "file", "mine");
  auto commands = folder_commands();
  commands["roofline"] = {"roofline", recorded("ceilings.jsonl")};
  commands["validate"] = {"validate", recorded("compare-1-512.jsonl.gz"), "--max-accesses", "1000000"};
  for (const auto& [name, words] : commands) {
    for (const std::string& output :
         {std::string("file"), std::string("file/below"), std::string(300, 'x')}) {
      // Without -q, to see whether anything was begun.
      Words loud = words + Words{"--output", output};
      std::erase(loud, "-q");
      const Outcome outcome = run_moescope(loud, directory);
      EXPECT_EQ(outcome.code, kBadFile) << name << ": " << outcome.err;
      EXPECT_NE(outcome.err.find(output), std::string::npos) << outcome.err;
      EXPECT_EQ(outcome.out, "") << name;
      EXPECT_EQ(outcome.err.find("[1/"), std::string::npos) << name << ": " << outcome.err;
    }
  }
  EXPECT_EQ(read_text(directory.path() / "file"), "mine");
}

TEST(Outputs, OfOneFileThatCannotBeMadeAreRefusedBeforeAnyWork) {
  const TemporaryDirectory directory;
  const std::vector<Words> commands = {
      {"validate", recorded("compare-1-512.jsonl.gz"), "--max-accesses", "1000000", "--fit"},
      {"report", recorded("ceilings.jsonl"), "--output"},
      Words{"inspect", "-L", "8", "--grid", "4x4", "-d", "8", "-K", "2", "--save-trace"}};
  for (const Words& words : commands) {
    const Outcome outcome = run_moescope(words + Words{"gone/x.safetensors"}, directory);
    EXPECT_EQ(outcome.code, kBadFile) << words[0] << ": " << outcome.err;
    EXPECT_NE(outcome.err.find("gone/x.safetensors"), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.out, "") << words[0];
    EXPECT_EQ(outcome.err.find("[1/"), std::string::npos) << outcome.err;
  }
  // A folder that cannot be made, too.
  write_text(directory.path() / "file", "mine");
  const Outcome folder = run_moescope(
      {"calibrate", "--recorded", "--rows", recorded("ceilings.jsonl"), "--output", "file"}, directory);
  EXPECT_EQ(folder.code, kBadFile) << folder.err;
  EXPECT_EQ(folder.out, "");
  EXPECT_EQ(read_text(directory.path() / "file"), "mine");
}

TEST(Outputs, LeaveNothingWhenALaterArgumentIsRefused) {
  const TemporaryDirectory directory;
  const std::string elsewhere = recorded("ceilings.jsonl");  // of another device
  const std::vector<Words> commands = {
      folder_commands()["profile"] + Words{"--ceilings", elsewhere},
      folder_commands()["run"] + Words{"--schedule", "staircase", "--tile-tokens", "-1"},
      folder_commands()["inspect"] + Words{"--workload", "zipf:1", "--workload", "hot:0.5,5"},
      folder_commands()["inspect"] + Words{"--save-trace", "t.npz"},
      folder_commands()["profile"] + Words{"--workload", "zipf:1", "--workload", "hot:0.5,5"},
      folder_commands()["simulate"] + Words{"--vary", "top_k=2,17"},
      folder_commands()["simulate"] + Words{"--workload", "zipf:1", "--workload", "hot:0.5,5"}};
  for (const Words& words : commands) {
    for (int again = 0; again < 2; ++again) {
      const Outcome outcome = run_moescope(words + Words{"--output", "out"}, directory);
      EXPECT_EQ(outcome.code, kInvalid) << words[0] << ": " << outcome.err;
      EXPECT_EQ(outcome.out, "") << words[0];
      EXPECT_FALSE(fs::exists(directory.path() / "out")) << words[0];
    }
  }
}

TEST(Outputs, StayAwayFromSomebodysFolder) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kTwoPoints);
  for (const auto& [name, words] : folder_commands()) {
    Words files = {"run.json", "rows.csv", "rows.jsonl"};
    if (name == "compare") {
      files = files + Words{"skew.gp", "skew.svg"};
    } else if (name == "profile") {
      files = files + Words{"trace.json", "counters-1-token_centric.json"};
    }
    for (const std::string& file : files) {
      const fs::path own = directory.path() / "own";
      fs::remove_all(own);
      fs::create_directory(own);
      write_text(own / file, "mine\n");
      const Outcome outcome = run_moescope(words + Words{"--output", "own"}, directory);
      EXPECT_EQ(outcome.code, kBadFile) << name << ": " << outcome.err;
      EXPECT_NE(outcome.err.find("own/" + file), std::string::npos) << outcome.err;
      EXPECT_EQ(every_file_of(own), (std::map<std::string, std::string>{{file, "mine\n"}})) << name;
    }
  }
}

/// An input under three names.
class Input {
 public:
  Input(const fs::path& file, const std::string& text) : file_(file), text_(text) { write_text(file, text); }
  std::vector<fs::path> names() const {
    const fs::path soft = file_.parent_path() / ("soft-" + file_.filename().string());
    const fs::path hard = file_.parent_path() / ("hard-" + file_.filename().string());
    fs::create_symlink(file_.filename(), soft);
    fs::create_hard_link(file_, hard);
    return {file_, soft, hard};
  }
  bool is_kept() const { return read_text(file_) == text_; }

 private:
  fs::path file_;
  std::string text_;
};

TEST(Outputs, OfCalibrateReplaceNoInput) {
  const TemporaryDirectory directory;
  const std::string device = read_text(test::source_path("data/devices/h100-sxm/device.json"));
  const std::string rows = read_text(recorded("ceilings.jsonl"));
  fs::create_directory(directory.path() / "made");
  write_text(directory.path() / "made/device.json", device);
  write_text(directory.path() / "made/rates.json", rows);
  for (const Words& words : {Words{"--rows", "made/rates.json"},
                             Words{"--rows", recorded("ceilings.jsonl"), "--like", "made/device.json"}}) {
    const Outcome outcome =
        run_moescope(Words{"calibrate", "--recorded", "--output", "made"} + words, directory);
    EXPECT_EQ(outcome.code, kInvalid) << outcome.err;
    EXPECT_EQ(read_text(directory.path() / "made/device.json"), device);
    EXPECT_EQ(read_text(directory.path() / "made/rates.json"), rows);
  }
}

TEST(Outputs, NeverReplaceAnInput) {
  const TemporaryDirectory directory;
  ASSERT_EQ(run_moescope(Words{"inspect", "--save-trace", "made.safetensors"} + kShape, directory).code, 0);
  const std::string trace = (directory.path() / "t.safetensors").string();
  const std::string rows = (directory.path() / "r.jsonl").string();
  const std::string device = (directory.path() / "d.json").string();
  const std::string calibration = (directory.path() / "c.json").string();
  const Input inputs[] = {
      {trace, read_text(directory.path() / "made.safetensors")},
      {rows, read_text(recorded("ceilings.jsonl"))},
      {device, read_text(test::source_path("data/devices/h100-sxm/device.json"))},
      {calibration, read_text(test::source_path("data/devices/h100-sxm/calibration.json"))}};
  const Words validate = {
      "validate", recorded("compare-1-512.jsonl.gz"), "-q", "--calibration", calibration, "--device", device,
      "--fit"};
  const std::vector<std::pair<int, Words>> commands = {
      {0, {"inspect", "-d", "8", "--workload", "trace:" + trace, "--save-trace"}},
      {1, {"report", rows, "--output"}},
      {2, validate},
      {3, validate}};
  std::map<int, std::vector<fs::path>> names;
  for (int i = 0; i < 4; ++i) {
    names[i] = inputs[i].names();
  }
  for (const auto& [input, words] : commands) {
    for (const fs::path& name : names[input]) {
      const Outcome outcome = run_moescope(words + Words{name.string()}, directory);
      EXPECT_EQ(outcome.code, kInvalid) << words[0] << ' ' << name << ": " << outcome.err;
      EXPECT_EQ(outcome.out, "") << words[0];
      EXPECT_TRUE(inputs[input].is_kept()) << words[0] << ' ' << name;
    }
  }
}

TEST(Outputs, InAFolderNeverReplaceAnInput) {
  const TemporaryDirectory directory;
  fs::create_directory(directory.path() / "out");
  const auto place = [&](const std::string& name, const std::string& text) {
    write_text(directory.path() / "out" / name, text);
    return "out/" + name;
  };
  const std::string rows = read_text(recorded("ceilings.jsonl"));
  const std::vector<Words> commands = {
      {"roofline", place("roofline.gp", rows)},
      {"roofline", place("roofline.svg", rows)},
      {"validate", place("predictions.csv", rows), recorded("compare-1-512.jsonl.gz"), "-q"},
      {"validate", recorded("compare-1-512.jsonl.gz"), "-q", "--fit", "out/validation.svg"},
      {"sweep", place("phase-diagram.gp", kTwoPoints), "-q"},
      {"sweep", place("rows.csv", kTwoPoints), "-q"}};
  const auto before = every_file_of(directory.path() / "out");
  for (const Words& words : commands) {
    const Outcome outcome = run_moescope(words + Words{"--output", "out"}, directory);
    EXPECT_EQ(outcome.code, kInvalid) << words[0] << ' ' << words[1] << ": " << outcome.err;
    EXPECT_EQ(every_file_of(directory.path() / "out"), before) << words[0] << ' ' << words[1];
  }
}

TEST(Outputs, OfASweepAreNotItsBaselineUnlessTheyOnlyGrow) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kTwoPoints);
  const Words sweep = {"sweep", "experiment.json", "-q", "--output", "out"};
  ASSERT_EQ(run_moescope(sweep, directory).code, 0);
  write_text(directory.path() / "out" / "phase-diagram.gp",
             read_text(directory.path() / "out" / "rows.jsonl"));
  const auto before = every_file_of(directory.path() / "out");
  const Words against = sweep + Words{"--phase-diagram", "--baseline"};
  EXPECT_EQ(run_moescope(against + Words{"out/phase-diagram.gp"}, directory).code, kInvalid);
  EXPECT_EQ(every_file_of(directory.path() / "out"), before);
  EXPECT_EQ(run_moescope(sweep + Words{"--baseline", "out/rows.jsonl"}, directory).code, 0);
  EXPECT_EQ(read_text(directory.path() / "out" / "rows.jsonl"), before.at("rows.jsonl"));
}

TEST(Outputs, ThatSomebodyWritesAlreadyHaveOneWinner) {
  const TemporaryDirectory directory;
  for (int round = 0; round < 10; ++round) {
    const std::string out = "out" + std::to_string(round);
    std::vector<std::unique_ptr<RunningMoescope>> crowd;
    for (int j = 0; j < 6; ++j) {
      crowd.push_back(std::make_unique<RunningMoescope>(
          Words{"inspect", "--seed", std::to_string(j), "--output", out} + kShape, directory));
    }
    int winners = 0;
    for (const auto& each : crowd) {
      const int code = each->wait().code;
      winners += code == 0 ? 1 : 0;
      EXPECT_TRUE(code == 0 || code == kBadFile) << code;
    }
    EXPECT_EQ(winners, 1);
    const auto runs = read_rows(directory.path() / out / "rows.jsonl");
    ASSERT_EQ(runs.size(), 1U);
    EXPECT_FALSE(runs[0].rows.empty());
  }
}

TEST(Outputs, OfRunsOfOneSecondHaveAFolderEach) {
  const TemporaryDirectory directory;
  std::vector<std::unique_ptr<RunningMoescope>> crowd;
  for (int j = 0; j < 4; ++j) {
    crowd.push_back(std::make_unique<RunningMoescope>(folder_commands()["compare"], directory));
  }
  for (const auto& each : crowd) {
    EXPECT_EQ(each->wait().code, 0);
  }
  std::size_t folders = 0;
  std::map<std::string, int> ids;
  for (const auto& entry : fs::directory_iterator(directory.path() / "results")) {
    ++folders;
    const auto runs = read_rows(entry.path() / "rows.jsonl");
    ++ids[runs.at(0).header.run_id];
    EXPECT_EQ(runs[0].header.run_id, entry.path().filename());
  }
  EXPECT_EQ(folders, 4U);
  EXPECT_EQ(ids.size(), 4U) << "readers tell runs apart by their ids";
}

TEST(Outputs, KeepWhatIsCompleteWhenTheDiskIsFull) {
  const TemporaryDirectory directory;
  const Words study =
      Words{"simulate", "-q", "--schedule", "token_centric", "--vary", "top_k=1,2,3,4,5,6,7,8"} +
      Words{"-L", "8", "--grid", "4x4", "-d", "8"};
  ASSERT_EQ(run_moescope(study + Words{"--output", "whole"}, directory).code, 0);
  const std::string whole = read_text(directory.path() / "whole" / "rows.jsonl");
  for (const std::uintmax_t bytes : {whole.size() / 2, whole.size() / 3, std::size_t{100}}) {
#ifdef MOESCOPE_SANITIZED
    if (bytes == 100) {
      continue;  // clang's OpenMP library itself writes a file of more as it begins
    }
#endif
    fs::remove_all(directory.path() / "cut");
    Outcome outcome;
    {
      const test::FileSizeLimit full(bytes);
      outcome = run_moescope(study + Words{"--output", "cut"}, directory);
    }
    EXPECT_EQ(outcome.code, kBadFile) << outcome.err;
    EXPECT_NE(outcome.err.find("cut/rows.jsonl: cannot be written: File too large"), std::string::npos)
        << outcome.err;
    if (bytes == 100) {
      EXPECT_FALSE(fs::exists(directory.path() / "cut")) << "not even the header";
      continue;
    }
    const std::string text = read_text(directory.path() / "cut" / "rows.jsonl");
    EXPECT_TRUE(text.ends_with("}\n"));
    EXPECT_GT(text.size() + 2000, bytes) << "all that fits";
    EXPECT_FALSE(read_rows(directory.path() / "cut" / "rows.jsonl").at(0).rows.empty());
  }
  // A page is whole or not there.
  Outcome report;
  {
    const test::FileSizeLimit full(2000);
    report = run_moescope({"report", "whole/rows.jsonl", "--output", "page.html"}, directory);
  }
  EXPECT_EQ(report.code, kBadFile) << report.err;
  EXPECT_FALSE(fs::exists(directory.path() / "page.html"));
  const Outcome full = run_moescope({"report", "whole/rows.jsonl", "--output", "/dev/full"}, directory);
  EXPECT_EQ(full.code, kBadFile);
  EXPECT_NE(full.err.find("/dev/full: cannot be written: No space left on device"), std::string::npos)
      << full.err;
}

TEST(Outputs, NeedNoFolderForTemporaryFiles) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "file", "");
  ASSERT_EQ(run_moescope(folder_commands()["inspect"] + Words{"--output", "out"}, directory).code, 0);
  const char* set = ::getenv("TMPDIR");
  const std::string before = set == nullptr ? "" : set;
  for (const std::string& folder :
       {std::string("/no/such"), (directory.path() / "file").string(), "/" + std::string(5000, 'x')}) {
    ::setenv("TMPDIR", folder.c_str(), 1);
    const Outcome outcome = run_moescope({"report", "out/rows.jsonl", "--output", "page.html"}, directory);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_TRUE(fs::remove(directory.path() / "page.html"));
  }
  before.empty() ? ::unsetenv("TMPDIR") : ::setenv("TMPDIR", before.c_str(), 1);
}

TEST(Outputs, AreUtf8WhateverFilesAreCalled) {
  const TemporaryDirectory directory;
  const std::string trace = "t\xFF.safetensors";
  const std::string out = "out\xFE'1";
  ASSERT_EQ(run_moescope(Words{"inspect", "--save-trace", trace} + kShape, directory).code, 0);
  const Words replay = {"-d", "8", "-q", "--workload", "trace:" + trace, "--output"};
  for (const Words& words :
       {Words{"inspect"} + replay + Words{out},
        Words{"profile", "--source", "none", "--schedule", "staircase"} + kQuick + replay +
            Words{"profile\xFE"},
        Words{"simulate", "--schedule", "staircase"} + replay + Words{"simulated\xFE"},
        Words{"compare", "--schedule", "staircase"} + kQuick + replay + Words{"compared\xFE"}}) {
    const Outcome outcome = run_moescope(words, directory);
    ASSERT_EQ(outcome.code, 0) << words[0] << ": " << outcome.err;
    for (const auto& entry : fs::directory_iterator(directory.path() / words.back())) {
      const std::string text = read_text(entry.path());
      EXPECT_TRUE(valid_utf8(text) == text) << entry.path();
      if (entry.path().extension() == ".json") {
        EXPECT_TRUE(nlohmann::json::accept(text)) << entry.path();
      }
    }
  }
  const auto runs = read_rows(directory.path() / out / "rows.jsonl");
  EXPECT_EQ(runs.at(0).rows.at(0).workload, "trace:t\xEF\xBF\xBD.safetensors");
  // The command of a row, in a shell, makes the same rows again.
  const fs::path again = directory.path() / "again";
  fs::rename(directory.path() / out, again);
  write_text(directory.path() / "repro.sh",
             "cd '" + directory.path().string() + "' && " + runs[0].rows[0].repro + " > stdout.txt\n");
  ASSERT_EQ(std::system(("bash '" + (directory.path() / "repro.sh").string() + "'").c_str()), 0);
  EXPECT_EQ(read_rows(directory.path() / out / "rows.jsonl").at(0).rows.size(), runs[0].rows.size());
  const Outcome report =
      run_moescope({"report", out + "/rows.jsonl", "--output", "page\xFF.html"}, directory);
  EXPECT_EQ(report.code, 0) << report.err;
  const std::string page = read_text(directory.path() / "page\xFF.html");
  EXPECT_TRUE(valid_utf8(page) == page);
}

}  // namespace
}  // namespace moescope
