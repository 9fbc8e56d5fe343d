#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "profiler/counters/kernel_trace.hpp"
#include "profiler/counters/stage_counters.hpp"
#include "profiler/limits/ceilings.hpp"
#include "profiler/limits/limits.hpp"
#include "profiler/study/layer_study.hpp"
#include "profiler/study/system_study.hpp"
#include "profiler/study/training_study.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {

/// Analytic FLOP of a stage as it ran: a fused kernel has those of scores and combine together; where the
/// formulas know the fused stage only, scores and combine have half each (2 d a pair for the dot product, 2 d
/// for the row added).
double useful_flop_of(const AnalyticCost& cost, Stage stage);
/// Compulsory HBM bytes likewise; empty for scores and combine apart where the formulas do not divide them.
std::optional<double> floor_bytes_of(const AnalyticCost& cost, Stage stage);

/// Where a profile's counters come from. `source` may be null; then `reason` says why.
struct CounterSetup {
  CounterSource* source = nullptr;
  MetricSelection selection;
  std::string reason;
};

/// Every schedule on one layer: times from one pass, counters from another, kernels from a third.
struct LayerProfile {
  LayerStudy study;
  DeviceCeilings ceilings;
  std::vector<CountedLayer> counted;               ///< one per study.schedules
  std::vector<std::vector<StageKernels>> kernels;  ///< likewise; empty without a tracer
  std::string no_kernels;                          ///< why there are none

  /// Limits of a stage: its median time, its counters, the ceilings. Empty when one of them is missing.
  std::vector<Limit> limits(std::size_t schedule, Stage stage) const;
};

/// Times every schedule (study_layer), then replays each that ran for its counters and, with a tracer, once
/// more for its kernels. `tracer` may be null. Throws what study_layer throws.
LayerProfile profile_layer(MoeBackend& backend, const LayerInputs& inputs,
                           std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                           const Judge& judge, const CounterSetup& counters, const DeviceCeilings& ceilings,
                           KernelTracer* tracer, const StudyProgress& progress = {});

/// The same of the backward under every schedule (study_training): its stages, with those of the forward that
/// run again. Counters and kernels are of a step prepared anew.
LayerProfile profile_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                              std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                              const TrainingOptions& training, const GradientJudge& judge,
                              const CounterSetup& counters, const DeviceCeilings& ceilings,
                              KernelTracer* tracer, const StudyProgress& progress = {});

/// The same of a baseline, each subject under a schedule of its own (study_systems).
LayerProfile profile_system(MoeBackend& backend, std::span<const SystemSubject> subjects,
                            const SamplingOptions& sampling, const CounterSetup& counters,
                            const DeviceCeilings& ceilings, KernelTracer* tracer,
                            const StudyProgress& progress = {});

/// The study's rows; ceilings are rows of their own (ceiling_rows). Per stage and metric one measured row,
/// unavailable with the reason where there is no value; then what follows from counters, times and ceilings:
/// hbm_bytes_per_s, l2_bytes_per_s, <resource>_fraction_of_ceiling, nearest_limit_fraction (its reason says
/// what bounds the stage); for the layer stage_sum_over_layer_hbm and its bounds, ..._least and ..._most.
std::vector<ResultRow> profile_rows(const LayerProfile& profile);

/// The stages of each schedule as a table, with what is to be known to read it.
void print_profile(TableOutput& out, const LayerProfile& profile, const std::string& device);

/// What the columns of print_profile mean.
std::string profile_legend();

/// One line: the sum, what it must lie between and why.
std::string stage_sum_text(const HbmSums& sums);

/// False when, under some schedule, the stages' HBM bytes do not add up to the layer's (HbmSums::hold).
bool stage_sums_hold(const LayerProfile& profile);

}  // namespace moescope
