#include "profiler/study/fastest.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace moescope {
namespace {

ScheduleStudy schedule(ScheduleKind kind, std::vector<double> times_s) {
  ScheduleStudy study;
  study.options.kind = kind;
  StageSamples layer{Stage::kLayer, std::move(times_s), {}};
  for (std::size_t round = 0; round < layer.samples_s.size(); ++round) {
    layer.rounds.push_back(static_cast<std::int64_t>(round));
  }
  study.times.stages.push_back(std::move(layer));
  return study;
}

const std::vector<double> kSteady = {1, 1.01, 1, 0.99, 1, 1.01, 0.99, 1};

std::vector<double> times(double factor, const std::vector<double>& drift = kSteady) {
  std::vector<double> values;
  for (const double value : drift) {
    values.push_back(factor * value);
  }
  return values;
}

TEST(Standings, RankByMedianAndCompareRoundByRound) {
  LayerStudy study;
  study.schedules = {schedule(ScheduleKind::kTokenCentric, times(3)),
                     schedule(ScheduleKind::kStaircase, times(2))};
  ScheduleStudy skipped;
  skipped.status = Status::kSkipped;
  study.schedules.push_back(skipped);
  const auto all = standings(study);
  ASSERT_EQ(all.size(), 2U) << "what was not measured is in no race";
  EXPECT_EQ(all[0].name, "staircase");
  EXPECT_TRUE(all[0].fastest);
  EXPECT_FALSE(all[1].fastest);
  EXPECT_FALSE(all[1].tied());
  EXPECT_DOUBLE_EQ(all[1].ratio->median, 1.5);
  EXPECT_EQ(conclusion_text(all),
            "staircase is the fastest, 1.50x over token_centric (1.50x to 1.50x: more than the noise)");
}

TEST(Standings, SeeThroughDriftThatAllShare) {
  // The machine became three times slower half way: spreads are large, the ratio is known.
  const std::vector<double> drift = {1, 1, 1, 1, 3, 3, 3, 3};
  LayerStudy study;
  study.schedules = {schedule(ScheduleKind::kTokenCentric, times(1.2, drift)),
                     schedule(ScheduleKind::kStaircase, times(1, drift))};
  EXPECT_FALSE(standings(study)[1].tied());
  EXPECT_GT(*usual_spread({study}), kNoisySpread) << "and it is told that the machine is noisy";
}

TEST(Standings, DoNotTellApartWhatTheRoundsDoNot) {
  LayerStudy study;
  study.schedules = {schedule(ScheduleKind::kTokenCentric, {1, 2, 1, 2, 1, 2, 1, 2}),
                     schedule(ScheduleKind::kExpertCentric, {2, 1, 2, 1, 2, 1, 2, 1}),
                     schedule(ScheduleKind::kStaircase, times(9))};
  const auto all = standings(study);
  EXPECT_TRUE(all[1].tied());
  EXPECT_TRUE(conclusion_text(all).starts_with(
      "token_centric and expert_centric cannot be told apart; 6.73x over staircase"))
      << conclusion_text(all);
  LayerStudy one;
  one.schedules = {schedule(ScheduleKind::kStaircase, times(1))};
  EXPECT_EQ(conclusion_text(standings(one)), "staircase alone was measured");
  EXPECT_EQ(conclusion_text({}), "nothing was measured");
}

TEST(Standings, AreUnsureOfFewRounds) {
  LayerStudy study;
  study.schedules = {schedule(ScheduleKind::kTokenCentric, {1.5, 1.5, 1.5, 1.5, 0.9}),
                     schedule(ScheduleKind::kStaircase, {1, 1, 1, 1, 1})};
  EXPECT_TRUE(standings(study)[1].tied()) << "of five rounds the extremes count";
  EXPECT_FALSE(usual_spread({}).has_value());
}

}  // namespace
}  // namespace moescope
