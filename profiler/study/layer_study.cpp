#include "profiler/study/layer_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "profiler/study/study_rounds.hpp"

namespace moescope {
std::string backward_words(const LayerStudy& study) {
  if (!study.save) {
    return {};
  }
  std::string words = fmt::format("backward, {} saved", to_string(*study.save));
  if (study.gradients != GradientForm::kStored) {
    words += fmt::format(", gradients {}", to_string(study.gradients));
  }
  if (study.optimizer != OptimizerForm::kNone) {
    words += fmt::format(", optimizer {}", to_string(study.optimizer));
  }
  return words;
}

const ScheduleStudy* LayerStudy::find(ScheduleKind kind) const {
  const auto found =
      std::ranges::find(schedules, kind, [](const ScheduleStudy& study) { return study.options.kind; });
  return found == schedules.end() ? nullptr : &*found;
}

std::optional<RatioSummary> time_over_fastest(const LayerStudy& study, const ScheduleStudy& point) {
  const StageSamples* fastest = nullptr;
  for (const ScheduleStudy& each : study.schedules) {
    const StageSamples* layer =
        each.status != Status::kOk || each.is_chosen() ? nullptr : each.times.find(Stage::kLayer);
    if (layer != nullptr && (fastest == nullptr || layer->median_s() < fastest->median_s())) {
      fastest = layer;
    }
  }
  return speed_up(point.times.find(Stage::kLayer), fastest);
}

Routing route(MoeBackend& backend, const LayerInputs& inputs) {
  if (!inputs.fixed_routing) {
    return backend.router_select(inputs.shape, backend.router_project(inputs));
  }
  return *inputs.fixed_routing;
}

LayerStudy study_layer(MoeBackend& backend, const LayerInputs& inputs,
                       std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                       const Judge& judge, const StudyProgress& progress) {
  sampling.validate();
  const StudyProgress say = detail::or_silent(progress);
  say("routing");
  const Routing routing = route(backend, inputs);
  LayerStudy study = detail::begin_study(backend, inputs, routing, schedules, sampling);
  study.floor_bytes = expert_floor_bytes(inputs.shape, routing);

  const std::int64_t weight_bytes = layer_weight_bytes(inputs);
  detail::StudyRounds rounds(sampling);
  for (std::size_t s = 0; s < schedules.size(); ++s) {
    ScheduleStudy& point = study.schedules[s];
    say(to_string(schedules[s]));
    if (std::string why; !backend.supports_layer(inputs, schedules[s], why)) {
      point.status = Status::kSkipped;
      point.reason = why;
      continue;
    }
    rounds.add(
        point, [&] { return backend.prepare_routed(inputs, schedules[s], routing); },
        [&](LayerExecution& execution) {
          if (const RankReport* report = execution.rank_report()) {
            // Of the rank that stores most; what moves on it is not worked out.
            const std::int64_t most = std::ranges::max(report->experts);
            point.weight_bytes = weight_bytes - 2 * (inputs.shape.num_experts() - most) *
                                                    inputs.shape.hidden_size *
                                                    dtype_bytes(inputs.shape.dtype);
            return;
          }
          point.cost = analytic_cost(inputs.shape, routing, backend.schedule(routing, point.ran),
                                     inputs.fixed_routing.has_value());
          account_memory(point, weight_bytes, inputs.shape, routing);
        },
        judge);
  }
  rounds.measure(say);
  add_speed_ups(study);
  return study;
}

void add_speed_ups(LayerStudy& study) {
  const ScheduleStudy* baseline = study.find(ScheduleKind::kTokenCentric);
  for (ScheduleStudy& point : study.schedules) {
    if (baseline == nullptr || baseline->status != Status::kOk || point.status != Status::kOk) {
      continue;
    }
    point.layer_speed_up = speed_up(baseline->times.find(Stage::kLayer), point.times.find(Stage::kLayer));
    const auto baseline_experts = expert_samples(baseline->times);
    const auto experts = expert_samples(point.times);
    point.expert_speed_up =
        speed_up(baseline_experts ? &*baseline_experts : nullptr, experts ? &*experts : nullptr);
  }
}

std::int64_t layer_weight_bytes(const LayerShape& shape, bool fixed_routing) {
  const std::int64_t router_rows = fixed_routing ? 0 : shape.grid_rows + shape.grid_cols;
  return (2 * shape.num_experts() + router_rows + 3 * shape.shared_size) * shape.hidden_size *
         dtype_bytes(shape.dtype);
}

std::int64_t layer_weight_bytes(const LayerInputs& inputs) {
  const auto bias = std::ssize(inputs.router.row_bias) + std::ssize(inputs.router.col_bias);
  return layer_weight_bytes(inputs.shape, inputs.fixed_routing.has_value()) + bias * dtype_bytes(Dtype::kF32);
}

std::int64_t layer_batch_bytes(const LayerShape& shape, const Routing& routing) {
  return 2 * shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype) +
         routing.num_pairs() * static_cast<std::int64_t>(sizeof(std::int32_t) + sizeof(float)) +
         (routing.num_tokens + 1) * static_cast<std::int64_t>(sizeof(std::int64_t));
}

void account_memory(ScheduleStudy& point, std::int64_t weight_bytes, const LayerShape& shape,
                    const Routing& routing) {
  std::int64_t workspace = 0;
  for (const StageMemory& stage : point.memory) {
    workspace = std::max(workspace, stage.workspace_bytes);
  }
  point.weight_bytes = weight_bytes;
  point.peak_bytes = weight_bytes + layer_batch_bytes(shape, routing) + workspace;
}

std::int64_t expert_bytes(const AnalyticCost& cost, MemoryLevel level) {
  std::int64_t bytes = 0;
  for (const Stage stage : kExpertStages) {
    bytes += cost.bytes(stage, level);
  }
  return bytes;
}

std::optional<StageSamples> expert_samples(const ArmResult& times) {
  std::optional<StageSamples> sum;
  for (const Stage stage : kExpertStages) {
    const StageSamples* samples = times.find(stage);
    if (samples == nullptr) {
      continue;
    }
    if (!sum) {
      sum = *samples;
      sum->stage = Stage::kExperts;
      continue;
    }
    // Every stage of an arm has a sample in the same rounds.
    for (std::size_t i = 0; i < sum->samples_s.size(); ++i) {
      sum->samples_s[i] += samples->samples_s.at(i);
    }
  }
  return sum;
}

}  // namespace moescope
