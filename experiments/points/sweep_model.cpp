#include "experiments/points/sweep_model.hpp"

#include <fmt/format.h>

#include <array>
#include <iterator>
#include <utility>

#include "core/systems/system_traits.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/sweep_points.hpp"
#include "profiler/study/or_failure.hpp"

namespace moescope {
namespace {

constexpr std::string_view kNoAuto = "the simulator runs schedules by name; auto chooses on a backend";

/// Notes that `schedule` could not be simulated.
void add_failure(PointResult& result, Point point, const ScheduleOptions& schedule, Status status,
                 ExitCode code, const std::string& reason) {
  point.set_schedule(schedule);
  point.l2_state = "cold";
  result.rows.push_back(absent_row(point, Stage::kLayer, Source::kModelled, "time_s", "s", status, reason));
  result.status = status;
  result.reason = reason;
  result.code = result.code == ExitCode::kOk ? code : result.code;
}

/// Runs `body`; false when it failed, which is noted for `schedules`.
template <class Body>
bool attempt(PointResult& result, const Point& point, std::span<const ScheduleOptions> schedules,
             const Body& body) {
  const auto fail = [&](ExitCode code, const std::string& reason) {
    for (const ScheduleOptions& schedule : schedules) {
      add_failure(result, point, schedule, Status::kFailed, code, reason);
    }
    return false;
  };
  return or_failure(
      [&] {
        body();
        return true;
      },
      fail);
}

}  // namespace

PlannedModel::PlannedModel(SimulatorOptions options) : options_(std::move(options)), study_(options_) {
  if (options_.devices.empty()) {
    options_.devices = {default_device()};
  }
  if (options_.devices.size() > 1) {
    throw InvalidArgument("device", fmt::format("{}", fmt::join(options_.devices, ",")),
                          "must be one in a sweep; several are an axis \"device\" of its file");
  }
}

const std::string& PlannedModel::device_name(const PlannedPoint& planned) const {
  return planned.point.device.empty() ? options_.devices.front() : planned.point.device;
}

void PlannedModel::plan(PlannedPoint& planned) {
  if (chosen_system(planned.options) != System::kOmniMoe) {
    require_forward(planned.options, "of the baselines is forward: their backward is an oracle alone");
  }
  SimulatorOptions simulator = options_;
  simulator.devices = {device_name(planned)};
  if (const RankOptions ranks = rank_options(planned.options); ranks.several()) {
    throw InvalidArgument("ranks", fmt::to_string(ranks.group.ranks),
                          "is not modelled: the simulator has one device");
  }
  study_.calibration(find_device(simulator.devices.front()));
  std::erase_if(planned.plan.schedules, [&](const ScheduleOptions& schedule) {
    return planned.options.schedules.empty() && schedule.kind == ScheduleKind::kSparseLibrary;
  });
  if (const System system = chosen_system(planned.options); system != System::kOmniMoe) {
    planned.plan.schedules = modelled_schedules(planned.options, system);
  }
  planned.repro = model_repro_command(planned.options, simulator);
}

PointResult PlannedModel::simulate(const PlannedPoint& planned, const StudyProgress& progress) {
  const DeviceSpec device = find_device(device_name(planned));
  PointResult result;
  Point point = layer_point(asked_shape(planned.options), modelled_backend(device), planned.workload.name,
                            planned.options.seed);
  const System system = chosen_system(planned.options);
  point.system = to_string(system);
  if (planned.plan.training) {
    point.direction = to_string(Direction::kBackward);
    point.save = to_string(planned.plan.training->save);
  }
  const bool routed = attempt(result, point, planned.plan.schedules, [&] {
    if (system != System::kOmniMoe) {
      const SystemShape shape = resolve_system(planned.options, system, planned.workload.spec);
      point.set_shape(study_.route(planned.workload, shape, planned.options.seed).shape());
      return;
    }
    const LayerShape shape = resolve_shape(planned.options, planned.workload.spec);
    point.set_shape(study_.route(planned.workload, shape, planned.options.seed, planned.plan.training).shape);
  });
  if (!routed) {
    return result;
  }
  if (traits_of(system).router != RouterKind::kNone) {
    result.rows = study_.skew(device);
  }
  bool any = false;
  for (const ScheduleOptions& schedule : planned.plan.schedules) {
    progress(to_string(schedule));
    if (schedule.kind == ScheduleKind::kAuto) {
      add_failure(result, point, schedule, Status::kSkipped, ExitCode::kOk, std::string(kNoAuto));
      continue;
    }
    any = attempt(result, point, std::span(&schedule, 1),
                  [&] {
                    const ModelledSchedule modelled = study_.simulate(schedule, device);
                    std::ranges::move(modelled_rows(modelled), std::back_inserter(result.rows));
                  }) ||
          any;
  }
  if (planned.plan.tuned_on) {
    Point tuned = point;
    tuned.schedule = "tuned";
    result.rows.push_back(absent_row(tuned, Stage::kLayer, Source::kModelled, "time_s", "s", Status::kSkipped,
                                     std::string(kNoAuto)));
  }
  if (any) {
    result.status = Status::kOk;
    result.reason.clear();
  }
  return result;
}

std::span<const std::string_view> model_metrics() {
  static const auto kMetrics = with_ffn_metrics({"time_s", "bound_s", "hbm_read_bytes", "hbm_write_bytes",
                                                 "l2_read_bytes", "l2_write_bytes", "l2_reduction_bytes",
                                                 "l2_fabric_bytes", "l1_hit_fraction", "tensor_flop"});
  return kMetrics;
}

}  // namespace moescope
