#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/report/recorded_points.hpp"

/// Which of many recordings a statement about layers rests on.
namespace moescope {

/// A file of rows under the name it was given by.
struct RecordedFile {
  std::string name;
  std::vector<RecordedRun> runs;
};

/// What one run measured of one layer under one set of conditions. Points into the file it was made from.
struct Recording {
  const RecordedFile* file = nullptr;
  std::int64_t run = 1;  ///< which of the file's runs, from 1
  const RunHeader* header = nullptr;
  const ResultRow* what = nullptr;  ///< any of its rows: all share shape, workload, seed, backend
  std::vector<RecordedSchedule> schedules;

  const RecordedSchedule* find(std::string_view schedule) const;
};

/// The layers of a file with what counts of them: values above zero with status ok, measured (memory is
/// counted from shapes, and may say analytic), at d = 1024, L >= 1024, bf16, L2 cold, and of omnimoe default
/// group and tile sizes. A value that a run has twice belongs to two recordings.
std::vector<Recording> recordings_of(const RecordedFile& file);

/// Age of a recording: when its run started (YYYYMMDDhhmmss, 0 when neither the header nor the run id says),
/// then the run id, so that runs of one second have an order.
struct RecordingAge {
  std::int64_t started = 0;
  std::string_view run_id;
  auto operator<=>(const RecordingAge&) const = default;
};
RecordingAge age_of(const Recording& recording);

/// A layer of Table A. Null: any.
struct WantedLayer {
  std::string_view system = "omnimoe";
  std::optional<std::int64_t> num_tokens = 4096;
  std::optional<std::int64_t> top_k = 512;
  std::optional<std::string_view> workload = "gaussian:1";
  std::int64_t shared_size = 1024;  ///< rows of version 1 do not say, and pass for 1024
  std::int64_t grid_rows = 320;
  std::int64_t grid_cols = 320;
  std::string_view activation = "silu";  ///< rows of version 1 do not say, and pass
  std::string_view gates = "softmax";    ///< likewise
  std::string_view backend = {};         ///< empty: any of ours, not PyTorch

  friend bool operator==(const WantedLayer&, const WantedLayer&) = default;
};
bool matches(const Recording& recording, const WantedLayer& wanted);

/// A quantity of one schedule; null when it was not recorded.
using Quantity = std::optional<double> (*)(const RecordedSchedule&);
std::optional<double> layer_time_s(const RecordedSchedule& schedule);
std::optional<double> expert_stages_time_s(const RecordedSchedule& schedule);
std::optional<double> select_time_s(const RecordedSchedule& schedule);
/// Of a schedule whose layer was timed.
std::optional<double> peak_bytes(const RecordedSchedule& schedule);
std::optional<double> workspace_bytes(const RecordedSchedule& schedule);

/// One side of a ratio: a quantity of a layer under a schedule, or under the one whose layer is fastest.
struct RatioSide {
  WantedLayer layer = {};
  Quantity quantity = layer_time_s;
  std::string_view schedule = {};  ///< empty: the fastest
};

/// A recording with the schedule that speaks for it.
struct ChosenSchedule {
  const Recording* recording = nullptr;
  const RecordedSchedule* schedule = nullptr;
};

/// Two recordings that may be held against each other: of one device and backend and of one seed (PyTorch
/// draws its own numbers, whatever the seed: its rows go with any).
struct RecordingPair {
  ChosenSchedule above;
  ChosenSchedule below;
  /// Both have the schedule that is fastest by its newest recording, where the fastest is asked for: without
  /// it a sweep of a few schedules would hide a faster one. Two schedules of one layer are of one recording.
  bool complete = true;
};

/// Every recording of one device that has what `side` needs.
std::vector<ChosenSchedule> recordings_with(std::span<const Recording* const> device, const RatioSide& side);
/// Every pair of recordings of one device. Two variants of one system, both under the fastest schedule, are
/// compared under the fastest of those that both recordings have.
std::vector<RecordingPair> recording_pairs(std::span<const Recording* const> device, const RatioSide& above,
                                           const RatioSide& below);
/// Whether the recording has the schedule that is fastest by the newest recording of each schedule.
bool has_fastest(std::span<const Recording* const> device, const RatioSide& side, const Recording& recording);

}  // namespace moescope
