#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"

/// What the program does with its standard streams when they are full, closed or narrow.
namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::RunningMoescope;
using test::small;
using test::TemporaryDirectory;
using test::write_text;

constexpr const char* kStreamed = R"({"name": "streams", "schedules": ["staircase", "token_centric"],
    "workloads": ["zipf:1", "gaussian:1"], "axes": {"num_tokens": [8, 16], "hidden_size": 16, "grid": "8x6",
    "top_k": 4}, "min_samples": 2, "max_time_s": 0.001})";

TEST(StandardStreams, SaysWhenOutputCannotBeWritten) {
  if (!std::filesystem::exists("/dev/full")) {
    GTEST_SKIP() << "no /dev/full";
  }
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kStreamed);
  const std::string rows = test::source_path("results/h100/ceilings.jsonl");
  const std::vector<std::vector<std::string>> calls = {
      {"--help"},
      {"--version"},
      {"run", "--help"},  // more than a buffer: fails before the end
      {"doctor", "--backend", "cpu"},
      {"counters"},
      {"ceilings", "--rows", rows},
      {"claims", rows},
      {"report", rows},
      {"golden", test::source_path("tests/data/golden/absent.npz")},
      {"sweep", "experiment.json", "--dry-run"},
      {"sweep", "experiment.json", "-q", "--output", "s"},
      {"simulate", "--preset", "tiny", "--schedule", "staircase", "-q"},
      {"inspect", "-L", "8", "-d", "16", "--grid", "4x4", "-K", "2"},
      small({"run", "-q"}),
      small({"compare", "-q", "--schedule", "staircase", "--workload", "zipf:1", "--output", "c"}),
      small({"profile", "-q", "--schedule", "staircase", "--source", "none", "--output", "p"}),
      {"check", "-L", "8", "-d", "16", "--grid", "4x4", "-K", "2", "--schedule", "staircase"},
  };
  for (const auto& call : calls) {
    const Outcome outcome = run_moescope(call, directory, {.out = "/dev/full", .err = "", .closed = {}});
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kBadFile)) << call[0] << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("moescope: standard output: cannot be written"))
        << call[0] << outcome.err;
  }
}

TEST(StandardStreams, KeepsTheCodeOfAnErrorThatCameFirst) {
  if (!std::filesystem::exists("/dev/full")) {
    GTEST_SKIP() << "no /dev/full";
  }
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"run", "-L", "0"}, directory, {.out = "/dev/full", .err = "", .closed = {}});
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << outcome.err;
  EXPECT_NE(outcome.err.find("-L = 0"), std::string::npos) << outcome.err;
}

TEST(StandardStreams, NeverTakesAFileOfItsOwnForAClosedOne) {
  const std::vector<std::vector<int>> closed = {{2}, {1}, {0, 2}, {0, 1}, {0, 1, 2}};
  for (const auto& descriptors : closed) {
    const TemporaryDirectory directory;
    write_text(directory.path() / "experiment.json", kStreamed);
    const std::vector<std::string> sweep = {"sweep", "experiment.json", "--output", "s"};
    for (const auto& call : {sweep,
                             std::vector<std::string>{"compare", "-L", "8", "-d", "16", "--grid", "4x4", "-K",
                                                      "2", "--min-samples", "2", "--max-time", "0.01",
                                                      "--workload", "zipf:1", "--output", "c"},
                             std::vector<std::string>{"simulate", "--preset", "tiny", "--schedule",
                                                      "staircase", "--output", "m"},
                             std::vector<std::string>{"check", "-L", "8", "-d", "16", "--grid", "4x4", "-K",
                                                      "2", "--schedule", "staircase", "--output", "k"}}) {
      const Outcome outcome = run_moescope(call, directory, {.out = "", .err = "", .closed = descriptors});
      EXPECT_EQ(outcome.code, 0) << call[0] << outcome.err;
      const auto runs =
          read_rows(directory.path() / call.back() / "rows.jsonl");  // throws for any other line
      EXPECT_FALSE(runs.at(0).rows.empty()) << call[0];
    }
    EXPECT_EQ(run_moescope(sweep, directory).code, 0) << "and goes on";
  }
}

/// What `running` writes to the terminal behind `control`, to its end.
std::string drain(int control, const RunningMoescope& running) {
  std::string text;
  char buffer[4096];
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < end) {
    const bool ended = running.ended();
    pollfd ready{control, POLLIN, 0};
    const bool more = ::poll(&ready, 1, ended ? 0 : 100) == 1;
    const ssize_t count = more ? ::read(control, buffer, sizeof(buffer)) : 0;
    if (count > 0) {
      text.append(buffer, static_cast<std::size_t>(count));
    } else if (ended) {
      break;
    }
  }
  return text;
}

TEST(StandardStreams, ProgressFitsTheTerminal) {
  const int control = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (control < 0 || ::grantpt(control) != 0 || ::unlockpt(control) != 0) {
    GTEST_SKIP() << "no pseudo-terminals here";
  }
  winsize size{};
  size.ws_row = 24;
  size.ws_col = 20;
  const std::string terminal = ::ptsname(control);
  const int held = ::open(terminal.c_str(), O_RDWR | O_NOCTTY);  // keeps the size
  ASSERT_EQ(::ioctl(held, TIOCSWINSZ, &size), 0);
  const TemporaryDirectory directory;
  write_text(directory.path() / "experiment.json", kStreamed);
  const RunningMoescope running({"sweep", "experiment.json", "--output", "out"}, directory,
                                {.out = "", .err = terminal, .closed = {}});
  const std::string text = drain(control, running);
  EXPECT_EQ(running.wait().code, 0);
  EXPECT_NE(text.find("[1/4] "), std::string::npos) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  std::size_t longest = 0;
  for (std::size_t from = 0; from < text.size();) {
    const std::size_t to = std::min(text.find('\r', from), text.size());
    longest = std::max(longest, to - from);
    from = to + 1;
  }
  EXPECT_GT(longest, 10U);
  EXPECT_LT(longest, 20U) << text;
  ::close(held);
  ::close(control);
}

}  // namespace
}  // namespace moescope
