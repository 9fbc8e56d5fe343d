#include "experiments/points/study_point.hpp"

#include <fmt/format.h>

#include <utility>

#include "profiler/study/or_failure.hpp"
#include "reference/oracle/layer_check.hpp"

namespace moescope {
namespace {

bool same_weights(const LayerShape& a, const LayerShape& b) {
  return a.grid_rows * a.grid_cols == b.grid_rows * b.grid_cols && a.hidden_size == b.hidden_size &&
         a.shared_size == b.shared_size && a.dtype == b.dtype;
}

}  // namespace

StudyPlan study_plan(const CommonOptions& options) {
  StudyPlan plan{chosen_schedules(options), sampling_options(options), parse_l2_state(options.l2)};
  if (!options.tuned_on.empty()) {
    plan.tuned_on = named_workload(options.tuned_on);
  }
  return plan;
}

LayerInputs PointStudy::make_inputs(const StudyPoint& point, const LayerUse& use) {
  const bool share = !from_file(point.workload.spec) || point.weights_are_made;
  if (!share || !experts_ || !same_weights(shape_, point.shape) || seed_ != point.seed) {
    experts_.reset();
  }
  LayerInputs inputs = moescope::make_inputs(point.workload, point.shape, point.seed, use, experts_);
  if (share) {
    shape_ = point.shape;
    seed_ = point.seed;
    experts_ = inputs.experts;
  }
  return inputs;
}

PointStudy::TunedSchedule PointStudy::tune(const NamedWorkload& workload, const StudyPoint& point,
                                           const StudyPlan& plan) {
  ScheduleOptions options{.kind = ScheduleKind::kAuto,
                          .group_size = plan.schedules.front().group_size,
                          .tile_tokens = plan.schedules.front().tile_tokens,
                          .ranks = plan.schedules.front().ranks};
  std::string wanted =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {}", workload.name, point.shape.label(),
                  point.shape.grid_rows, point.shape.shared_size, to_string(point.shape.dtype), point.seed,
                  options.group_size, options.tile_tokens, options.ranks.group.ranks,
                  options.ranks.placement.text(), to_string(options.ranks.exchange));
  if (wanted != tuned_for_) {
    const LayerInputs inputs = make_inputs(
        {workload, point.shape, point.seed},
        {.backend = backend_.name(), .schedules = {options}, .side_by_side = true, .judged_tokens = 0});
    const auto execution = backend_.prepare(inputs, options);
    options = execution->schedule_options();
    tuned_ = {options, execution->explanation()};
    tuned_for_ = std::move(wanted);
  }
  return tuned_;
}

LayerStudy PointStudy::study(const StudyPoint& point, const StudyPlan& plan, const StudyProgress& progress) {
  const auto measure = [&] {
    std::vector<ScheduleOptions> schedules = plan.schedules;
    if (plan.tuned_on) {
      schedules.push_back(tune(*plan.tuned_on, point, plan).options);
    }
    const LayerInputs inputs = make_inputs(
        point, {.backend = backend_.name(), .schedules = schedules, .judged_tokens = kJudgedTokens});
    LayerStudy study = study_layer(backend_, inputs, schedules, plan.sampling, plan.l2,
                                   oracle_judge(inputs, kJudgedTokens), progress);
    if (plan.tuned_on) {
      study.schedules.back().tuned_on = plan.tuned_on->name;
      study.schedules.back().explanation = tuned_.explanation;
    }
    return study;
  };
  return or_failure(measure, [&](ExitCode code, const std::string& reason) {
    return failed_study(point, plan, backend_.name(), code, reason);
  });
}

LayerStudy failed_study(const StudyPoint& point, const StudyPlan& plan, std::string_view backend,
                        ExitCode code, const std::string& reason) {
  LayerStudy study;
  study.shape = point.shape;
  study.workload = point.workload.name;
  study.seed = point.seed;
  study.backend = backend;
  study.l2 = plan.l2;
  for (const ScheduleOptions& schedule : plan.schedules) {
    ScheduleStudy& failed = study.schedules.emplace_back();
    failed.options = schedule;
    failed.status = Status::kFailed;
    failed.code = code;
    failed.reason = reason;
  }
  return study;
}

}  // namespace moescope
