#include "profiler/study/sampling.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <new>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// A machine whose clock moves only when an arm runs.
struct FakeMachine {
  double now_s = 0;
  std::vector<std::string> order;

  /// An arm whose n-th run takes times_s[n] (the last one from then on).
  Arm arm(const std::string& name, std::vector<double> times_s, std::vector<ClockSample> clocks = {}) {
    auto calls = std::make_shared<std::size_t>(0);
    return {name, [this, name, times_s = std::move(times_s), clocks = std::move(clocks), calls] {
              const std::size_t call = (*calls)++;
              const double time_s = times_s[std::min(call, times_s.size() - 1)];
              now_s += time_s;
              order.push_back(name);
              ArmSample sample{{{Stage::kExperts, time_s / 2}, {Stage::kLayer, time_s}}, {}};
              if (call < clocks.size()) {
                sample.clocks = clocks[call];
              }
              return sample;
            }};
  }
  std::vector<ArmResult> sample(const std::vector<Arm>& arms, const SamplingOptions& options) {
    return sample_alternating(arms, options, [this] { return now_s; });
  }
};

const StageSamples& layer_of(const ArmResult& result) {
  const StageSamples* layer = result.find(Stage::kLayer);
  if (layer == nullptr) {
    throw std::runtime_error("no layer samples");
  }
  return *layer;
}

TEST(Sampling, StopsAtMinSamplesWhenTheMedianIsKnown) {
  FakeMachine machine;
  const auto results = machine.sample({machine.arm("steady", {9.0, 2.0})}, {});
  const StageSamples& layer = layer_of(results[0]);
  EXPECT_EQ(layer.count(), 10);
  EXPECT_EQ(machine.order.size(), 11U) << "one warm-up run";
  EXPECT_EQ(layer.median_s(), 2.0) << "the warm-up run does not count";
  EXPECT_EQ(layer.max_s(), 2.0);
  EXPECT_EQ(layer.spread(), 0.0);
  EXPECT_EQ(results[0].find(Stage::kExperts)->median_s(), 1.0);
  EXPECT_EQ(results[0].find(Stage::kSchedule), nullptr);
}

