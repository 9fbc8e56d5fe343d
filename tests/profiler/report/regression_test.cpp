#include "profiler/report/regression.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "profiler/report/recorded_points.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

using test::error_text;

ResultRow time_row(const std::string& workload, double value, double spread = 0.01,
                   std::int64_t samples = 11) {
  ResultRow row;
  row.schedule = "staircase";
  row.stage = "layer";
  row.backend = "cpu";
  row.dtype = "bf16";
  row.workload = workload;
  row.l2_state = "cold";
  row.metric = "time_s";
  row.unit = "s";
  row.value = value;
  row.spread = spread;
  row.samples = samples;
  row.group_size = 64;
  row.repro = "moescope compare";
  return row;
}

std::vector<RecordedRun> run_of(std::vector<ResultRow> rows, const std::string& device = "a machine") {
  RecordedRun run;
  run.header.device = device;
  run.rows = std::move(rows);
  return {run};
}

TimeVerdict verdict(const ResultRow& before, const ResultRow& after, double threshold = 0.05) {
  return compare_times(run_of({before}), run_of({after}), {.threshold = threshold}).times.at(0).verdict;
}

TEST(CompareTimes, CountsWhatIsAboveThresholdAndNoise) {
  EXPECT_EQ(verdict(time_row("w", 1.0), time_row("w", 1.04)), TimeVerdict::kSame);
  EXPECT_EQ(verdict(time_row("w", 1.0), time_row("w", 1.06)), TimeVerdict::kSlower);
  EXPECT_EQ(verdict(time_row("w", 1.0), time_row("w", 0.94)), TimeVerdict::kFaster);
  EXPECT_EQ(verdict(time_row("w", 1.0), time_row("w", 1.06), 0.1), TimeVerdict::kSame);
  EXPECT_EQ(verdict(time_row("w", 1.0), time_row("w", 1.04), 0), TimeVerdict::kSlower);
}

TEST(CompareTimes, AllowsForTheSpreadsThatWereRecorded) {
  const double noise_s = 0.5;  // half of two ranges of 0.5 s
  const auto report =
      compare_times(run_of({time_row("w", 1.0, 0.5)}), run_of({time_row("w", 1.25, 0.4)}), {});
  EXPECT_NEAR(report.times.at(0).noise_s, noise_s, 1e-12);
  EXPECT_EQ(report.times[0].verdict, TimeVerdict::kUnclear);
  EXPECT_TRUE(report.holds());
  EXPECT_EQ(verdict(time_row("w", 1.0, 0.5), time_row("w", 1.7, 0.3)), TimeVerdict::kSlower);
  EXPECT_EQ(verdict(time_row("w", 1.0, 0.5, 1001), time_row("w", 1.25, 0.4, 1001)), TimeVerdict::kUnclear)
      << "however many the samples, those of the two meet";
  // Range 0.5 of 3 samples: deviation 0.5 / 1.693, of the median sqrt(pi / 2 / 3) times that, three of two.
  const double few_s = 3 * 0.5 / 1.693 * std::sqrt(1.5707963267948966 / 3) * std::sqrt(2.0);
  const auto few =
      compare_times(run_of({time_row("w", 1.0, 0.5, 3)}), run_of({time_row("w", 1.25, 0.4, 3)}), {});
  EXPECT_NEAR(few.times.at(0).noise_s, few_s, 1e-12);
  EXPECT_EQ(verdict(time_row("w", 1.0, 0.5, 2), time_row("w", 2.0, 0.4, 2)), TimeVerdict::kUnclear)
      << "two do not";
}

TEST(CompareTimes, HoldsOnlyTimesOfTheSameThing) {
  ResultRow other = time_row("w", 9);
  other.group_size = 32;
  const auto report =
      compare_times(run_of({time_row("w", 1), time_row("gone", 1)}), run_of({time_row("w", 1), other}), {});
  EXPECT_EQ(report.times.size(), 1U);
  EXPECT_EQ(report.only_before, 1);
  EXPECT_EQ(report.only_after, 1);
  EXPECT_TRUE(report.holds());
  EXPECT_FALSE(compare_times(run_of({time_row("a", 1)}), run_of({time_row("b", 1)}), {}).holds())
      << "nothing was compared";
}

TEST(CompareTimes, HoldsRowsWithoutATileSizeAgainstThoseOfTheDefault) {
  ResultRow old = time_row("w", 1);
  ResultRow now = time_row("w", 2);
  now.tile_tokens = kStripTileTokens;
  std::vector<RecordedRun> before = run_of({old});
  before.front().header.schema_version = 2;
  EXPECT_EQ(compare_times(before, run_of({now}), {}).times.at(0).verdict, TimeVerdict::kSlower);
  now.tile_tokens = 64;
  EXPECT_FALSE(compare_times(before, run_of({now}), {}).holds()) << "nothing was compared";
}

