#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/run_moescope.hpp"

/// One rule for every number that a person types: tests/core/base/number_text_test.cpp has the rule itself.
namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;

struct Typed {
  std::string command;
  std::string option;
};

/// `moescope COMMAND OPTION VALUE` with what it needs beside.
Outcome run_typed(const Typed& typed, const std::string& value, const TemporaryDirectory& directory) {
  std::vector<std::string> arguments = {typed.command};
  if (typed.command == "validate") {
    arguments.emplace_back("rows.jsonl");
  }
  arguments.insert(arguments.end(), {typed.option, value});
  return run_moescope(arguments, directory);
}

TEST(Numbers, AreRefusedWithOptionAndValueWhereverTheyAreTyped) {
  const TemporaryDirectory directory;
  const std::vector<Typed> whole = {{"run", "-L"},
                                    {"run", "--num-tokens"},
                                    {"inspect", "-d"},
                                    {"compare", "-K"},
                                    {"run", "--num-experts"},
                                    {"run", "--shared-size"},
                                    {"run", "--expert-size"},
                                    {"run", "--heads"},
                                    {"run", "--key-size"},
                                    {"run", "--group-size"},
                                    {"run", "--tile-tokens"},
                                    {"run", "--threads"},
                                    {"run", "--min-samples"},
                                    {"run", "--seed"},
                                    {"simulate", "--seed"},
                                    {"simulate", "--max-accesses"},
                                    {"paper", "--seed"},
                                    {"validate", "--seed"},
                                    {"validate", "--shared-size"},
                                    {"check", "--sampled-tokens"},
                                    {"ceilings", "--min-samples"}};
  for (const Typed& typed : whole) {
    for (const std::string value :
         {"", "010", "08", "0x10", "99999999999999999999", "1.5", "1e3", "+1", " 1", "ten"}) {
      const Outcome outcome = run_typed(typed, value, directory);
      EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kUsage))
          << typed.option << ' ' << value << outcome.err;
      EXPECT_NE(outcome.err.find(typed.option), std::string::npos) << outcome.err;
      EXPECT_NE(outcome.err.find('\'' + value + '\''), std::string::npos) << outcome.err;
    }
  }
  for (const Typed& typed : {Typed{"run", "--seed"}, Typed{"validate", "--seed"}}) {
    EXPECT_EQ(run_typed(typed, "-1", directory).code, static_cast<int>(ExitCode::kUsage)) << typed.command;
  }
  for (const std::string value : {"", "01", "00.5", "nan", "inf", "1e999", "0x1p3", "1s"}) {
    const Outcome outcome = run_typed({"run", "--max-time"}, value, directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kUsage)) << value;
    EXPECT_NE(outcome.err.find("--max-time = '" + value + '\''), std::string::npos) << outcome.err;
  }
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
}

TEST(Numbers, AreRefusedInsideOtherValuesToo) {
  const TemporaryDirectory directory;
  struct Call {
    std::vector<std::string> arguments;
    std::string message;
  };
  const std::vector<Call> calls = {
      {{"run", "--grid", "010x010"}, "grid = 010x010"},
      {{"run", "--grid", "4x99999999999999999999"}, "grid = 4x99999999999999999999"},
      {{"run", "--workload", "zipf:010"}, "workload = zipf:010"},
      {{"run", "--workload", "hot:0.5,04"}, "workload = hot:0.5,04"},
      {{"simulate", "--preset", "tiny", "--vary", "num_tokens=010"}, "num_tokens = 010"},
      {{"simulate", "--preset", "tiny", "--vary", "top_k=-99999999999999999999"},
       "top_k = -99999999999999999999"},
      {{"simulate", "--preset", "tiny", "--vary", "num_tokens=1,2", "--vary", "num_tokens=4"},
       "num_tokens is varied twice"},
      {{"simulate", "--preset", "tiny", "--vary", "l2_bytes=01MiB"}, "l2_bytes = 01MiB"},
      {{"simulate", "--preset", "tiny", "--device", "h100-sxm@num_sms=066"}, "num_sms = 066"},
      {{"simulate", "--preset", "tiny", "--device", "h100-sxm@hbm_bytes_per_s=x01.5"}, "x01.5"},
      {{"simulate", "--preset", "tiny", "--device", "h100-sxm@l2_bytes=inf"}, "l2_bytes = inf"},
      {{"simulate", "--preset", "tiny", "--device", "h100-sxm@l2_bytes=MiB"}, "l2_bytes = MiB"},
  };
  for (const Call& call : calls) {
    const Outcome outcome = run_moescope(call.arguments, directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kInvalidArgument)) << call.message << outcome.err;
    EXPECT_NE(outcome.err.find(call.message), std::string::npos) << outcome.err;
  }
}

TEST(Check, OfALayerThatDoesNotFitIsNoComparisonThatFailed) {
  const TemporaryDirectory directory;
  const std::vector<std::string> huge = {"-L", "2000000000", "-K", "1", "-d", "64"};
  for (const std::vector<std::string>& kind :
       {std::vector<std::string>{"--grid", "8x8", "--workload", "gaussian:1", "--schedule", "token_centric"},
        std::vector<std::string>{"--system", "gshard", "--num-experts", "4", "--expert-size", "64"}}) {
    std::vector<std::string> arguments = {"check", "--quiet"};
    arguments.insert(arguments.end(), huge.begin(), huge.end());
    arguments.insert(arguments.end(), kind.begin(), kind.end());
    const Outcome outcome = run_moescope(arguments, directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kOutOfMemory)) << outcome.out << outcome.err;
  }
}

TEST(Options, HaveNoEmptyValues) {
  const TemporaryDirectory directory;
  for (const char* option : {"--grid", "--preset", "--output", "--workload", "--schedule", "--l2",
                             "--backend", "--tuned-on", "--system"}) {
    const Outcome outcome = run_moescope({"compare", option, ""}, directory);
    EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kUsage)) << option << outcome.err;
    EXPECT_NE(outcome.err.find(option), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(run_moescope({"simulate", "--device", "h100-sxm,,b200"}, directory).code,
            static_cast<int>(ExitCode::kUsage));
  EXPECT_EQ(run_moescope({"claims", ""}, directory).code, static_cast<int>(ExitCode::kUsage));
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
}

}  // namespace
}  // namespace moescope
