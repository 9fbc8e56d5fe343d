#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

using Family = WorkloadSpec::Family;

std::string refusal(std::string_view text) {
  return test::error_text<InvalidArgument>([&] { WorkloadSpec::parse(text); });
}

TEST(WorkloadSpec, FillsInDefaultsAndPrintsThem) {
  const std::vector<std::tuple<std::string, Family, std::vector<double>, std::string>> cases = {
      {"gaussian", Family::kGaussian, {1}, "gaussian:1"},
      {"gaussian:0.50", Family::kGaussian, {0.5}, "gaussian:0.5"},
      {"zipf", Family::kZipf, {1}, "zipf:1"},
      {"zipf:1.2e0", Family::kZipf, {1.2}, "zipf:1.2"},
      {"zipf:-0", Family::kZipf, {0}, "zipf:0"},
      {"hot", Family::kHot, {0.5, 4, 8}, "hot:0.5,4"},
      {"hot:1,1", Family::kHot, {1, 1, 8}, "hot:1,1"},
      {"hot:1,1,16", Family::kHot, {1, 1, 16}, "hot:1,1,16"},
      {"clustered", Family::kClustered, {16, 0.9}, "clustered:16,0.9"},
      {"drift", Family::kDrift, {1, 0}, "drift:1,0"},
      {"drift:1,2.5", Family::kDrift, {1, 2.5}, "drift:1,2.5"},
      {"uniform", Family::kUniform, {}, "uniform"},
  };
  for (const auto& [text, family, parameters, canonical] : cases) {
    const auto spec = WorkloadSpec::parse(text);
    EXPECT_EQ(spec.family, family) << text;
    EXPECT_EQ(spec.parameters, parameters) << text;
    EXPECT_EQ(spec.text, canonical);
    EXPECT_EQ(WorkloadSpec::parse(spec.text).text, canonical);
    EXPECT_EQ(WorkloadSpec::parse(spec.text).parameters, parameters);
  }
}

TEST(WorkloadSpec, KeepsPathsAsTheyAre) {
  const auto snapshot = WorkloadSpec::parse("snapshot:a folder/c:x,1.safetensors");
  EXPECT_EQ(snapshot.family, Family::kSnapshot);
  EXPECT_EQ(snapshot.path, "a folder/c:x,1.safetensors");
  EXPECT_EQ(snapshot.text, "snapshot:a folder/c:x,1.safetensors");
  EXPECT_EQ(WorkloadSpec::parse("trace:t.npy").family, Family::kTrace);
}

TEST(WorkloadSpec, RefusalsSayWhatIsWrongAndWhatIsExpected) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"zipf:", "S is missing; expected zipf:S"},
      {"hot:0.5", "COUNT is missing; expected hot:FRACTION,COUNT[,BOOST]"},
      {"hot:,4", "FRACTION is missing; expected hot:FRACTION,COUNT[,BOOST]"},
      {"hot:0.5,4,", "BOOST is missing; expected hot:FRACTION,COUNT[,BOOST]"},
      {"drift:1", "STEP is missing; expected drift:S,STEP"},
      {"gaussian:1,2", "takes at most 1 arguments, 2 given; expected gaussian:STD"},
      {"uniform:1", "takes at most 0 arguments, 1 given; expected uniform"},
      {"uniform:", "takes at most 0 arguments, 1 given; expected uniform"},
      {"zipf:abc", "S = 'abc' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf:1x", "S = '1x' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf: 1", "S = ' 1' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf:nan", "S = 'nan' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf:inf", "S = 'inf' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf:1e999", "S = '1e999' must be a number, decimal, finite, without leading zeros; expected zipf:S"},
      {"zipf:-1", "S = -1 must be in [0, 100]; expected zipf:S"},
      {"gaussian:-0.5", "STD = -0.5 must be in [0, 10000]; expected gaussian:STD"},
      {"hot:1.5,4", "FRACTION = 1.5 must be in [0, 1]; expected hot:FRACTION,COUNT[,BOOST]"},
      {"hot:1,0", "COUNT = 0 must be in [1, 2147483648]; expected hot:FRACTION,COUNT[,BOOST]"},
      {"hot:1,2.5", "COUNT = 2.5 must be a whole number; expected hot:FRACTION,COUNT[,BOOST]"},
      {"clustered:4,1.01", "RHO = 1.01 must be in [0, 1]; expected clustered:C,RHO"},
      {"snapshot", "FILE is missing; expected snapshot:FILE"},
      {"trace:", "FILE is missing; expected trace:FILE"},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(refusal(text), "workload = " + text + ": " + expected);
  }
}

TEST(WorkloadSpec, UnknownFamiliesGetTheListOfKnownOnes) {
  const std::string known =
      "gaussian:STD zipf:S hot:FRACTION,COUNT[,BOOST] clustered:C,RHO drift:S,STEP uniform snapshot:FILE "
      "trace:FILE";
  EXPECT_EQ(refusal("zpif:1"), "workload = zpif:1: unknown family 'zpif'; expected one of " + known);
  EXPECT_EQ(refusal(""), "workload = : unknown family ''; expected one of " + known);
}

TEST(WorkloadSpec, HelpHasALineWithGrammarAndDefaultsForEveryFamily) {
  const std::string help = workload_help();
  EXPECT_EQ(std::count(help.begin(), help.end(), '\n'), 8);
  for (const auto* part :
       {"hot:FRACTION,COUNT[,BOOST]", "Default 0.5,4,8.", "Default 16,0.9.", "snapshot:FILE"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part;
  }
}

}  // namespace
}  // namespace moescope
