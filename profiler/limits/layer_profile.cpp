#include "profiler/limits/layer_profile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "profiler/study/layer_rows.hpp"

namespace moescope {
namespace {

/// One run, stage by stage. Throws CountersUnavailable.
std::vector<StageKernels> trace_stages(LayerExecution& execution, KernelTracer& tracer) {
  std::vector<StageKernels> stages;
  for (const Stage stage : execution.stages()) {
    stages.push_back({stage, tracer.trace([&] {
                        execution.enqueue(stage);
                        execution.synchronize();
                      })});
  }
  return stages;
}

/// Rows of one stage: its metrics, then what follows from them.
void append_stage_rows(std::vector<ResultRow>& rows, const Point& context, const LayerProfile& profile,
                       std::size_t schedule, const StageMetrics& metrics) {
  const auto measured = [&](std::string metric, double value, std::string unit) -> ResultRow& {
    return rows.emplace_back(
        value_row(context, metrics.stage, Source::kMeasured, std::move(metric), value, std::move(unit)));
  };
  for (const MetricValue& value : metrics.values) {
    const std::string unit = value.unit.empty() ? "counter" : value.unit;
    if (value.value) {
      measured(value.name, *value.value, unit);
    } else {
      rows.push_back(absent_row(context, metrics.stage, Source::kMeasured, value.name, unit,
                                Status::kUnavailable, value.reason));
    }
  }
  const StageSamples* time = profile.study.schedules[schedule].times.find(metrics.stage);
  if (time == nullptr) {
    return;
  }
  if (const auto bytes = metrics.sum({"hbm_read_bytes", "hbm_write_bytes"})) {
    measured("hbm_bytes_per_s", *bytes / time->median_s(), "bytes_per_s");
  }
  const auto changes = metrics.sum({"l2_write_bytes", "l2_reduction_bytes", "l2_atomic_bytes"});
  if (const auto reads = l2_reads(metrics); reads && changes) {
    measured("l2_bytes_per_s", (*reads + *changes) / time->median_s(), "bytes_per_s");
  }
  const auto limits = profile.limits(schedule, metrics.stage);
  for (const Limit& limit : limits) {
    measured(fmt::format("{}_fraction_of_ceiling", limit.resource), limit.fraction, "fraction");
  }
  if (!limits.empty()) {
    measured("nearest_limit_fraction", limits.front().fraction, "fraction").reason = bound_text(limits);
  }
}

}  // namespace

double useful_flop_of(const AnalyticCost& cost, Stage stage) {
  const auto flop = [&](Stage one) { return static_cast<double>(cost.useful_flop(one)); };
  if (stage == Stage::kExperts) {
    return flop(Stage::kExperts) + flop(Stage::kExpertScores) + flop(Stage::kExpertCombine);
  }
  const bool part = stage == Stage::kExpertScores || stage == Stage::kExpertCombine;
  return part && flop(stage) == 0 ? flop(Stage::kExperts) / 2 : flop(stage);
}

std::optional<double> floor_bytes_of(const AnalyticCost& cost, Stage stage) {
  if (stage == Stage::kExperts) {
    return static_cast<double>(expert_bytes(cost, MemoryLevel::kHbm));
  }
  const std::int64_t bytes = cost.bytes(stage, MemoryLevel::kHbm);
  const bool part = stage == Stage::kExpertScores || stage == Stage::kExpertCombine;
  return part && bytes == 0 ? std::nullopt : std::optional(static_cast<double>(bytes));
}

std::vector<Limit> LayerProfile::limits(std::size_t schedule, Stage stage) const {
  const StageMetrics* metrics = counted[schedule].find(stage);
  const StageSamples* time = study.schedules[schedule].times.find(stage);
  return metrics == nullptr || time == nullptr ? std::vector<Limit>{}
                                               : stage_limits(time->median_s(), *metrics, ceilings);
}

namespace {

/// Replays every schedule of profile.study that ran; `prepare` loads the one of that number.
void count_schedules(LayerProfile& profile, const MoeBackend& backend, L2State l2,
                     const CounterSetup& counters, KernelTracer* tracer, const StudyProgress& progress,
                     const std::function<std::unique_ptr<LayerExecution>(std::size_t schedule)>& prepare) {
  if (tracer == nullptr) {
    profile.no_kernels = fmt::format("the {} backend has no kernels to trace", backend.name());
  }
  for (std::size_t s = 0; s < profile.study.schedules.size(); ++s) {
    const ScheduleStudy& point = profile.study.schedules[s];
    CountedLayer& counted = profile.counted.emplace_back(uncounted(counters.reason));
    auto& kernels = profile.kernels.emplace_back();
    if (point.status != Status::kOk) {
      counted.reason = point.reason;
      continue;
    }
    if (progress) {
      progress(fmt::format("counters of {}", to_string(point.options)));
    }
    const auto execution = prepare(s);
    if (counters.source != nullptr) {
      counted = count_layer(*execution, *counters.source, counters.selection, l2);
    }
    try {
      if (tracer != nullptr) {
        kernels = trace_stages(*execution, *tracer);
      }
    } catch (const InternalError&) {
      throw;
    } catch (const Error& error) {  // a trace is never worth failing for
      profile.no_kernels = error.what();
      tracer = nullptr;
    }
  }
}

}  // namespace

LayerProfile profile_layer(MoeBackend& backend, const LayerInputs& inputs,
                           std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                           const Judge& judge, const CounterSetup& counters, const DeviceCeilings& ceilings,
                           KernelTracer* tracer, const StudyProgress& progress) {
  LayerProfile profile;
  profile.ceilings = ceilings;
  profile.study = study_layer(backend, inputs, schedules, sampling, judge, progress);
  count_schedules(profile, backend, sampling.l2, counters, tracer, progress,
                  [&](std::size_t s) { return backend.prepare(inputs, profile.study.schedules[s].options); });
  return profile;
}

LayerProfile profile_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                              std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                              const TrainingOptions& training, const GradientJudge& judge,
                              const CounterSetup& counters, const DeviceCeilings& ceilings,
                              KernelTracer* tracer, const StudyProgress& progress) {
  LayerProfile profile;
  profile.ceilings = ceilings;
  profile.study = study_training(backend, inputs, dy, schedules, sampling, training, judge, progress);
  count_schedules(profile, backend, sampling.l2, counters, tracer, progress, [&](std::size_t s) {
    return backend.prepare_training(inputs, dy, profile.study.schedules[s].options, training);
  });
  return profile;
}

