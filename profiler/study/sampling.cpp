#include "profiler/study/sampling.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "profiler/study/or_failure.hpp"

namespace moescope {
namespace {

bool throttled(const ClockSample& clocks, double min_fraction) {
  return clocks.sm_clock_hz >= 0 && clocks.sm_clock_max_hz > 0 &&
         clocks.sm_clock_hz < min_fraction * clocks.sm_clock_max_hz;
}

void record(ArmResult& result, const ArmSample& sample, std::int64_t round) {
  for (const StageTime& time : sample.times) {
    auto found = std::ranges::find(result.stages, time.stage, &StageSamples::stage);
    if (found == result.stages.end()) {
      result.stages.push_back({time.stage, {}, {}});
      found = std::prev(result.stages.end());
    }
    found->samples_s.push_back(time.time_s);
    found->rounds.push_back(round);
  }
  result.clocks.push_back(sample.clocks);
}

/// Runs one arm and turns an error that the user can act on into a recorded failure; a bug is not one of
/// these.
std::optional<ArmSample> try_run(const Arm& arm, ArmResult& result) {
  const auto fail = [&](ExitCode code, std::string reason) -> std::optional<ArmSample> {
    result.failure = std::move(reason);
    result.failure_code = code;
    result.stages.clear();
    result.clocks.clear();
    return std::nullopt;
  };
  return or_failure([&]() -> std::optional<ArmSample> { return arm.run(); }, fail);
}

bool converged(const ArmResult& result, const SamplingOptions& options) {
  const StageSamples* layer = result.find(Stage::kLayer);
  return layer != nullptr && layer->spread_of_median() <= options.target_spread;
}

std::int64_t samples_of(const ArmResult& result) {
  const StageSamples* layer = result.find(Stage::kLayer);
  return layer == nullptr ? 0 : layer->count();
}

/// Below so many samples no rank is low enough for median_bounds().
constexpr std::size_t kFewest = 6;

/// The number of samples below the true median is Binomial(n, 1/2); its normal approximation puts the median
/// between the order statistics of ranks n/2 -+ 1.96 sqrt(n)/2 with probability 0.95.
std::pair<double, double> median_bounds(std::vector<double> values) {
  std::ranges::sort(values);
  const auto n = static_cast<double>(values.size());
  const auto low = static_cast<std::size_t>(std::max(0.0, std::floor(n / 2 - 0.98 * std::sqrt(n))));
  return {values[low], values[values.size() - 1 - low]};
}

}  // namespace

void SamplingOptions::validate() const {
  const auto require = [](bool holds, std::string_view field, auto value, std::string_view what) {
    if (!holds) {
      throw InvalidArgument(field, fmt::format("{}", value), what);
    }
  };
  require(warmup_rounds >= 0, "warmup_rounds", warmup_rounds, "must be >= 0");
  require(min_samples >= 2, "min_samples", min_samples, "must be >= 2: one sample has no spread");
  require(max_rounds >= min_samples, "max_rounds", max_rounds, "must be >= min_samples");
  require(max_time_s > 0 && std::isfinite(max_time_s), "max_time_s", max_time_s, "must be finite and > 0");
  require(target_spread >= 0, "target_spread", target_spread, "must be >= 0");
  require(min_clock_fraction >= 0 && min_clock_fraction <= 1, "min_clock_fraction", min_clock_fraction,
          "must be in 0..1");
}

double median(std::vector<double> values) {
  if (values.empty()) {
    throw InternalError("median of nothing");
  }
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

double StageSamples::median_s() const { return median(samples_s); }
double StageSamples::min_s() const { return std::ranges::min(samples_s); }
double StageSamples::max_s() const { return std::ranges::max(samples_s); }
double StageSamples::spread() const {
  const double middle = median_s();
  return middle > 0 ? (max_s() - min_s()) / middle : 0;
}

double StageSamples::spread_of_median() const {
  if (samples_s.size() < kFewest) {
    return std::numeric_limits<double>::infinity();
  }
  const auto [low, high] = median_bounds(samples_s);
  return high == low ? 0 : (high - low) / median_s();
}

const StageSamples* ArmResult::find(Stage stage) const {
  const auto found = std::ranges::find(stages, stage, &StageSamples::stage);
  return found == stages.end() ? nullptr : &*found;
}

std::vector<ArmResult> sample_alternating(const std::vector<Arm>& arms, const SamplingOptions& options,
                                          const std::function<double()>& now_s,
                                          const std::function<void(std::int64_t)>& after_round) {
  options.validate();
  std::vector<ArmResult> results(arms.size());
  for (std::size_t a = 0; a < arms.size(); ++a) {
    results[a].name = arms[a].name;
  }
  for (std::int64_t round = 0; round < options.warmup_rounds; ++round) {
    for (std::size_t a = 0; a < arms.size(); ++a) {
      if (!results[a].failure) {
        try_run(arms[a], results[a]);
      }
    }
  }
  const double start_s = now_s();
  for (std::int64_t round = 0; round < options.max_rounds; ++round) {
    bool enough = true;
    bool known = true;
    for (std::size_t i = 0; i < arms.size(); ++i) {
      const std::size_t a = (i + static_cast<std::size_t>(round)) % arms.size();
      ArmResult& result = results[a];
      if (result.failure) {
        continue;
      }
      const auto sample = try_run(arms[a], result);
      if (!sample) {
        continue;
      }
      if (throttled(sample->clocks, options.min_clock_fraction)) {
        ++result.discarded;
      } else {
        record(result, *sample, round);
      }
      enough = enough && samples_of(result) >= options.min_samples;
      known = known && converged(result, options);
    }
    if (after_round) {
      after_round(round + 1);
    }
    if (enough && (known || now_s() - start_s >= options.max_time_s)) {
      break;
    }
  }
  return results;
}

std::vector<ArmResult> sample_alternating(const std::vector<Arm>& arms, const SamplingOptions& options) {
  return sample_alternating(arms, options, [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  });
}

std::optional<RatioSummary> speed_up(const StageSamples* base, const StageSamples* other) {
  if (base == nullptr || other == nullptr) {
    return std::nullopt;
  }
  std::vector<double> ratios;
  for (std::size_t i = 0, j = 0; i < base->rounds.size() && j < other->rounds.size();) {
    if (base->rounds[i] == other->rounds[j]) {
      if (other->samples_s[j] > 0) {
        ratios.push_back(base->samples_s[i] / other->samples_s[j]);
      }
      ++i;
      ++j;
    } else {
      ++(base->rounds[i] < other->rounds[j] ? i : j);
    }
  }
  if (ratios.empty()) {
    return std::nullopt;
  }
  const auto [low, high] = median_bounds(ratios);
  return RatioSummary{median(ratios),
                      std::ranges::min(ratios),
                      std::ranges::max(ratios),
                      static_cast<std::int64_t>(ratios.size()),
                      low,
                      high};
}

}  // namespace moescope
