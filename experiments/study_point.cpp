#include "experiments/study_point.hpp"

#include <new>

#include "reference/layer_check.hpp"

namespace moescope {
namespace {

bool same_weights(const LayerShape& a, const LayerShape& b) {
  return a.grid_rows * a.grid_cols == b.grid_rows * b.grid_cols && a.hidden_size == b.hidden_size &&
         a.shared_size == b.shared_size && a.dtype == b.dtype;
}

bool synthetic(const WorkloadSpec& spec) {
  return spec.family != WorkloadSpec::Family::kSnapshot && spec.family != WorkloadSpec::Family::kTrace;
}

}  // namespace

StudyPlan study_plan(const CommonOptions& options) {
  return {chosen_schedules(options), sampling_options(options), parse_l2_state(options.l2)};
}

LayerInputs PointStudy::make_inputs(const StudyPoint& point) {
  const bool share = synthetic(point.workload.spec);
  if (!share || !experts_ || !same_weights(shape_, point.shape) || seed_ != point.seed) {
    experts_.reset();
  }
  LayerInputs inputs = moescope::make_inputs(point.workload, point.shape, point.seed, experts_);
  if (share) {
    shape_ = point.shape;
    seed_ = point.seed;
    experts_ = inputs.experts;
  }
  return inputs;
}

LayerStudy PointStudy::study(const StudyPoint& point, const StudyPlan& plan, const StudyProgress& progress) {
  try {
    const LayerInputs inputs = make_inputs(point);
    return study_layer(backend_, inputs, plan.schedules, plan.sampling, plan.l2,
                       oracle_judge(inputs, kJudgedTokens), progress);
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    return failed_study(point, plan, backend_.name(), error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failed_study(point, plan, backend_.name(), ExitCode::kOutOfMemory, "out of memory");
  }
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