TEST(CompareTimes, HoldsVersion1RowsAgainstNewOnes) {
  ResultRow old = time_row("w", 1);
  old.group_size.reset();
  old.activation = old.gates = "none";
  std::vector<RecordedRun> before = run_of({old});
  before.front().header.schema_version = 1;
  EXPECT_EQ(compare_times(before, run_of({time_row("w", 2)}), {}).times.at(0).verdict, TimeVerdict::kSlower);
  before.front().header.schema_version = 2;
  EXPECT_FALSE(compare_times(before, run_of({time_row("w", 2)}), {}).holds())
      << "a group size it says, and another";
}

TEST(CompareTimes, TakesTheLastOfSeveralAndNoticesWhatIsLost) {
  EXPECT_EQ(compare_times(run_of({time_row("w", 9), time_row("w", 1)}), run_of({time_row("w", 1)}), {})
                .count(TimeVerdict::kSame),
            1);
  ResultRow failed = time_row("w", 1);
  failed.value.reset();
  failed.spread.reset();
  failed.status = Status::kFailed;
  failed.reason = "broken";
  const auto report = compare_times(run_of({time_row("w", 1)}), run_of({failed}), {});
  EXPECT_EQ(report.count(TimeVerdict::kLost), 1);
  EXPECT_FALSE(report.holds());
}

TEST(CompareTimes, HoldsModelledTimesAgainstModelledOnes) {
  const auto modelled = [](double value) {
    ResultRow row = time_row("w", value);
    row.source = Source::kModelled;
    row.backend = "sim: a GPU";
    row.spread.reset();
    row.samples = 0;
    return row;
  };
  EXPECT_EQ(verdict(modelled(1.0), modelled(1.0), 0), TimeVerdict::kSame) << "they repeat exactly";
  EXPECT_EQ(verdict(modelled(1.0), modelled(1.001), 0), TimeVerdict::kSlower) << "there is no noise";
  const auto report = compare_times(run_of({modelled(1.0)}), run_of({time_row("w", 1.0)}), {});
  EXPECT_TRUE(report.times.empty()) << "a measured time is no modelled one";
  EXPECT_EQ(report.only_before, 1);
  EXPECT_EQ(report.only_after, 1);
}

TEST(CompareTimes, RefusesTimesOfAnotherDevice) {
  EXPECT_EQ(error_text<InvalidArgument>([] {
              compare_times(run_of({time_row("w", 1)}, "an H100"), run_of({time_row("w", 1)}, "a CPU"), {});
            }),
            "baseline = an H100: these times are of a CPU, which says nothing about it (moescope diff "
            "--any-device compares them all the same)");
  EXPECT_EQ(error_text<InvalidArgument>([] { compare_times({}, {}, {.threshold = -1}); }),
            "threshold = -1: must be a fraction >= 0");
}

TEST(CompareTimes, TakesTheLayerAloneWhereBothHaveIt) {
  const auto stage = [](const char* name, double value) {
    ResultRow row = time_row("w", value);
    row.stage = name;
    return row;
  };
  const auto before = run_of({stage("router_select", 1), stage("layer", 3)});
  const auto after = run_of({stage("router_select", 2), stage("layer", 3)});
  const auto alone = compare_times(before, after, {.layers_alone = true});
  EXPECT_EQ(alone.times.size(), 1U);
  EXPECT_EQ(alone.count(TimeVerdict::kSame), 1);
  EXPECT_EQ(alone.only_before + alone.only_after, 0);
  EXPECT_EQ(compare_times(before, after, {}).count(TimeVerdict::kSlower), 1);
  const auto stages = compare_times(run_of({stage("router_select", 1)}), after, {.layers_alone = true});
  EXPECT_EQ(stages.count(TimeVerdict::kSlower), 1) << "where one has none, stages are all there is";
}

TEST(CompareTimes, ComparesDevicesWhenThatIsAskedFor) {
  const auto report = compare_times(run_of({time_row("w", 1)}, "an H100"),
                                    run_of({time_row("w", 2)}, "an H200"), {.any_device = true});
  EXPECT_EQ(report.count(TimeVerdict::kSlower), 1);
}

TEST(CompareTimes, TakesTheLastOfEqualPointsAsReportsDo) {
  ResultRow first = time_row("w", 1.0);
  ResultRow last = time_row("w", 2.0);
  for (ResultRow* row : {&first, &last}) {
    row->num_tokens = row->hidden_size = row->grid_rows = row->grid_cols = row->top_k = 1;
  }
  ResultRow formula = last;
  formula.source = Source::kAnalytic;
  formula.value = 9;
  const auto twice = run_of({first, last, formula});
  const auto report = compare_times(twice, run_of({last}), {});
  ASSERT_EQ(report.times.size(), 1U);
  const auto layers = recorded_layers(twice);
  ASSERT_EQ(layers.size(), 1U);
  EXPECT_EQ(layers[0].schedules.at(0).value(Stage::kLayer, "time_s"), 2.0) << "of the same source";
  EXPECT_EQ(compare_times(run_of({first, last}), run_of({last}), {}).times[0].before_s, 2.0);
}

}  // namespace
}  // namespace moescope
