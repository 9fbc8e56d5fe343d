#include "profiler/calibration/fit_rates.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// What a schedule had to do at a point, and what it took.
struct Sample {
  ScheduleWork work;
  double time_s = 0;
};

/// A number that is fitted, and between what.
struct FittedRate {
  double ScheduleRates::*member;
  double low;
  double high;
};

/// Upper bounds are what is built in, over what kernels reach of it as moescope ceilings measures: peaks of
/// memory and tensor cores, and for L2, whose peak nobody publishes, as much as leaves it unbound
/// (docs/performance/). Of chains those that some sample has.
std::vector<FittedRate> fitted_rates(const DeviceCeilingRates& ceilings, const std::vector<Sample>& samples) {
  constexpr double kMemoryPeak = 1.0586;
  constexpr double kMatrixPeak = 1.2493;
  constexpr double kCachePeak = 2.5415;
  constexpr double kLeastBytesPerS = 5e11;
  constexpr double kLeastFlopPerS = 1e12;
  std::vector<FittedRate> rates = {
      {&ScheduleRates::fixed_s, 1e-6, 1e-3},
      {&ScheduleRates::memory_bytes_per_s, kLeastBytesPerS, kMemoryPeak * ceilings.memory_bytes_per_s},
      {&ScheduleRates::cache_bytes_per_s, kLeastBytesPerS, kCachePeak * ceilings.cache_bytes_per_s},
      {&ScheduleRates::flop_per_s, kLeastFlopPerS, kMatrixPeak * ceilings.matrix_flop_per_s}};
  const auto any = [&](double ScheduleWork::*member) {
    return std::ranges::any_of(samples, [&](const Sample& sample) { return sample.work.*member > 0; });
  };
  if (any(&ScheduleWork::pairs)) {
    rates.push_back({&ScheduleRates::pair_s, 1e-14, 1e-9});
  }
  if (any(&ScheduleWork::steps)) {
    rates.push_back({&ScheduleRates::step_s, 1e-9, 1e-4});
  }
  if (any(&ScheduleWork::chain_bytes)) {
    rates.push_back({&ScheduleRates::chain_bytes_per_s, 5e9, 1e13});
  }
  return rates;
}

std::vector<Sample> samples_of(const RatePoints& points, const ScheduleRates& schedule) {
  std::vector<Sample> samples;
  const std::string name = to_string(schedule.schedule);
  for (const auto& [label, point] : points.points) {
    const auto found = point.schedules.find(name);
    if (found != point.schedules.end() && found->second.time_s > 0 && schedule.hold_for(point.shape)) {
      samples.push_back({schedule_work(point.shape, point.skew, found->second.cost, schedule, points.size),
                         found->second.time_s});
    }
  }
  return samples;
}

double loss_of(const ScheduleRates& rates, const std::vector<Sample>& samples) {
  double sum = 0;
  for (const Sample& sample : samples) {
    const double ratio = std::log(sample.work.predicted_s(rates) / sample.time_s);
    sum += ratio * ratio;
  }
  return sum;
}

/// Coordinate descent in factors: each number in turn up or down, by smaller steps once none helps.
ScheduleRates descend(ScheduleRates rates, const std::vector<Sample>& samples,
                      const std::vector<FittedRate>& fitted) {
  constexpr double kFirstStep = 2;
  constexpr double kLastStep = 1.0005;
  constexpr double kLeastGain = 1e-12;
  double best = loss_of(rates, samples);
  for (double step = kFirstStep; step > kLastStep;) {
    bool improved = false;
    for (const FittedRate& rate : fitted) {
      for (const double factor : {step, 1 / step}) {
        ScheduleRates trial = rates;
        trial.*rate.member = std::clamp(rates.*rate.member * factor, rate.low, rate.high);
        const double loss = loss_of(trial, samples);
        if (loss < best - kLeastGain) {
          rates = trial;
          best = loss;
          improved = true;
        }
      }
    }
    if (!improved) {
      step = std::sqrt(step);
    }
  }
  return rates;
}

