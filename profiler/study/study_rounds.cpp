#include "profiler/study/study_rounds.hpp"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "profiler/study/or_failure.hpp"

namespace moescope::detail {
namespace {

void or_failed(ScheduleStudy& study, const std::function<void()>& act) {
  or_failure(act, [&](ExitCode code, std::string reason) {
    study.status = Status::kFailed;
    study.code = code;
    study.reason = std::move(reason);
  });
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

StudyProgress or_silent(const StudyProgress& progress) {
  return progress ? progress : [](std::string_view) {};
}

LayerStudy begin_study(const MoeBackend& backend, const LayerInputs& inputs, const Routing& routing,
                       std::span<const ScheduleOptions> schedules, const SamplingOptions& sampling) {
  LayerStudy study;
  study.shape = inputs.shape;
  study.workload = inputs.workload;
  study.seed = inputs.seed;
  study.backend = backend.name();
  study.sampling = sampling;
  study.skew = compute_skew(routing);
  for (const ScheduleOptions& options : schedules) {
    study.schedules.emplace_back().options = options;
  }
  return study;
}

void StudyRounds::add(ScheduleStudy& point, const std::function<std::unique_ptr<LayerExecution>()>& prepare,
                      const std::function<void(LayerExecution&)>& account, const Judge& judge) {
  or_failed(point, [&] {
    auto execution = prepare();
    execution->run(sampling_.l2);
    point.ran = execution->schedule_options();
    point.explanation = execution->explanation();
    point.deterministic = execution->deterministic();
    point.memory = execution->memory();
    account(*execution);
    judge_output(point, *execution, judge);
    executions_.push_back(std::move(execution));
    points_.push_back(&point);
  });
}

void StudyRounds::measure(const StudyProgress& say) {
  std::vector<Arm> arms;
  for (std::size_t a = 0; a < executions_.size(); ++a) {
    arms.push_back({std::string(to_string(points_[a]->options.kind)),
                    [execution = executions_[a].get(), l2 = sampling_.l2] {
                      return ArmSample{execution->run(l2), execution->clocks()};
                    }});
  }
  const auto now_s = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  auto results = sample_alternating(arms, sampling_, now_s,
                                    [&](std::int64_t round) { say(fmt::format("round {}", round)); });
  for (std::size_t a = 0; a < results.size(); ++a) {
    ScheduleStudy& point = *points_[a];
    if (results[a].failure) {
      point.status = Status::kFailed;
      point.reason = *results[a].failure;
      point.code = results[a].failure_code;
    }
    point.times = std::move(results[a]);
    if (const RankReport* report = executions_[a]->rank_report()) {
      point.ranks = *report;
    }
  }
}

}  // namespace moescope::detail
