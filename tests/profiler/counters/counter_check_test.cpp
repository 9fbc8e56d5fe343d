#include "profiler/counters/counter_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "tests/support/fake_counters.hpp"

namespace moescope {
namespace {

using Names = std::vector<std::string>;

KnownWork two_cases(int& runs) {
  KnownWork work;
  work.cases.push_back(
      {"copy", "copies", {{"hbm_read_bytes", 1000, 0.02}, {"hbm_write_bytes", 1000, 0.02}}, [&runs] {
         ++runs;
       }});
  work.cases.push_back({"cached", "reads from L2", {{"hbm_read_bytes", 50, 0, true}}, [&runs] { ++runs; }});
  return work;
}

test::FakeCounters counting(double read, double write, double cached) {
  test::FakeCounters source;
  source.range_values["copy"] = {{"dram__bytes_read.sum", read}, {"dram__bytes_write.sum", write}};
  source.range_values["cached"] = {{"dram__bytes_read.sum", cached}};
  return source;
}

TEST(CounterCheck, HoldsWithinTheToleranceAndBelowTheBound) {
  int runs = 0;
  auto source = counting(1019, 981, 50);
  const auto check = check_counters(source, two_cases(runs), {});
  EXPECT_EQ(runs, 2 * (check.plan.passes + 1));
  ASSERT_EQ(check.checked.size(), 3U);
  for (const auto& one : check.checked) {
    EXPECT_TRUE(one.holds()) << one.work << one.known.metric;
    EXPECT_EQ(one.unit, "bytes");
  }
  EXPECT_DOUBLE_EQ(check.checked[0].ratio().value(), 1.019);
  EXPECT_TRUE(check.counted.empty());
}

TEST(CounterCheck, DoesNotHoldOutsideOfThem) {
  int runs = 0;
  auto source = counting(1021, 979, 51);
  for (const auto& one : check_counters(source, two_cases(runs), {}).checked) {
    EXPECT_FALSE(one.holds()) << one.work << one.known.metric;
  }
}

TEST(CounterCheck, ACounterThatCannotBeHadDoesNotHoldAndGivesARowWithItsReason) {
  int runs = 0;
  auto source = counting(1000, 1000, 0);
  source.missing = {"dram__bytes_write.sum"};
  const auto check = check_counters(source, two_cases(runs), Names{"tensor_flop", "u__raw.sum"});
  EXPECT_FALSE(check.checked[1].holds());
  const auto rows = counter_check_rows(check, "cuda");
  EXPECT_EQ(rows.size(), 3 * 3U + 2 * 2U);
  const auto row = std::find_if(rows.begin(), rows.end(), [](const ResultRow& one) {
    return one.metric == "hbm_write_bytes" && one.source == Source::kMeasured;
  });
  EXPECT_EQ(row->status, Status::kUnavailable);
  EXPECT_EQ(row->reason, "dram__bytes_write.sum: not a counter of this chip");
  for (const auto& one : rows) {
    EXPECT_NO_THROW(one.validate()) << one.metric;
  }
  ASSERT_EQ(check.counted.size(), 2U);
  EXPECT_EQ(check.counted[1].work, "cached");
  EXPECT_EQ(check.counted[1].values[1].name, "u__raw.sum");
}

TEST(CounterCheck, PassesOnWhatTheSourceRefuses) {
  int runs = 0;
  auto source = counting(1000, 1000, 0);
  source.not_permitted = "not permitted to this user";
  EXPECT_THROW(check_counters(source, two_cases(runs), {}), CountersUnavailable);
  source.not_permitted.clear();
  source.max_ranges = 1;
  EXPECT_THROW(check_counters(source, two_cases(runs), {}), InternalError);
  EXPECT_THROW(check_counters(source, two_cases(runs), Names{"nonsense"}), InvalidArgument);
}

}  // namespace
}  // namespace moescope
