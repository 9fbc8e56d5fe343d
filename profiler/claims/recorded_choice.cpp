#include "profiler/claims/recorded_choice.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/schedule/schedule.hpp"

namespace moescope {
namespace {

constexpr std::string_view kTorch = "torch";

/// Counted from shapes, not measured, whatever older rows say.
bool is_memory(const ResultRow& row) { return row.metric == "peak_bytes" || row.metric == "workspace_bytes"; }

bool counts(const ResultRow& row) {
  const bool time = row.metric == "time_s" && row.source == Source::kMeasured && row.l2_state == "cold";
  const bool memory = is_memory(row) && row.source != Source::kModelled;
  const ScheduleOptions defaults;
  const bool default_options =
      row.system != "omnimoe" || (row.group_size.value_or(defaults.group_size) == defaults.group_size &&
                                  row.tile_tokens.value_or(defaults.tile_tokens) == defaults.tile_tokens);
  const bool one_gpu = row.on_one_device() && !row.backend.starts_with("sim:");
  return row.direction == "forward" && one_gpu && (time || memory) && default_options &&
         row.hidden_size == 1024 && row.num_tokens >= 1024 && row.dtype == "bf16" &&
         row.status == Status::kOk && row.value && std::isfinite(*row.value) && *row.value > 0;
}

auto conditions(const ResultRow& row) {
  return std::tie(row.point, row.workload, row.num_tokens, row.top_k, row.grid_rows, row.grid_cols,
                  row.shared_size, row.seed, row.system, row.backend, row.activation, row.gates);
}

/// Takes the row unless the recording has that value already.
bool take(Recording& recording, const ResultRow& row) {
  auto schedule = std::ranges::find(recording.schedules, row.schedule, &RecordedSchedule::name);
  if (schedule == recording.schedules.end()) {
    schedule = recording.schedules.insert(schedule, {row.schedule, {}});
  }
  const bool is_new = std::ranges::none_of(schedule->rows, [&](const ResultRow* other) {
    return other->stage == row.stage && other->metric == row.metric;
  });
  if (is_new) {
    schedule->rows.push_back(&row);
  }
  return is_new;
}

/// The first fourteen digits of a date, or 0: "2026-11-23T02:45:56Z" and "20261123T024556Z-22d78f70" alike.
std::int64_t date_digits(std::string_view text) {
  constexpr int kDigits = 14;
  std::int64_t number = 0;
  int count = 0;
  for (const char c : text) {
    if (c >= '0' && c <= '9') {
      number = 10 * number + (c - '0');
      if (++count == kDigits) {
        return number;
      }
    } else if (std::string_view("-:T ").find(c) == std::string_view::npos) {
      return 0;
    }
  }
  return 0;
}

std::optional<double> of_timed_layer(const RecordedSchedule& schedule, std::string_view metric) {
  return layer_time_s(schedule) ? schedule.value(Stage::kLayer, metric) : std::nullopt;
}

bool can_speak(const RecordedSchedule& schedule, const RatioSide& side) {
  return side.quantity(schedule).has_value() &&
         (side.schedule.empty() ? layer_time_s(schedule).has_value() : schedule.name == side.schedule);
}

/// The schedule that speaks for a recording, of those that `also` has where there is one; null without.
const RecordedSchedule* speaker(const Recording& recording, const RatioSide& side,
                                const Recording* also = nullptr) {
  const RecordedSchedule* best = nullptr;
  for (const RecordedSchedule& schedule : recording.schedules) {
    const RecordedSchedule* there = also == nullptr ? nullptr : also->find(schedule.name);
    if (can_speak(schedule, side) && (also == nullptr || (there != nullptr && can_speak(*there, side))) &&
        (best == nullptr || !side.schedule.empty() || *layer_time_s(schedule) < *layer_time_s(*best))) {
      best = &schedule;
    }
  }
  return best;
}

/// Layer times by schedule, each from its newest recording.
std::map<std::string_view, double> newest_times(std::span<const Recording* const> device,
                                                const RatioSide& side) {
  std::map<std::string_view, std::pair<RecordingAge, double>> newest;
  for (const Recording* recording : device) {
    if (!matches(*recording, side.layer)) {
      continue;
    }
    for (const RecordedSchedule& schedule : recording->schedules) {
      if (can_speak(schedule, side)) {
        // Of several in one run the slowest: nothing says which is newer.
        auto& known = newest.try_emplace(schedule.name, RecordingAge{-1, ""}, 0.0).first->second;
        known = std::max(known, std::pair(age_of(*recording), *layer_time_s(schedule)));
      }
    }
  }
  std::map<std::string_view, double> times;
  for (const auto& [name, of] : newest) {
    times[name] = of.second;
  }
  return times;
}

/// The key of the smallest value, of those that `also` has where it is given.
std::string_view fastest_of(const std::map<std::string_view, double>& times,
                            const std::map<std::string_view, double>* also = nullptr) {
  const std::pair<const std::string_view, double>* best = nullptr;
  for (const auto& entry : times) {
    if ((also == nullptr || also->contains(entry.first)) &&
        (best == nullptr || entry.second < best->second)) {
      best = &entry;
    }
  }
  return best == nullptr ? "" : best->first;
}

bool offers(const Recording& recording, const RatioSide& side, std::string_view name) {
  const RecordedSchedule* schedule = recording.find(name);
  return schedule != nullptr && can_speak(*schedule, side);
}

bool same_conditions(const ResultRow& a, const ResultRow& b) {
  return a.backend == kTorch || b.backend == kTorch || (a.backend == b.backend && a.seed == b.seed);
}

}  // namespace

const RecordedSchedule* Recording::find(std::string_view schedule) const {
  const auto found = std::ranges::find(schedules, schedule, &RecordedSchedule::name);
  return found == schedules.end() ? nullptr : &*found;
}

std::vector<Recording> recordings_of(const RecordedFile& file) {
  std::vector<Recording> recordings;
  for (std::size_t r = 0; r < file.runs.size(); ++r) {
    const RecordedRun& run = file.runs[r];
    const std::size_t first = recordings.size();
    for (const ResultRow& row : run.rows) {
      if (!counts(row)) {
        continue;
      }
      bool taken = false;
      for (std::size_t i = recordings.size(); !taken && i > first; --i) {
        taken = conditions(*recordings[i - 1].what) == conditions(row) && take(recordings[i - 1], row);
      }
      if (!taken) {
        recordings.push_back({&file, static_cast<std::int64_t>(r) + 1, &run.header, &row, {}});
        take(recordings.back(), row);
      }
    }
  }
  return recordings;
}

RecordingAge age_of(const Recording& recording) {
  const RunHeader& header = *recording.header;
  const std::int64_t started = date_digits(header.started_utc);
  return {started != 0 ? started : date_digits(header.run_id), header.run_id};
}

bool matches(const Recording& recording, const WantedLayer& wanted) {
  const ResultRow& what = *recording.what;
  const auto says = [](const std::string& text, std::string_view wish) {
    return text == wish || text == "none";
  };
  const auto is = [](const auto& value, const auto& wish) { return !wish || value == *wish; };
  return what.direction == "forward" && what.system == wanted.system &&
         is(what.num_tokens, wanted.num_tokens) && is(what.top_k, wanted.top_k) &&
         is(what.workload, wanted.workload) && what.grid_rows == wanted.grid_rows &&
         what.grid_cols == wanted.grid_cols && what.shared_size.value_or(1024) == wanted.shared_size &&
         says(what.activation, wanted.activation) && says(what.gates, wanted.gates) &&
         (wanted.backend.empty() ? what.backend != kTorch : what.backend == wanted.backend);
}

std::optional<double> layer_time_s(const RecordedSchedule& schedule) {
  return schedule.value(Stage::kLayer, "time_s");
}
std::optional<double> expert_stages_time_s(const RecordedSchedule& schedule) {
  return schedule.experts_time_s();
}
std::optional<double> select_time_s(const RecordedSchedule& schedule) {
  return schedule.value(Stage::kRouterSelect, "time_s");
}
std::optional<double> peak_bytes(const RecordedSchedule& schedule) {
  return of_timed_layer(schedule, "peak_bytes");
}
std::optional<double> workspace_bytes(const RecordedSchedule& schedule) {
  return of_timed_layer(schedule, "workspace_bytes");
}

std::vector<ChosenSchedule> recordings_with(std::span<const Recording* const> device, const RatioSide& side) {
  std::vector<ChosenSchedule> found;
  for (const Recording* recording : device) {
    const RecordedSchedule* schedule = matches(*recording, side.layer) ? speaker(*recording, side) : nullptr;
    if (schedule != nullptr) {
      found.push_back({recording, schedule});
    }
  }
  return found;
}

bool has_fastest(std::span<const Recording* const> device, const RatioSide& side,
                 const Recording& recording) {
  return !side.schedule.empty() || offers(recording, side, fastest_of(newest_times(device, side)));
}

std::vector<RecordingPair> recording_pairs(std::span<const Recording* const> device, const RatioSide& above,
                                           const RatioSide& below) {
  const bool variants =
      above.schedule.empty() && below.schedule.empty() && above.layer.system == below.layer.system;
  const bool one_layer = above.layer == below.layer;
  const auto times = [&](const RatioSide& side) {
    return side.schedule.empty() ? newest_times(device, side) : std::map<std::string_view, double>{};
  };
  const auto above_times = times(above);
  const auto below_times = times(below);
  const std::string_view above_best = fastest_of(above_times, variants ? &below_times : nullptr);
  const std::string_view below_best = fastest_of(below_times, variants ? &above_times : nullptr);
  const auto complete = [](const Recording& recording, const RatioSide& side, std::string_view best) {
    return !side.schedule.empty() || offers(recording, side, best);
  };
  std::vector<RecordingPair> pairs;
  for (const auto& [upper, upper_alone] : recordings_with(device, above)) {
    for (const auto& [lower, lower_alone] : recordings_with(device, below)) {
      const RecordedSchedule* over = variants ? speaker(*upper, above, lower) : upper_alone;
      const RecordedSchedule* under = variants ? speaker(*lower, below, upper) : lower_alone;
      if (over == nullptr || under == nullptr || !same_conditions(*upper->what, *lower->what)) {
        continue;
      }
      bool has_all = (!one_layer || upper == lower) && complete(*upper, above, above_best) &&
                     complete(*lower, below, below_best);
      if (variants) {
        has_all = has_all && offers(*upper, above, below_best) && offers(*lower, below, above_best);
      }
      pairs.push_back({{upper, over}, {lower, under}, has_all});
    }
  }
  return pairs;
}

}  // namespace moescope