/// From everything at its bound down, and from a slower cache in steps, with chains that bind nothing and
/// with chains that bind: which of them binds where is a choice that single steps do not undo. Another start
/// has to be better by more than noise.
ScheduleRates fit(ScheduleRates rates, const std::vector<Sample>& samples,
                  const std::vector<FittedRate>& fitted) {
  constexpr double kFixedShare = 0.8;
  constexpr double kClearGain = 0.99;
  for (const FittedRate& rate : fitted) {
    rates.*rate.member = rate.high;
  }
  rates.fixed_s = kFixedShare * std::ranges::min(samples, {}, &Sample::time_s).time_s;
  const auto set = [&](ScheduleRates& start, double ScheduleRates::*member, double value) {
    if (std::ranges::find(fitted, member, &FittedRate::member) != fitted.end()) {
      start.*member = value;
    }
  };
  ScheduleRates best;
  double least = std::numeric_limits<double>::infinity();
  for (const double pair_s : {1e-14, 1e-12}) {
    for (const double step_s : {1e-9, 3e-7, 1e-5}) {
      for (const double share : {1.0, 0.5, 0.25, 0.125}) {
        ScheduleRates start = rates;
        start.cache_bytes_per_s *= share;
        set(start, &ScheduleRates::pair_s, pair_s);
        set(start, &ScheduleRates::step_s, step_s);
        const ScheduleRates other = descend(start, samples, fitted);
        const double loss = loss_of(other, samples);
        if (std::isinf(least) || loss < kClearGain * least) {
          best = other;
          least = loss;
        }
      }
    }
  }
  return best;
}

struct SelectSample {
  SelectionRates::Terms terms;  ///< over the time
};

/// Numbers that are not negative and minimise the sum of squared relative errors: one after the other to its
/// best, again and again.
SelectionRates::Terms fit_terms(const std::vector<SelectSample>& samples) {
  constexpr int kRounds = 20000;
  SelectionRates::Terms rates{};
  std::vector<double> left(samples.size(), 1.0);  // 1 - predicted over measured
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < rates.size(); ++i) {
      double slope = 0;
      double curvature = 0;
      for (std::size_t n = 0; n < samples.size(); ++n) {
        slope += left[n] * samples[n].terms[i];
        curvature += samples[n].terms[i] * samples[n].terms[i];
      }
      const double next = std::max(0.0, rates[i] + slope / curvature);
      for (std::size_t n = 0; n < samples.size(); ++n) {
        left[n] -= (next - rates[i]) * samples[n].terms[i];
      }
      rates[i] = next;
    }
  }
  return rates;
}

/// As they are written: more digits than the fit is good for would only be noise in a file.
double rounded(double number) {
  constexpr int kDigits = 3;
  const double unit = std::pow(10.0, std::floor(std::log10(number)) - kDigits + 1);
  return std::stod(fmt::format("{:.3g}", std::round(number / unit) * unit));
}

/// Nothing where a form has fewer samples than numbers.
std::optional<SelectionRates> fit_selection(const RatePoints& points) {
  SelectionRates rates;
  std::map<const SelectionRates::Terms*, std::vector<SelectSample>> samples;
  for (SelectionRates::Terms* terms :
       {&rates.pairs_of_few, &rates.pairs_of_many, &rates.strips_of_few, &rates.strips_of_many}) {
    samples[terms];
  }
  for (const auto& [label, point] : points.points) {
    for (const ScheduleRates& schedule : schedules_of_gpu()) {
      const auto found = point.schedules.find(to_string(schedule.schedule));
      if (found == point.schedules.end() || found->second.select_s <= 0) {
        continue;
      }
      const bool strips = schedule.schedule.kind == ScheduleKind::kStaircase;
      SelectSample sample{select_terms(point.shape)};
      for (double& term : sample.terms) {
        term /= found->second.select_s;
      }
      samples[&rates.of(point.shape, strips, points.size.num_sms)].push_back(sample);
    }
  }
  for (SelectionRates::Terms* terms :
       {&rates.pairs_of_few, &rates.pairs_of_many, &rates.strips_of_few, &rates.strips_of_many}) {
    if (samples[terms].size() < terms->size()) {
      return std::nullopt;
    }
    *terms = fit_terms(samples[terms]);
    for (double& term : *terms) {
      term = term > 0 ? rounded(term) : 0;
    }
  }
  return rates;
}

}  // namespace

