#include "profiler/layer_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <new>
#include <utility>

namespace moescope {
namespace {

constexpr std::array kExpertStages = {Stage::kExpertScores, Stage::kExpertCombine, Stage::kExperts};

/// Runs `act`; an error that belongs to this one point is kept as its reason, a bug is not.
void or_failed(ScheduleStudy& study, const std::function<void()>& act) {
  const auto fail = [&](ExitCode code, std::string what) {
    study.status = Status::kFailed;
    study.code = code;
    study.reason = std::move(what);
  };
  try {
    act();
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    fail(ExitCode::kOutOfMemory, "out of memory");
  }
}

void judge_output(ScheduleStudy& study, LayerExecution& execution, const Judge& judge) {
  try {
    study.error = judge(execution.output(), execution.routing());
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    study.error_reason = error.what();
  }
}

}  // namespace

const ScheduleStudy* LayerStudy::find(ScheduleKind kind) const {
  const auto found =
      std::ranges::find(schedules, kind, [](const ScheduleStudy& study) { return study.options.kind; });
  return found == schedules.end() ? nullptr : &*found;
}

Routing route(MoeBackend& backend, const LayerInputs& inputs) {
  if (!inputs.fixed_routing) {
    return backend.router_select(inputs.shape, backend.router_project(inputs));
  }
  return *inputs.fixed_routing;
}

LayerStudy study_layer(MoeBackend& backend, const LayerInputs& inputs,
                       std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling,
                       L2State l2, const Judge& judge, const StudyProgress& progress) {
  sampling.validate();
  const auto say = [&](std::string_view what) {
    if (progress) {
      progress(what);
    }
  };
  say("routing");
  const Routing routing = route(backend, inputs);
  LayerStudy study;
  study.shape = inputs.shape;
  study.workload = inputs.workload;
  study.seed = inputs.seed;
  study.backend = backend.name();
  study.l2 = l2;
  study.skew = compute_skew(routing);
  study.floor_bytes = expert_floor_bytes(inputs.shape, routing);

  std::vector<std::unique_ptr<LayerExecution>> executions(schedules.size());
  std::vector<Arm> arms;
  std::vector<std::size_t> arm_schedule;
  for (std::size_t s = 0; s < schedules.size(); ++s) {
    ScheduleStudy& point = study.schedules.emplace_back();
    point.options = schedules[s];
    say(to_string(schedules[s]));
    if (std::string why; !backend.supports(schedules[s].kind, why)) {
      point.status = Status::kSkipped;
      point.reason = why;
      continue;
    }
    or_failed(point, [&] {
      auto execution = backend.prepare(inputs, schedules[s]);
      execution->run(l2);
      point.ran = execution->schedule_kind();
      point.explanation = execution->explanation();
      point.deterministic = execution->deterministic();
      point.memory = execution->memory();
      ScheduleOptions resolved = schedules[s];
      resolved.kind = point.ran;
      point.cost = analytic_cost(inputs.shape, routing, backend.schedule(routing, resolved));
      judge_output(point, *execution, judge);
      executions[s] = std::move(execution);
    });
    if (LayerExecution* execution = executions[s].get()) {
      arms.push_back({to_string(schedules[s]), [execution, l2] {
                        return ArmSample{execution->run(l2), execution->clocks()};
                      }});
      arm_schedule.push_back(s);
    }
  }

  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  auto results = sample_alternating(arms, sampling, now_s,
                                    [&](std::int64_t round) { say(fmt::format("round {}", round)); });
  for (std::size_t a = 0; a < results.size(); ++a) {
    ScheduleStudy& point = study.schedules[arm_schedule[a]];
    if (results[a].failure) {
      point.status = Status::kFailed;
      point.reason = *results[a].failure;
      point.code = results[a].failure_code;
    }
    point.times = std::move(results[a]);
  }
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
  return study;
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
