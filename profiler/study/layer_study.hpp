#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/layer/tolerance.hpp"
#include "core/layer/training.hpp"
#include "core/ranks/rank_report.hpp"
#include "core/results/result.hpp"
#include "core/schedule/skew.hpp"
#include "core/systems/system_cost.hpp"
#include "profiler/study/sampling.hpp"

namespace moescope {

/// What became of the pairs that a router chose for FFN experts, and the rows that were executed for them.
struct FfnStudy {
  FfnRows rows;
  FfnRows dropless;  ///< as expert_centric without a rule for tokens
  std::int64_t chosen_pairs = 0;
  std::int64_t dropped_pairs = 0;
  std::int64_t added_pairs = 0;
  std::int64_t tokens_without = 0;            ///< tokens that lost all their experts
  std::int64_t capacity = 0;                  ///< rows of every expert; 0 without one
  bool has_rule = false;                      ///< a TokenRule stood between the router and the experts
  std::optional<ErrorReport> dropless_error;  ///< under a rule: against the output of all chosen pairs

  double dropped_share() const {
    return chosen_pairs > 0 ? static_cast<double>(dropped_pairs) / static_cast<double>(chosen_pairs) : 0;
  }
};

/// What one schedule did on one layer. Unless status is ok, only `options`, `status` and `reason` mean
/// anything.
struct ScheduleStudy {
  ScheduleOptions options;
  Status status = Status::kOk;  ///< ok, skipped (the backend has no such schedule) or failed
  std::string reason;
  ExitCode code = ExitCode::kOk;  ///< of the error that failed it
  ScheduleOptions ran;            ///< options, with auto resolved
  std::string explanation;        ///< of auto's choice; empty for a schedule that was named
  std::string tuned_on;           ///< the workload that auto chose `options` on; empty for others
  bool deterministic = false;
  std::vector<StageMemory> memory;
  std::int64_t weight_bytes = 0;
  std::int64_t peak_bytes = 0;  ///< weights, X, Y, routing and the largest workspace of a stage; of a
                                ///< backward the memory plan's (TrainingExecution::plan())
  AnalyticCost cost;
  ArmResult times;
  std::optional<ErrorReport> error;  ///< against the judge's reference
  std::string error_of;              ///< of a backward: the gradient that it is the error of
  std::optional<FfnStudy> ffn;       ///< of FFN experts
  std::string error_reason;          ///< why there is none
  std::optional<RankReport> ranks;   ///< of a layer on several ranks: its last run
  /// token_centric's time / this one's, when both were measured: of the layer and of the expert stage alone.
  std::optional<RatioSummary> layer_speed_up;
  std::optional<RatioSummary> expert_speed_up;

  /// As rows and tables name it: "tuned" when it was tuned on another workload, else by its options.
  std::string name() const { return tuned_on.empty() ? to_string(options) : "tuned"; }
  /// Whether a choice of auto stands behind it, here or on another workload.
  bool is_chosen() const { return options.kind == ScheduleKind::kAuto || !tuned_on.empty(); }
};

/// Every schedule side by side on one layer and one routing.
struct LayerStudy {
  LayerShape shape;
  std::optional<SystemShape> baseline;  ///< set when it is of a baseline; `shape` is its row_shape() then
  std::string workload;
  std::uint64_t seed = 0;
  std::string backend;
  SamplingOptions sampling;
  std::optional<SaveMode> save;  ///< set: it is of the backward, for which the forward kept that
  GradientForm gradients = GradientForm::kStored;  ///< of a backward
  OptimizerForm optimizer = OptimizerForm::kNone;  ///< of a backward
  SkewMetrics skew;
  std::int64_t floor_bytes = 0;  ///< expert_floor_bytes; 0 of the backward
  std::vector<ScheduleStudy> schedules;

  /// Null when `kind` was not asked for.
  const ScheduleStudy* find(ScheduleKind kind) const;
};

/// "backward, scores saved, gradients touched, optimizer touched"; empty of a forward.
std::string backward_words(const LayerStudy& study);

/// Time of the layer under `point` over that of the fastest schedule of the study that was asked for by name,
/// round by round: what a choice lost. Null when there is no such schedule, or no common round.
std::optional<RatioSummary> time_over_fastest(const LayerStudy& study, const ScheduleStudy& point);

/// Compares a layer's output with the truth; may throw Error, which is recorded as the reason for having no
/// error.
using Judge = std::function<ErrorReport(const HostTensor& output, const Routing& routing)>;
/// Called as the study goes on, with a few words for a progress display.
using StudyProgress = std::function<void(std::string_view)>;

/// Routes the batch: the recorded routing, or the router's stages. Throws what the backend throws.
Routing route(MoeBackend& backend, const LayerInputs& inputs);

/// Runs every schedule on the same inputs, alternating (MEASURING protocol), and works out what each should
/// have cost. A schedule that the backend lacks is skipped, one that throws Error or runs out of memory is
/// failed; both with reason. Throws what routing throws: without routing there is nothing to study.
LayerStudy study_layer(MoeBackend& backend, const LayerInputs& inputs,
                       std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                       const Judge& judge, const StudyProgress& progress = {});

/// Bytes of W, V, router with its biases and shared MLP.
std::int64_t layer_weight_bytes(const LayerInputs& inputs);
/// The same from the shape, without biases.
std::int64_t layer_weight_bytes(const LayerShape& shape, bool fixed_routing);
/// Bytes of X, Y and the routing.
std::int64_t layer_batch_bytes(const LayerShape& shape, const Routing& routing);
/// Sets weight_bytes and peak_bytes; point.memory is there already.
void account_memory(ScheduleStudy& point, std::int64_t weight_bytes, const LayerShape& shape,
                    const Routing& routing);

/// Sets the speed-ups of every schedule over token_centric, where both were measured.
void add_speed_ups(LayerStudy& study);

/// Bytes of the expert stage, whether it ran as scores and combine or as one fused kernel; of a backward its
/// data and weight gradients.
std::int64_t expert_bytes(const AnalyticCost& cost, MemoryLevel level);
/// Time of the expert stage likewise, round by round, as Stage::kExperts; null when nothing was measured.
std::optional<StageSamples> expert_samples(const ArmResult& times);

}  // namespace moescope