RateFit fit_rates(const RatePoints& points, const DeviceCeilingRates& ceilings) {
  RateFit result;
  result.points = static_cast<std::int64_t>(points.points.size());
  result.selection = fit_selection(points);
  for (const ScheduleRates& schedule : schedules_of_gpu()) {
    const std::vector<Sample> samples = samples_of(points, schedule);
    const auto fitted = fitted_rates(ceilings, samples);
    if (samples.size() < fitted.size()) {
      throw InvalidArgument(
          "rows", fmt::format("{} points", samples.size()),
          fmt::format("must be at least {} with {}", fitted.size(), to_string(schedule.schedule)));
    }
    ScheduleRates rates = fit(schedule, samples, fitted);
    for (const FittedRate& rate : fitted) {
      rates.*rate.member = rounded(rates.*rate.member);
    }
    ScheduleFit quality{.schedule = to_string(schedule.schedule),
                        .points = static_cast<std::int64_t>(samples.size()),
                        .least = std::numeric_limits<double>::infinity(),
                        .most = 0};
    for (const Sample& sample : samples) {
      const double ratio = sample.work.predicted_s(rates) / sample.time_s;
      quality.least = std::min(quality.least, ratio);
      quality.most = std::max(quality.most, ratio);
    }
    result.schedules.push_back(rates);
    result.fits.push_back(quality);
  }
  return result;
}

ChoiceLoss choice_loss(const RatePoints& points, const std::vector<ScheduleRates>& schedules,
                       const std::optional<SelectionRates>& selection) {
  ChoiceLoss loss;
  for (const auto& [label, point] : points.points) {
    const TimedSchedule* chosen = nullptr;
    double least_predicted_s = std::numeric_limits<double>::infinity();
    double fastest_s = std::numeric_limits<double>::infinity();
    double fastest_layer_s = std::numeric_limits<double>::infinity();
    for (const ScheduleRates& rates : schedules) {
      const auto found = point.schedules.find(to_string(rates.schedule));
      if (found == point.schedules.end() || found->second.time_s <= 0) {
        continue;
      }
      const TimedSchedule& recorded = found->second;
      fastest_s = std::min(fastest_s, recorded.time_s + recorded.select_s);
      fastest_layer_s = std::min(fastest_layer_s, recorded.layer_s);
      const double predicted_s = predict_schedule(point.shape, point.skew, recorded.cost, rates, points.size,
                                                  selection && recorded.select_s > 0 ? &*selection : nullptr)
                                     .predicted_s;
      if (rates.hold_for(point.shape) && predicted_s < least_predicted_s) {
        least_predicted_s = predicted_s;
        chosen = &recorded;
      }
    }
    if (chosen == nullptr) {
      continue;
    }
    const double lost = (chosen->time_s + chosen->select_s) / fastest_s;
    const double layer_lost = fastest_layer_s > 0 ? chosen->layer_s / fastest_layer_s : 1;
    ++loss.points;
    loss.mean += lost;
    loss.largest = std::max(loss.largest, lost);
    loss.layer_mean += layer_lost;
    loss.layer_largest = std::max(loss.layer_largest, layer_lost);
  }
  if (loss.points > 0) {
    loss.mean /= static_cast<double>(loss.points);
    loss.layer_mean /= static_cast<double>(loss.points);
  }
  return loss;
}

std::string fit_text(const RateFit& fit) {
  std::string text;
  for (std::size_t i = 0; i < fit.fits.size(); ++i) {
    const ScheduleFit& quality = fit.fits[i];
    const ScheduleRates& rates = fit.schedules[i];
    text += fmt::format(
        "{}: fixed {:.3g} s, memory {:.3g} bytes/s, cache {:.3g} bytes/s, {:.3g} FLOP/s; predicted over "
        "measured "
        "{:.2f} to {:.2f} at {} points\n",
        quality.schedule, rates.fixed_s, rates.memory_bytes_per_s, rates.cache_bytes_per_s, rates.flop_per_s,
        quality.least, quality.most, quality.points);
    if (rates.pair_s > 0 || rates.step_s > 0) {
      text +=
          fmt::format("  chains: {:.3g} s a pair, {:.3g} s a step, {:.3g} bytes/s of one multiprocessor\n",
                      rates.pair_s, rates.step_s, rates.chain_bytes_per_s);
    }
  }
  return text;
}

std::string loss_text(std::string_view what, const ChoiceLoss& loss) {
  return fmt::format(
      "{}: what auto chooses over the fastest, stages mean {:.4f}, largest {:.3f}; layers mean {:.4f}, "
      "largest "
      "{:.3f}; {} points\n",
      what, loss.mean, loss.largest, loss.layer_mean, loss.layer_largest, loss.points);
}

}  // namespace moescope
