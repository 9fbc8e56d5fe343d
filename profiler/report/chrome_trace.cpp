#include "profiler/report/chrome_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/line_text.hpp"
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
  event["args"]["name"] = one_line(name);
  return event;
}

Json duration_event(const std::string& name, int process, int thread, double start_s, double time_s) {
  Json event;
  event["ph"] = "X";
  event["name"] = one_line(name);
  event["pid"] = process;
  event["tid"] = thread;
  event["ts"] = start_s * kMicro;
  event["dur"] = time_s * kMicro;
  return event;
}

/// A counter track and what it adds up.
struct Track {
  const char* name;
  const char* unit;
  std::vector<std::string_view> metrics;
  double scale = 1;
  bool per_second = false;
};

const std::vector<Track>& tracks() {
  static const std::vector<Track> all = {
      {"HBM", "GB/s", {"hbm_read_bytes", "hbm_write_bytes"}, 1e-9, true},
      {"L2",
       "GB/s",
       {"l2_read_bytes", "l2_write_bytes", "l2_reduction_bytes", "l2_atomic_bytes"},
       1e-9,
       true},
      {"tensor pipe", "%", {"tensor_utilisation"}, 100},
      {"issue slots", "%", {"issue_utilisation"}, 100}};
  return all;
}

Json counter_event(const Track& track, int process, double start_s, double value) {
  Json event;
  event["ph"] = "C";
  event["name"] = track.name;
  event["pid"] = process;
  event["ts"] = start_s * kMicro;
  event["args"][track.unit] = value;
  return event;
}

/// The track's value in a stage; empty when one of its metrics was not counted there.
std::optional<double> value_of(const Track& track, const StageMetrics* metrics, double time_s) {
  double sum = 0;
  for (const std::string_view name : track.metrics) {
    const auto value = metrics == nullptr ? std::nullopt : metrics->find(name);
    if (!value) {
      return std::nullopt;
    }
    sum += *value;
  }
  return sum * track.scale / (track.per_second ? time_s : 1);
}

/// Averages over each stage, and zero behind the last. A track holds its value until the next one, so there
/// is none where a stage was not counted: it would show its neighbour's value, or a zero that nobody
/// measured.
void append_track(Json& events, const Track& track, const CountedLayer& counted, const ArmResult& times,
                  int process) {
  std::vector<Json> values;
  double start_s = 0;
  for (const StageSamples& samples : times.stages) {
    const double time_s = samples.median_s();
    if (samples.stage == Stage::kLayer || !(time_s > 0)) {
      continue;
    }
    const auto value = value_of(track, counted.find(samples.stage), time_s);
    if (!value) {
      return;
    }
    values.push_back(counter_event(track, process, start_s, *value));
    start_s += time_s;
  }
  if (!values.empty()) {
    values.push_back(counter_event(track, process, start_s, 0));
    std::ranges::move(values, std::back_inserter(events));
  }
}

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
      arguments[value.name] =
          value.value ? Json(*value.value) : Json("unavailable: " + one_line(value.reason));
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
    start_s += time_s;
  }
  for (const Track& track : tracks()) {
    append_track(events, track, profile.counted[schedule], point.times, process);
  }
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
  trace["otherData"]["device"] = one_line(device);
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
