#include "experiments/points/sweep_study.hpp"

#include <algorithm>
#include <utility>

#include "core/systems/system_cost.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/sweep_points.hpp"
#include "experiments/points/system_lineup.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/study/or_failure.hpp"

namespace moescope {
LayerShape asked_shape(const CommonOptions& options) {
  LayerShape shape;
  shape.num_tokens = options.num_tokens.value_or(0);
  shape.hidden_size = options.hidden_size.value_or(0);
  shape.grid_rows = shape.grid_cols = 0;
  shape.top_k = options.top_k.value_or(0);
  shape.shared_size = options.shared_size.value_or(0);
  return shape;
}

PlannedPoint plan_point(const Experiment& experiment, const ExperimentPoint& point,
                        const CommonOptions& machine) {
  PlannedPoint planned{point, point_options(experiment, point, machine), {}, {}, {}};
  planned.plan = study_plan(planned.options);
  if (const System system = chosen_system(planned.options); system != System::kOmniMoe) {
    require_forward(planned.options, "of the baselines is forward: their backward is an oracle alone");
    planned.plan.schedules.clear();
    for (ScheduleOptions schedule : baseline_schedules(planned.options, system)) {
      schedule.kind = schedule.kind == ScheduleKind::kAuto ? system_schedule(system).kind : schedule.kind;
      planned.plan.schedules.push_back(schedule);
    }
  }
  planned.workload = named_workload(planned.options.workloads.front());
  planned.repro = repro_command(planned.options);
  return planned;
}

PointResult PlannedStudy::measure(const PlannedPoint& planned, const StudyProgress& progress) {
  const LayerStudy study = this->study(planned, progress);
  PointResult result{study_rows(study), Status::kOk, {}, ExitCode::kOk};
  for (const Status status : {Status::kOk, Status::kFailed, Status::kSkipped}) {
    const auto found = std::ranges::find(study.schedules, status, &ScheduleStudy::status);
    if (found != study.schedules.end()) {
      result.status = status;
      result.reason = found->reason;
      break;
    }
  }
  for (const ScheduleStudy& schedule : study.schedules) {
    const bool gone = schedule.code == ExitCode::kDeviceError;
    if (gone || result.code == ExitCode::kOk) {
      result.code = schedule.code;
      result.reason = gone ? schedule.reason : result.reason;
    }
    if (gone) {
      break;
    }
  }
  return result;
}

LayerStudy PlannedStudy::study(const PlannedPoint& planned, const StudyProgress& progress) {
  StudyPoint point{planned.workload, asked_shape(planned.options), planned.options.seed};
  std::optional<SystemShape> baseline;
  const auto give_up = [&](Status status, ExitCode code, const std::string& reason) {
    LayerStudy failed = failed_study(point, planned.plan, backend_.name(), code, reason);
    failed.baseline = baseline;
    for (ScheduleStudy& schedule : failed.schedules) {
      schedule.status = status;
    }
    return failed;
  };
  const auto study = [&]() -> LayerStudy {
    const System system = chosen_system(planned.options);
    if (system == System::kOmniMoe) {
      point.shape = resolve_shape(planned.options, planned.workload.spec);
      return study_.study(point, planned.plan, progress);
    }
    SystemLineup lineup(planned.options);
    baseline = lineup.baselines().front();
    point.shape = baseline->row_shape();
    // Before inputs are made, which may be most of the machine's memory.
    if (std::string why; !backend_.supports_system(system, why)) {
      return give_up(Status::kSkipped, ExitCode::kOk, why);
    }
    study_.release();
    const auto subjects = lineup.subjects();
    return merge_studies(study_systems(backend_, subjects, planned.plan.sampling, progress));
  };
  return or_failure(study, [&](ExitCode code, const std::string& reason) {
    return give_up(Status::kFailed, code, reason);
  });
}

}  // namespace moescope
