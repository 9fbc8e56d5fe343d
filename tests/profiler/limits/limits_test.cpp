#include "profiler/limits/limits.hpp"

#include <gtest/gtest.h>

namespace moescope {
namespace {

DeviceCeilings ceilings_of(std::initializer_list<std::pair<std::string_view, double>> rates) {
  DeviceCeilings ceilings;
  for (const auto& [metric, rate] : rates) {
    ceilings.ceilings.push_back({std::string(metric), "", rate, 0, 10, -1, ""});
  }
  return ceilings;
}

StageMetrics metrics_of(std::initializer_list<std::pair<const char*, double>> values) {
  StageMetrics metrics;
  for (const auto& [name, value] : values) {
    metrics.values.push_back({name, "", value, ""});
  }
  metrics.values.push_back({"occupancy", "fraction", std::nullopt, "not measured"});
  return metrics;
}

TEST(Limits, AreTheTimeAtTheCeilingOverTheTime) {
  const auto ceilings = ceilings_of({{ceiling::kHbmRead, 90},
                                     {ceiling::kHbmCopy, 100},
                                     {ceiling::kL2Read, 400},
                                     {ceiling::kL2Reduction, 100},
                                     {ceiling::kBf16Matrix, 1000},
                                     {ceiling::kFp32, 10}});
  const auto metrics = metrics_of({{"hbm_read_bytes", 100},
                                   {"hbm_write_bytes", 40},
                                   {"l2_read_bytes", 300},
                                   {"l2_write_bytes", 100},
                                   {"l2_reduction_bytes", 50},
                                   {"l2_atomic_bytes", 0},
                                   {"shared_bytes", 1e9},
                                   {"tensor_flop", 200},
                                   {"issue_utilisation", 0.25}});
  const auto limits = stage_limits(2, metrics, ceilings);
  ASSERT_EQ(limits.size(), 4U) << "no rate of shared memory, no FLOP of the CUDA cores";
  EXPECT_EQ(limits[0].resource, "l2");
  EXPECT_DOUBLE_EQ(limits[0].fraction, (400.0 / 400 + 50.0 / 100) / 2);
  EXPECT_EQ(limits[1].resource, "hbm");
  EXPECT_DOUBLE_EQ(limits[1].fraction, 0.7) << "against the best rate of the memory";
  EXPECT_EQ(limits[2].resource, "issue");
  EXPECT_EQ(limits[3].resource, "tensor");
  EXPECT_DOUBLE_EQ(limits[3].fraction, 0.1);
}

TEST(Limits, OfL2AreItsOwnReadsNotWhatSeveralMultiprocessorsReceive) {
  const auto ceilings = ceilings_of({{ceiling::kL2Read, 100}});
  const auto multicast = metrics_of({{"l2_read_bytes", 180},
                                     {"l2_slice_read_bytes", 60},
                                     {"l2_write_bytes", 20},
                                     {"l2_reduction_bytes", 0},
                                     {"l2_atomic_bytes", 0}});
  const auto limits = stage_limits(1, multicast, ceilings);
  ASSERT_EQ(limits.size(), 1U);
  EXPECT_DOUBLE_EQ(limits[0].fraction, 0.8);
  EXPECT_DOUBLE_EQ(l2_reads(metrics_of({{"l2_read_bytes", 180}})).value(), 180)
      << "the slices were not counted";
  EXPECT_FALSE(l2_reads(metrics_of({})).has_value());
}

TEST(Limits, NameABoundOnlyNearACeiling) {
  EXPECT_EQ(bound_text({{"hbm", 0.72}, {"l2", 0.3}}), "hbm 72 %");
  EXPECT_EQ(bound_text({{"hbm", kBoundFraction}}), "hbm 60 %");
  EXPECT_EQ(bound_text({{"issue", 0.59}, {"l2", 0.3}}), "latency (issue 59 %)");
  EXPECT_EQ(bound_text({}), "unknown");
}

// What was not counted is not 0: half a sum would say that a resource is far from its limit.
TEST(Limits, OfAResourceNeedAllItsCounters) {
  const auto ceilings =
      ceilings_of({{ceiling::kHbmRead, 90}, {ceiling::kL2Read, 400}, {ceiling::kL2Reduction, 100}});
  EXPECT_TRUE(stage_limits(1, metrics_of({{"hbm_read_bytes", 1}}), ceilings).empty());
  EXPECT_TRUE(stage_limits(1, metrics_of({{"l2_read_bytes", 1}, {"l2_write_bytes", 1}}), ceilings).empty());
  const auto counted = metrics_of(
      {{"l2_read_bytes", 1}, {"l2_write_bytes", 1}, {"l2_reduction_bytes", 0}, {"l2_atomic_bytes", 0}});
  EXPECT_EQ(stage_limits(1, counted, ceilings).size(), 1U);
  EXPECT_EQ(stage_limits(1, counted, ceilings_of({{ceiling::kL2Read, 400}})).size(),
            1U);  // no reductions: no rate needed
}

TEST(Limits, AreEmptyWithoutCountersOrTime) {
  const auto ceilings = ceilings_of({{ceiling::kHbmRead, 90}});
  EXPECT_TRUE(stage_limits(1, metrics_of({}), ceilings).empty());
  EXPECT_TRUE(stage_limits(0, metrics_of({{"hbm_read_bytes", 1}}), ceilings).empty());
  EXPECT_TRUE(stage_limits(1, metrics_of({{"hbm_read_bytes", 1}}), {}).empty());
}

}  // namespace
}  // namespace moescope