LayerProfile profile_system(MoeBackend& backend, std::span<const SystemSubject> subjects,
                            const SamplingOptions& sampling, const CounterSetup& counters,
                            const DeviceCeilings& ceilings, KernelTracer* tracer,
                            const StudyProgress& progress) {
  LayerProfile profile;
  profile.ceilings = ceilings;
  profile.study = merge_studies(study_systems(backend, subjects, sampling, progress));
  count_schedules(profile, backend, sampling.l2, counters, tracer, progress,
                  [&](std::size_t s) { return backend.prepare_ruled_system(*subjects[s].baseline); });
  return profile;
}

std::vector<ResultRow> profile_rows(const LayerProfile& profile) {
  const LayerStudy& study = profile.study;
  std::vector<ResultRow> rows = study_rows(study);
  for (std::size_t s = 0; s < study.schedules.size(); ++s) {
    if (study.schedules[s].status != Status::kOk) {
      continue;
    }
    const Point context = schedule_point(study, study.schedules[s]);
    const CountedLayer& counted = profile.counted[s];
    if (counted.stages.empty()) {
      rows.push_back(absent_row(context, Stage::kLayer, Source::kMeasured, "counters", "none",
                                Status::kUnavailable, counted.reason));
      continue;
    }
    for (const StageMetrics& metrics : counted.stages) {
      append_stage_rows(rows, context, profile, s, metrics);
    }
    rows.push_back(
        value_row(context, Stage::kLayer, Source::kMeasured, "counter_passes", counted.passes, "passes"));
    if (counted.hbm) {
      const auto add = [&](const char* metric, double value, std::string unit) -> ResultRow& {
        return rows.emplace_back(
            value_row(context, Stage::kLayer, Source::kMeasured, metric, value, std::move(unit)));
      };
      ResultRow& sum = add("stage_sum_over_layer_hbm", counted.hbm->over_layer(), "ratio");
      sum.reason = stage_sum_text(*counted.hbm);
      sum.samples = counted.hbm->replays;
      add("stage_sum_over_layer_hbm_least", counted.hbm->least_over_layer(), "ratio");
      add("stage_sum_over_layer_hbm_most", counted.hbm->most_over_layer(), "ratio");
    }
  }
  return rows;
}

std::string stage_sum_text(const HbmSums& sums) {
  return fmt::format(
      "sum over stages / layer as one range = {:.4f}, {} {:.4f} to {:.4f}: {:.0f} % about {:.4g} MB of the "
      "layer as one "
      "range and {:.4g} MB behind {} empty ones",
      sums.over_layer(), sums.hold() ? "within" : "does NOT hold:", sums.least_over_layer(),
      sums.most_over_layer(), 100 * HbmSums::kTolerance, sums.layer / 1e6, sums.behind_idle / 1e6,
      sums.idle_ranges);
}

bool stage_sums_hold(const LayerProfile& profile) {
  return std::ranges::all_of(profile.counted,
                             [](const CountedLayer& counted) { return !counted.hbm || counted.hbm->hold(); });
}

}  // namespace moescope
