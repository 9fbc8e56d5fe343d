#include "profiler/counters/recorded_counters.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/fake_counters.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using Names = std::vector<std::string>;

CounterRecording record(const Names& counters, const Names& ranges) {
  test::FakeCounters source;
  source.missing = {"u__missing.sum"};
  source.lost = {"u__lost.sum"};
  CounterRecording recording{source.name(), "a GPU", source.plan(counters), {}};
  recording.ranges = source.measure(recording.plan, {ranges, {}, [](std::size_t) {}});
  return recording;
}

TEST(RecordedCounters, GiveWhatWasMeasuredAndRunNothing) {
  const test::TemporaryDirectory directory;
  const auto recording =
      record({"u__a.sum", "u__missing.sum", "u__lost.sum", "u__b.sum"}, {"first", "second"});
  const auto file = directory.path() / "counters.json";
  write_recording(recording, file);
  const auto read = read_recording(file);
  EXPECT_EQ(read.source, "fake");
  EXPECT_EQ(read.device, "a GPU");
  EXPECT_EQ(read.plan.passes, recording.plan.passes);

  const auto source = make_recorded_counters(read);
  const auto plan =
      source->plan(Names{"u__b.sum", "u__missing.sum", "u__other.sum", "u__lost.sum", "u__b.sum"});
  EXPECT_EQ(plan.chip, "GH100");
  EXPECT_EQ(plan.passes, 0);
  EXPECT_EQ(plan.counters, (Names{"u__b.sum", "u__lost.sum"}));
  ASSERT_EQ(plan.unavailable.size(), 2U);
  EXPECT_EQ(plan.unavailable[0].reason, recording.plan.unavailable[0].reason);
  EXPECT_EQ(plan.unavailable[1].reason, "not recorded");

  const auto values = source->measure(plan, {{"second"}, [] { FAIL(); }, [](std::size_t) { FAIL(); }});
  ASSERT_EQ(values.size(), 1U);
  EXPECT_EQ(values[0].range, "second");
  EXPECT_EQ(values[0].values.size(), 1U);
  EXPECT_EQ(values[0].values.at("u__b.sum"), recording.ranges[1].values.at("u__b.sum"));
}

TEST(RecordedCounters, RefuseARangeThatWasNotRecorded) {
  const auto source = make_recorded_counters(record({"u__a.sum"}, {"first"}));
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              source->measure(source->plan(Names{"u__a.sum"}), {{"third"}, {}, {}});
            }).find("range = third"),
            std::string::npos);
}

TEST(RecordedCounters, RefuseFilesThatAreMissingOrLie) {
  const test::TemporaryDirectory directory;
  EXPECT_THROW(read_recording(directory.path() / "absent.json"), FileError);
  EXPECT_THROW(write_recording(record({}, {}), directory.path() / "no" / "such.json"), FileError);
  const char* start =
      R"({"version": 1, "source": "cupti", "device": "d", "chip": "c", "passes": 1, "unavailable": {},)";
  int number = 0;
  for (const std::string& bad :
       {std::string("{"), std::string(R"({"version": 2})"), std::string(start) + R"("counters": ["a"]})",
        std::string(start) + R"("counters": ["a"], "ranges": [{"range": "r", "values": {"b": 1}}]})",
        std::string(start) + R"("counters": ["a"], "ranges": [{"range": "r", "values": {"a": "1"}}]})"}) {
    const auto file = directory.path() / (std::to_string(number++) + ".json");
    std::ofstream(file) << bad;
    EXPECT_THROW(read_recording(file), FileError) << bad;
  }
  std::filesystem::create_directory(directory.path() / "folder.json");
  EXPECT_THROW(read_recording(directory.path() / "folder.json"), FileError);
  const auto error = [&](const std::string& rest) {
    return test::error_text<FileError>([&] { parse_recording(start + rest + "}", "r"); });
  };
  EXPECT_EQ(error(R"("counters": [], "ranges": [])"), "(no error)");
  EXPECT_EQ(error(R"("counters": [], "ranges": null)"), "r: ranges: null: must be a list");
  EXPECT_EQ(error(R"("counters": ["a"], "ranges": [{"range": "r", "values": {"a": null}}])"),
            "r: ranges[0].values.a: null: must be a number");
  EXPECT_EQ(error(R"("counters": ["a"], "ranges": [{"range": "r", "values": {"a": -1}}])"),
            "r: ranges[0].values.a: -1: must not be negative");
  EXPECT_EQ(
      error(R"("counters": [], "ranges": [{"range": "r", "values": {}}, {"range": "r", "values": {}}])"),
      "r: ranges[1].range: \"r\": stands there twice");
  EXPECT_EQ(error(R"("passes": 2, "counters": [], "ranges": [])"), "r: key 'passes' stands there twice");
  EXPECT_EQ(error(R"("counters": )" + std::string(100000, '[')).find("r: counters[0]"), 0U);
}

}  // namespace
}  // namespace moescope