TEST(Sampling, GoesOnWhileTheMedianIsUncertain) {
  FakeMachine machine;
  std::vector<double> times;
  for (int i = 0; i < 31; ++i) {
    times.push_back(i % 2 == 0 ? 1.0 : 1.2);
  }
  times.push_back(1.0);
  SamplingOptions options;
  options.max_time_s = 1e9;
  options.max_rounds = 10'000;
  const auto results = machine.sample({machine.arm("settles", times)}, options);
  EXPECT_GT(layer_of(results[0]).count(), 31);
  EXPECT_LT(layer_of(results[0]).count(), 10'000);
  EXPECT_LE(layer_of(results[0]).spread_of_median(), options.target_spread);
}

TEST(Sampling, StopsAtTheLimitOfTimeButNotBeforeMinSamples) {
  FakeMachine machine;
  SamplingOptions options;
  options.max_time_s = 5;
  const auto noisy = [] { return std::vector<double>{1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1}; };
  EXPECT_EQ(layer_of(machine.sample({machine.arm("noisy", noisy())}, options)[0]).count(), 10);
  options.min_samples = 2;
  EXPECT_EQ(layer_of(machine.sample({machine.arm("noisy", noisy())}, options)[0]).count(), 4)
      << "1 + 2 + 1 + 2 s";
}

TEST(Sampling, StopsAtTheLimitOfRounds) {
  FakeMachine machine;
  SamplingOptions options;
  options.max_rounds = 12;
  options.max_time_s = 1e9;
  std::vector<double> rising(20);
  for (std::size_t i = 0; i < rising.size(); ++i) {
    rising[i] = static_cast<double>(i + 1);
  }
  EXPECT_EQ(layer_of(machine.sample({machine.arm("rising", rising)}, options)[0]).count(), 12);
}

TEST(Sampling, AlternatesTheArmsAndMovesTheFirstOne) {
  FakeMachine machine;
  SamplingOptions options;
  options.warmup_rounds = 1;
  options.min_samples = 3;
  options.max_rounds = 3;
  machine.sample({machine.arm("a", {1}), machine.arm("b", {2}), machine.arm("c", {3})}, options);
  EXPECT_EQ(machine.order,
            (std::vector<std::string>{"a", "b", "c", "a", "b", "c", "b", "c", "a", "c", "a", "b"}));
}

TEST(Sampling, DiscardsAndCountsSamplesBelowThreeQuartersOfTheMaximumClock) {
  FakeMachine machine;
  const ClockSample full{1.98e9, 1.98e9, 50};
  const ClockSample slow{1.4e9, 1.98e9, 80};
  const auto results =
      machine.sample({machine.arm("hot", {1, 1, 7, 1, 7, 1}, {full, full, slow, full, slow})}, {});
  EXPECT_EQ(results[0].discarded, 2);
  EXPECT_EQ(layer_of(results[0]).count(), 10);
  EXPECT_EQ(layer_of(results[0]).max_s(), 1) << "no throttled sample counts";
  EXPECT_EQ(results[0].clocks.size(), 10U);
}

TEST(Sampling, EndsWithoutSamplesWhenTheClockNeverRecovers) {
  FakeMachine machine;
  SamplingOptions options;
  options.max_rounds = 15;
  const std::vector<ClockSample> slow(100, ClockSample{1e9, 2e9, 90});
  const auto results = machine.sample({machine.arm("hot", {1}, slow)}, options);
  EXPECT_EQ(results[0].find(Stage::kLayer), nullptr);
  EXPECT_EQ(results[0].discarded, 15);
  EXPECT_FALSE(results[0].failure.has_value());
}

TEST(Sampling, RecordsAFailingArmAndGoesOnWithTheOthers) {
  FakeMachine machine;
  int calls = 0;
  const Arm failing{"failing", [&]() -> ArmSample {
                      if (++calls == 4) {
                        throw OutOfMemory("dense_masked", 1U << 20U, 1U << 10U);
                      }
                      return {{{Stage::kLayer, 1.0}}, {}};
                    }};
  const Arm exhausted{"exhausted", []() -> ArmSample { throw std::bad_alloc(); }};
  const auto results = machine.sample({failing, exhausted, machine.arm("fine", {2})}, {});
  ASSERT_TRUE(results[0].failure.has_value());
  EXPECT_EQ(*results[0].failure,
            "dense_masked needs 1048576 bytes (0.00 GiB), 1024 bytes (0.00 GiB) are available");
  EXPECT_TRUE(results[0].stages.empty()) << "samples of an arm that failed are not results";
  EXPECT_EQ(calls, 4) << "a failed arm is not run again";
  EXPECT_EQ(results[1].failure, "out of memory");
  EXPECT_EQ(layer_of(results[2]).count(), 10);
}

TEST(Sampling, LetsABugOfItsOwnThrough) {
  FakeMachine machine;
  const Arm broken{"broken", []() -> ArmSample { throw InternalError("offsets not monotone"); }};
  EXPECT_THROW(machine.sample({broken}, {}), InternalError);
}

TEST(Sampling, RefusesOptionsThatCannotWork) {
  const auto message = [](SamplingOptions options) {
    try {
      options.validate();
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message({.min_samples = 1}), "min_samples = 1: must be >= 2: one sample has no spread");
  EXPECT_EQ(message({.max_rounds = 5}), "max_rounds = 5: must be >= min_samples");
  EXPECT_EQ(message({.max_time_s = 0}), "max_time_s = 0: must be finite and > 0");
  EXPECT_EQ(message({.max_time_s = NAN}), "max_time_s = nan: must be finite and > 0");
  EXPECT_EQ(message({.min_clock_fraction = 1.5}), "min_clock_fraction = 1.5: must be in 0..1");
}

TEST(Sampling, TellsTheSpreadOfTheMedianFromOrderStatistics) {
  StageSamples samples;
  for (const double value : {5.0, 1.0, 4.0, 2.0, 3.0}) {
    samples.samples_s.push_back(value);
  }
  EXPECT_TRUE(std::isinf(samples.spread_of_median())) << "five samples hold no 95 % interval";
  EXPECT_EQ(samples.median_s(), 3.0);
  EXPECT_DOUBLE_EQ(samples.spread(), 4.0 / 3.0);
  samples.samples_s.clear();
  for (int i = 1; i <= 10; ++i) {
    samples.samples_s.push_back(i);
  }
  // Ranks 2 and 9 of 10: 97.9 % by the binomial distribution, the tightest pair above 95 %.
  EXPECT_DOUBLE_EQ(samples.spread_of_median(), (9.0 - 2.0) / 5.5);
  EXPECT_EQ(samples.median_s(), 5.5);
}

TEST(SpeedUp, ComparesRoundByRound) {
  FakeMachine machine;
  SamplingOptions options;
  options.warmup_rounds = 0;
  options.min_samples = 4;
  options.max_rounds = 4;
  // Machine drifts by 3x; the ratio stays 2.
  const auto results =
      machine.sample({machine.arm("base", {2, 4, 6, 6}), machine.arm("fast", {1, 2, 3, 3})}, options);
  const auto ratio = speed_up(&layer_of(results[0]), &layer_of(results[1]));
  ASSERT_TRUE(ratio.has_value());
  EXPECT_EQ(ratio->median, 2.0);
  EXPECT_EQ(ratio->min, 2.0);
  EXPECT_EQ(ratio->max, 2.0);
  EXPECT_EQ(ratio->samples, 4);
  EXPECT_FALSE(speed_up(&layer_of(results[0]), results[1].find(Stage::kSchedule)).has_value());
}

TEST(SpeedUp, LeavesOutRoundsWithADiscardedSample) {
  FakeMachine machine;
  SamplingOptions options;
  options.warmup_rounds = 0;
  options.min_samples = 3;
  options.max_rounds = 4;
  const std::vector<ClockSample> clocks = {{2e9, 2e9, 0}, {1e9, 2e9, 0}, {2e9, 2e9, 0}, {2e9, 2e9, 0}};
  const auto results = machine.sample(
      {machine.arm("base", {2, 100, 6, 8}, clocks), machine.arm("fast", {1, 2, 3, 4})}, options);
  const auto ratio = speed_up(&layer_of(results[0]), &layer_of(results[1]));
  ASSERT_TRUE(ratio.has_value());
  EXPECT_EQ(ratio->samples, 3);
  EXPECT_EQ(ratio->max, 2.0);
}

}  // namespace
}  // namespace moescope
