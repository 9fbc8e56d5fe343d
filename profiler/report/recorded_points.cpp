#include "profiler/report/recorded_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

namespace moescope {
namespace {

constexpr std::array kExpertStages = {Stage::kExpertScores, Stage::kExpertCombine, Stage::kExperts};

/// Sum over the expert stages that have all of `metrics`; null when none has.
std::optional<double> sum_over_expert_stages(const RecordedSchedule& schedule,
                                             std::initializer_list<std::string_view> metrics) {
  std::optional<double> sum;
  for (const Stage stage : kExpertStages) {
    for (const std::string_view metric : metrics) {
      if (const auto value = schedule.value(stage, metric)) {
        sum = sum.value_or(0) + *value;
      }
    }
  }
  return sum;
}

std::string group_key(const ResultRow& row) {
  if (!row.point.empty()) {
    return row.point;
  }
  return fmt::format("{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}", row.system, row.backend, row.num_tokens,
                     row.hidden_size, row.grid_rows, row.grid_cols, row.top_k, row.shared_size.value_or(-1),
                     row.dtype, row.activation, row.gates, row.workload, row.seed);
}

RecordedSchedule& schedule_of(RecordedLayer& layer, const std::string& name) {
  if (name == "none") {
    return layer.common;
  }
  const auto found = std::ranges::find(layer.schedules, name, &RecordedSchedule::name);
  if (found != layer.schedules.end()) {
    return *found;
  }
  layer.schedules.push_back({name, {}});
  return layer.schedules.back();
}

}  // namespace

const ResultRow* RecordedSchedule::find(Stage stage, std::string_view metric) const {
  const auto found = std::ranges::find_if(
      rows, [&](const ResultRow* row) { return row->stage == to_string(stage) && row->metric == metric; });
  return found == rows.end() ? nullptr : *found;
}

std::optional<double> RecordedSchedule::value(Stage stage, std::string_view metric) const {
  const ResultRow* row = find(stage, metric);
  return row != nullptr && row->status == Status::kOk ? row->value : std::nullopt;
}

std::optional<double> RecordedSchedule::experts_time_s() const {
  return sum_over_expert_stages(*this, {"time_s"});
}

std::optional<double> RecordedSchedule::experts_requested_bytes() const {
  return sum_over_expert_stages(*this, {"l2_read_bytes", "l2_write_bytes"});
}

std::string RecordedLayer::shape_text() const {
  return fmt::format("L{} d{} N{}x{} K{}{}, {}", what.num_tokens, what.hidden_size, what.grid_rows,
                     what.grid_cols, what.top_k,
                     what.shared_size ? fmt::format(" shared {}", *what.shared_size) : "", what.dtype);
}

std::vector<RecordedLayer> recorded_layers(std::span<const RecordedRun> runs) {
  std::vector<RecordedLayer> layers;
  for (const RecordedRun& run : runs) {
    std::map<std::string, std::size_t> places;
    for (const ResultRow& row : run.rows) {
      if (row.num_tokens < 1 || row.stage == kDeviceStage) {
        continue;
      }
      const auto [place, is_new] = places.try_emplace(group_key(row), layers.size());
      if (is_new) {
        layers.push_back({&run.header, row, {"none", {}}, {}});
      }
      RecordedLayer& layer = layers[place->second];
      layer.what.l2_state = layer.what.l2_state == "none" ? row.l2_state : layer.what.l2_state;
      layer.what.group_size = layer.what.group_size ? layer.what.group_size : row.group_size;
      layer.what.tile_tokens = layer.what.tile_tokens ? layer.what.tile_tokens : row.tile_tokens;
      schedule_of(layer, row.schedule).rows.push_back(&row);
    }
  }
  return layers;
}

}  // namespace moescope
