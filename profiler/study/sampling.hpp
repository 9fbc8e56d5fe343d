#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/layer/stage.hpp"

namespace moescope {

/// How samples are taken, and when sampling stops. Every number of rounds and seconds is for all arms
/// together.
struct SamplingOptions {
  L2State l2 = L2State::kCold;       ///< before each sample
  std::int64_t warmup_rounds = 1;    ///< run and thrown away
  std::int64_t min_samples = 10;     ///< per arm; a quick look may use fewer, never fewer than 2
  std::int64_t max_rounds = 200;     ///< limit of rounds, discarded samples included
  double max_time_s = 5;             ///< no new round after this, once min_samples are there
  double target_spread = 0.005;      ///< of the median (spread_of_median), for the layer's time of every arm
  double min_clock_fraction = 0.75;  ///< of the maximum SM clock; a sample below it is discarded and counted

  /// Throws InvalidArgument naming the first field that cannot work.
  void validate() const;
};

/// One run of an arm: its stage times and what was seen of the clocks.
struct ArmSample {
  std::vector<StageTime> times;
  ClockSample clocks;
};

/// One of the alternatives measured side by side.
struct Arm {
  std::string name;
  std::function<ArmSample()> run;
};

/// Times of one stage of one arm. `rounds[i]` is the round that `samples_s[i]` was taken in.
struct StageSamples {
  Stage stage = Stage::kLayer;
  std::vector<double> samples_s;
  std::vector<std::int64_t> rounds;

  std::int64_t count() const { return static_cast<std::int64_t>(samples_s.size()); }
  double median_s() const;
  double min_s() const;
  double max_s() const;
  /// (max - min) / median, as rows carry it.
  double spread() const;
  /// Width of the 95 % confidence interval of the median (order statistics, no distribution assumed) /
  /// median; infinite while there are too few samples for one.
  double spread_of_median() const;
};

struct ArmResult {
  std::string name;
  std::vector<StageSamples>
      stages;                  ///< in the order the arm reported them; empty when every sample was discarded
  std::int64_t discarded = 0;  ///< samples below min_clock_fraction
  std::optional<std::string>
      failure;  ///< the message of the error that ended this arm; its samples are dropped
  ExitCode failure_code = ExitCode::kOk;
  std::vector<ClockSample> clocks;  ///< of the samples that count

  /// Null when the stage has no samples.
  const StageSamples* find(Stage stage) const;
};

/// Median with its extremes; of a ratio here.
struct RatioSummary {
  double median = 0;
  double min = 0;
  double max = 0;
  std::int64_t samples = 0;
  /// Where the median lies with a confidence of 95 % (order statistics, no distribution assumed); of fewer
  /// than 6 samples, which know less, the extremes.
  double low = 0;
  double high = 0;

  /// Whether it cannot be told from 1.
  bool may_be_one() const { return low <= 1 && high >= 1; }
};

/// Median of an unordered list; the mean of the middle two for even counts. Throws InternalError when empty.
double median(std::vector<double> values);

/// Runs every arm once per round, the first arm moving on by one each round, so that drift of the machine
/// meets all arms alike. Stops when every arm has min_samples and either its median is known to target_spread
/// or a limit is reached. An arm that throws is recorded as failed and left out from then on; the others go
/// on. `now_s` is a monotonic clock in seconds; `after_round` (may be empty) is called with the rounds done.
/// Throws InvalidArgument for options that cannot work.
std::vector<ArmResult> sample_alternating(const std::vector<Arm>& arms, const SamplingOptions& options,
                                          const std::function<double()>& now_s,
                                          const std::function<void(std::int64_t)>& after_round = {});

/// The same on std::chrono::steady_clock.
std::vector<ArmResult> sample_alternating(const std::vector<Arm>& arms, const SamplingOptions& options);

/// Time of `baseline` / time of `other`, round by round, over the rounds in which both have a sample: above 1
/// the other is faster. Null when there is no such round or either is null.
std::optional<RatioSummary> speed_up(const StageSamples* baseline, const StageSamples* other);

}  // namespace moescope
