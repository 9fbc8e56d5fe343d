#include "profiler/report/chrome_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/files/output_file.hpp"

namespace moescope {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kStageThread = 1;
constexpr int kKernelThread = 2;
constexpr double kMicro = 1e6;  ///< the format counts in microseconds

Json name_event(const char* what, int process, int thread, const std::string& name) {
  Json event;
  event["ph"] = "M";
  event["name"] = what;
  event["pid"] = process;
  event["tid"] = thread;
  event["args"]["name"] = name;
  return event;
}

Json duration_event(const std::string& name, int process, int thread, double start_s, double time_s) {
  Json event;
  event["ph"] = "X";
  event["name"] = name;
  event["pid"] = process;
  event["tid"] = thread;
  event["ts"] = start_s * kMicro;
  event["dur"] = time_s * kMicro;
  return event;
}

/// A counter's average over the stage that lasts from start_s to end_s.
class CounterTracks {
 public:
  CounterTracks(Json& events, int process) : events_(events), process_(process) {}
  void add(const char* track, const char* unit, double value, double start_s) {
    Json event;
    event["ph"] = "C";
    event["name"] = track;
    event["pid"] = process_;
    event["ts"] = start_s * kMicro;
    event["args"][unit] = value;
    events_.push_back(std::move(event));
  }
  /// Absent values leave the track at zero.
  void add_stage(const StageMetrics* metrics, double start_s, double time_s) {
    const auto value = [&](std::initializer_list<const char*> names) {
      double sum = 0;
      for (const char* name : names) {
        sum += metrics == nullptr ? 0 : metrics->find(name).value_or(0);
      }
      return sum;
    };
    add("HBM", "GB/s", value({"hbm_read_bytes", "hbm_write_bytes"}) / time_s / 1e9, start_s);
    add("L2", "GB/s",
        value({"l2_read_bytes", "l2_write_bytes", "l2_reduction_bytes", "l2_atomic_bytes"}) / time_s / 1e9,
        start_s);
    add("tensor pipe", "%", 100 * value({"tensor_utilisation"}), start_s);
    add("issue slots", "%", 100 * value({"issue_utilisation"}), start_s);
  }

 private:
  Json& events_;
  int process_;
};

Json stage_arguments(const LayerProfile& profile, std::size_t schedule, Stage stage) {
  const ScheduleStudy& point = profile.study.schedules[schedule];
  Json arguments;
  if (const auto floor = floor_bytes_of(point.cost, stage)) {
    arguments["hbm_floor_bytes (analytic)"] = *floor;
  }
  arguments["useful_flop (analytic)"] = useful_flop_of(point.cost, stage);
  arguments["bound by"] = bound_text(profile.limits(schedule, stage));
  if (const StageMetrics* metrics = profile.counted[schedule].find(stage)) {
    for (const MetricValue& value : metrics->values) {
      arguments[value.name] = value.value ? Json(*value.value) : Json("unavailable: " + value.reason);
    }
  }
  return arguments;
}

/// Threads of kernels: more than one where kernels overlap (a stage's traced run may be longer than its
/// median, and a kernel may start before the one before it has ended), since events of a thread must not.
class KernelLanes {
 public:
  KernelLanes(Json& events, int process) : events_(events), process_(process) {}
  void add(const KernelRecord& kernel, double stage_start_s) {
    const double start_s = stage_start_s + kernel.start_s;
    auto lane = std::ranges::find_if(ends_s_, [&](double end_s) { return end_s <= start_s; });
    if (lane == ends_s_.end()) {
      ends_s_.push_back(0);
      lane = std::prev(ends_s_.end());
      const int thread = kKernelThread + static_cast<int>(ends_s_.size()) - 1;
      events_.push_back(
          name_event("thread_name", process_, thread, "kernels: one traced run, from each stage's start"));
    }
    *lane = stage_start_s + kernel.end_s;
    events_.push_back(duration_event(kernel.name, process_,
                                     kKernelThread + static_cast<int>(lane - ends_s_.begin()), start_s,
                                     kernel.end_s - kernel.start_s));
  }

 private:
  Json& events_;
  int process_;
  std::vector<double> ends_s_;  ///< of the last kernel of each thread
};

void append_schedule(Json& events, const LayerProfile& profile, std::size_t schedule, int process) {
  const ScheduleStudy& point = profile.study.schedules[schedule];
  events.push_back(name_event("process_name", process, 0,
                              fmt::format("{} {}", profile.study.workload, to_string(point.options))));
  events.push_back(name_event("thread_name", process, kStageThread, "stages: median of timed runs"));
  if (profile.kernels[schedule].empty()) {
    events.push_back(name_event("thread_name", process, kKernelThread, "kernels: " + profile.no_kernels));
  }
  KernelLanes lanes(events, process);
  CounterTracks tracks(events, process);
  double start_s = 0;
  for (const StageSamples& samples : point.times.stages) {
    if (samples.stage == Stage::kLayer) {
      continue;
    }
    const double time_s = samples.median_s();
    Json event =
        duration_event(std::string(to_string(samples.stage)), process, kStageThread, start_s, time_s);
    event["args"] = stage_arguments(profile, schedule, samples.stage);
    events.push_back(std::move(event));
    for (const StageKernels& stage : profile.kernels[schedule]) {
      for (const KernelRecord& kernel : stage.kernels) {
        if (stage.stage == samples.stage) {
          lanes.add(kernel, start_s);
        }
      }
    }
    if (time_s > 0) {
      tracks.add_stage(profile.counted[schedule].find(samples.stage), start_s, time_s);
    }
    start_s += time_s;
  }
  tracks.add_stage(nullptr, start_s, 1);
}

}  // namespace

std::string chrome_trace(std::span<const LayerProfile> profiles, const std::string& device) {
  Json events = Json::array();
  int process = 0;
  for (const LayerProfile& profile : profiles) {
    for (std::size_t s = 0; s < profile.study.schedules.size(); ++s) {
      if (profile.study.schedules[s].status == Status::kOk) {
        append_schedule(events, profile, s, ++process);
      }
    }
  }
  Json trace;
  trace["displayTimeUnit"] = "ns";
  trace["otherData"]["device"] = device;
  trace["otherData"]["stages"] = "median of timed runs, laid end to end";
  trace["otherData"]["kernels"] = "one traced run, placed from the start of their stage at their own pace";
  trace["otherData"]["counters"] = "averages over a stage, from replays of their own";
  trace["traceEvents"] = std::move(events);
  return trace.dump(1, ' ', false, Json::error_handler_t::replace) + '\n';
}

void write_chrome_trace(std::span<const LayerProfile> profiles, const std::string& device,
                        const std::filesystem::path& file) {
  create_file(file, chrome_trace(profiles, device));
}

}  // namespace moescope
