#include "profiler/limits/ceilings.hpp"

#include <gtest/gtest.h>

#include <array>

#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::TemporaryDirectory;

CeilingProbes fake_probes() {
  CeilingProbes probes;
  auto run = std::make_shared<int>(0);
  // 1, 2, 3, 1, 2, 3 ... seconds: median 2.
  probes.probes.push_back({std::string(ceiling::kHbmRead), "reads 8 bytes", 8,
                           [run] { return static_cast<double>(++*run % 3 + 1); }});
  probes.probes.push_back({std::string(ceiling::kHbmCopy), "copies", 10, [] { return 2.0; }});
  probes.probes.push_back({std::string(ceiling::kFp32), "adds", 6, [] { return 2.0; }});
  probes.probes.push_back(
      {std::string(ceiling::kSharedRead), "none", 6, []() -> double { throw OutOfMemory("shared", 2, 1); }});
  probes.clocks = [] { return ClockSample{1.5e9, 2e9, 40}; };
  return probes;
}

SamplingOptions few_samples() {
  SamplingOptions options;
  options.warmup_rounds = 0;
  options.min_samples = 9;
  options.max_rounds = 9;
  return options;
}

TEST(Ceilings, AreWorkOverTheMedianTime) {
  const DeviceCeilings ceilings = measure_ceilings(fake_probes(), "fake device", few_samples());
  EXPECT_EQ(ceilings.device, "fake device");
  EXPECT_EQ(ceilings.rate(ceiling::kHbmRead), 4.0);
  EXPECT_EQ(ceilings.rate(ceiling::kFp32), 3.0);
  EXPECT_EQ(ceilings.rate(ceiling::kL2Read), std::nullopt) << "nobody measured it";
  EXPECT_EQ(ceilings.rate(ceiling::kSharedRead), std::nullopt);
  EXPECT_EQ(ceilings.hbm_bytes_per_s(), 5.0) << "the best of copy and read";
  EXPECT_EQ(ceilings.ceilings[0].samples, 9);
  EXPECT_EQ(ceilings.ceilings[0].spread, 1.0);
  EXPECT_EQ(ceilings.ceilings[0].sm_clock_hz, 1.5e9);
  EXPECT_EQ(DeviceCeilings{}.hbm_bytes_per_s(), std::nullopt);
}

TEST(Ceilings, OfSeveralPatternsTheBestIsTheCeilingAndSaysSo) {
  CeilingProbes probes;
  const auto add = [&](std::string_view metric, const char* method, double time_s) {
    probes.probes.push_back({std::string(metric), method, 12, [time_s] { return time_s; }});
  };
  add(ceiling::kL2Read, "loads", 4);
  add(ceiling::kHbmRead, "reads", 6);
  add(ceiling::kL2Read, "bulk copies", 3);
  probes.probes.push_back(
      {std::string(ceiling::kL2Read), "too large", 12, []() -> double { throw OutOfMemory("it", 2, 1); }});
  const DeviceCeilings ceilings = measure_ceilings(probes, "fake device", few_samples());
  ASSERT_EQ(ceilings.ceilings.size(), 2U) << "one of each metric, in the order of their first probes";
  EXPECT_EQ(ceilings.rate(ceiling::kL2Read), 4.0);
  EXPECT_EQ(ceilings.rate(ceiling::kHbmRead), 2.0);
  EXPECT_EQ(ceilings.ceilings[0].metric, ceiling::kL2Read);
  EXPECT_TRUE(ceilings.ceilings[0].method.starts_with("bulk copies; best of 3 patterns"))
      << ceilings.ceilings[0].method;
  EXPECT_NE(ceilings.ceilings[0].method.find("(loads)"), std::string::npos) << ceilings.ceilings[0].method;
  EXPECT_EQ(ceilings.ceilings[1].method, "reads");
}

TEST(Ceilings, SamplesAtALowClockDoNotCount) {
  CeilingProbes probes = fake_probes();
  probes.clocks = [] { return ClockSample{1e9, 2e9, 90}; };
  const DeviceCeilings ceilings = measure_ceilings(probes, "fake device", few_samples());
  EXPECT_EQ(ceilings.rate(ceiling::kHbmRead), std::nullopt);
  EXPECT_NE(ceilings.ceilings[0].reason.find("too low an SM clock"), std::string::npos);
}

TEST(Ceilings, RowsFitTheSchemaAndComeBackAsTheyWere) {
  const TemporaryDirectory directory;
  const DeviceCeilings ceilings = measure_ceilings(fake_probes(), "fake device", few_samples());
  const std::array<const char*, 1> command = {"test"};
  RunHeader header = make_run_header(1, command.data());
  header.device = "fake device";
  const auto output = directory.path() / "out";
  {
    ResultWriter writer(output, header);
    for (const ResultRow& row : ceiling_rows(ceilings, "fake")) {
      writer.write(row);
    }
  }
  const test::JsonSchema schema(nlohmann::json::parse(result_schema_json()));
  std::istringstream lines(test::read_text(output / "rows.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "");
  }
  const auto back = recorded_ceilings(read_rows(output / "rows.jsonl"));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->device, "fake device");
  ASSERT_EQ(back->ceilings.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(back->ceilings[i].metric, ceilings.ceilings[i].metric);
    EXPECT_EQ(back->ceilings[i].rate, ceilings.ceilings[i].rate);
    EXPECT_EQ(back->ceilings[i].reason, ceilings.ceilings[i].reason);
  }
  EXPECT_EQ(back->ceilings[0].method, "reads 8 bytes");
  EXPECT_FALSE(recorded_ceilings({}).has_value());
}

TEST(Ceilings, TableNamesMethodsAndReasons) {
  const std::string text =
      ceilings_table(measure_ceilings(fake_probes(), "fake device", few_samples())).text();
  EXPECT_NE(text.find("reads 8 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("shared needs 2 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("4 B/s"), std::string::npos) << text;
}

}  // namespace
}  // namespace moescope
