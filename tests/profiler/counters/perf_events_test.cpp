#include "profiler/counters/perf_events.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace moescope {
namespace {

/// 4 instructions an iteration or more; `volatile` keeps the loop.
void spin(std::int64_t iterations) {
  volatile std::int64_t sink = 0;
  for (std::int64_t i = 0; i < iterations; ++i) {
    sink = sink + i;
  }
}

TEST(PerfEvents, EveryCounterIsPlannedOrSaysWhyNot) {
  const auto source = make_perf_events();
  EXPECT_EQ(source->name(), "perf_event");
  const MetricSelection selection = perf_event_metrics();
  const auto counters = selection.counters();
  const CounterPlan plan = source->plan(counters);
  EXPECT_EQ(plan.counters.size() + plan.unavailable.size(), counters.size());
  EXPECT_EQ(plan.passes, plan.counters.empty() ? 0 : 1);
  for (const UnavailableCounter& missing : plan.unavailable) {
    EXPECT_FALSE(missing.reason.empty()) << missing.name;
  }
  const std::vector<std::string> unknown = {"dram__bytes_read.sum"};
  EXPECT_EQ(source->plan(unknown).unavailable.size(), 1U);
}

TEST(PerfEvents, MeasuresOrSaysWhyNot) {
  const auto source = make_perf_events();
  const MetricSelection selection = perf_event_metrics();
  const CounterPlan plan = source->plan(selection.counters());
  RangedWork work;
  work.ranges = {"short", "long"};
  work.run = [](std::size_t range) { spin(range == 0 ? 1000 : 1000000); };
  const auto ranges = source->measure(plan, work);
  ASSERT_EQ(ranges.size(), 2U);
  EXPECT_EQ(ranges[1].range, "long");
  for (const MetricValue& value : evaluate(selection, plan, ranges[1])) {
    EXPECT_TRUE(value.value.has_value() || !value.reason.empty()) << value.name;
  }
  if (std::ranges::find(plan.counters, "instructions") == plan.counters.end()) {
    GTEST_SKIP() << "no counter of instructions: " << plan.unavailable.front().reason;
  }
  EXPECT_GT(ranges[1].values.at("instructions"), 3e6);
  EXPECT_LT(ranges[0].values.at("instructions"), ranges[1].values.at("instructions") / 10);
}

}  // namespace
}  // namespace moescope
