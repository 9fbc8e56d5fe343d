#include "profiler/report/recorded_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "core/schedule/schedule_info.hpp"

namespace moescope {
namespace {

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

std::string text_of(const std::optional<std::int64_t>& value) { return value ? fmt::to_string(*value) : ""; }

constexpr const char* kNoL2 = "none";

/// The axes that a schedule may have of its own, or that its rows may leave open: group size, tile size, L2,
/// placement and exchange.
constexpr std::array<std::string (*)(const ResultRow&), 4> kOpenAxes = {
    [](const ResultRow& row) { return text_of(row.group_size); },
    [](const ResultRow& row) { return text_of(row.tile_tokens); },
    [](const ResultRow& row) { return row.l2_state == kNoL2 ? std::string() : row.l2_state; },
    [](const ResultRow& row) {
      return row.placement == "none" ? std::string() : row.placement + ' ' + row.exchange;
    }};
using OpenValues = std::array<std::string, kOpenAxes.size()>;  ///< empty: any

/// Rows that agree on all other axes, and what schedules were recorded with.
class RowGroup {
 public:
  void add(const ResultRow& row) {
    rows_.push_back(&row);
    for (std::size_t axis = 0; axis < kOpenAxes.size(); ++axis) {
      const std::string value = kOpenAxes[axis](row);
      auto& values = values_[row.schedule][axis];
      if (!value.empty() && std::ranges::find(values, value) == values.end()) {
        values.push_back(value);
      }
    }
  }
  const std::vector<const ResultRow*>& rows() const { return rows_; }

  /// Every combination of the values by which one and the same schedule was recorded more than once: each is
  /// a layer of its own. One, with nothing in it, without such a schedule.
  std::vector<OpenValues> layers() const {
    std::vector<OpenValues> all(1);
    for (std::size_t axis = 0; axis < kOpenAxes.size(); ++axis) {
      std::vector<std::string> split;
      for (const auto& [schedule, values] : values_) {
        for (const std::string& value : values[axis]) {
          if (values[axis].size() > 1 && std::ranges::find(split, value) == split.end()) {
            split.push_back(value);
          }
        }
      }
      std::vector<OpenValues> more;
      for (const std::string& value : split) {
        for (OpenValues one : all) {
          one[axis] = value;
          more.push_back(std::move(one));
        }
      }
      all = more.empty() ? all : more;
    }
    return all;
  }

  /// Whether a row belongs to the layer of these values: it has no other of its own where its schedule has
  /// several.
  bool takes(const OpenValues& layer, const ResultRow& row) const {
    for (std::size_t axis = 0; axis < kOpenAxes.size(); ++axis) {
      const std::string value = kOpenAxes[axis](row);
      if (!layer[axis].empty() && !value.empty() && value != layer[axis] &&
          values_.at(row.schedule)[axis].size() > 1) {
        return false;
      }
    }
    return true;
  }

 private:
  std::vector<const ResultRow*> rows_;
  std::map<std::string, std::array<std::vector<std::string>, kOpenAxes.size()>> values_;
};

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

/// The layer of `values` among the rows of a group.
RecordedLayer layer_of(const RunHeader& header, const RowGroup& group, const OpenValues& values) {
  RecordedLayer layer{&header, *group.rows().front(), {"none", {}}, {}};
  layer.what.group_size.reset();
  layer.what.tile_tokens.reset();
  layer.what.l2_state = kNoL2;
  layer.what.rank.reset();
  layer.what.placement = layer.what.exchange = "none";
  const auto fits = [&](std::size_t axis, const ResultRow& row) {
    return values[axis].empty() || values[axis] == kOpenAxes[axis](row);
  };
  for (const ResultRow* row : group.rows()) {
    if (group.takes(values, *row)) {
      schedule_of(layer, row->schedule).rows.push_back(row);
      layer.what.l2_state =
          layer.what.l2_state == kNoL2 && fits(2, *row) ? row->l2_state : layer.what.l2_state;
      if (layer.what.placement == "none" && fits(3, *row)) {
        layer.what.placement = row->placement;
        layer.what.exchange = row->exchange;
      }
    }
  }
  // A schedule that chooses says what it chose; the sizes that a layer was run with are the others'.
  for (const bool chosen : {false, true}) {
    for (const RecordedSchedule& schedule : layer.schedules) {
      const ScheduleInfo* info = find_schedule_info(schedule.name);
      for (const ResultRow* row : schedule.rows) {
        if ((info != nullptr && info->chosen) != chosen) {
          continue;
        }
        if (!layer.what.group_size && fits(0, *row)) {
          layer.what.group_size = row->group_size;
        }
        if (!layer.what.tile_tokens && fits(1, *row)) {
          layer.what.tile_tokens = row->tile_tokens;
        }
      }
    }
  }
  return layer;
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
    std::vector<RowGroup> groups;
    for (const ResultRow& row : run.rows) {
      if (row.num_tokens < 1 || row.stage == kDeviceStage || row.rank) {
        continue;  // of no layer, or of a part of it
      }
      const auto [place, is_new] =
          places.try_emplace(row.point + layer_key(row, kResultSchemaVersion), groups.size());
      if (is_new) {
        groups.emplace_back();
      }
      groups[place->second].add(row);
    }
    for (const RowGroup& group : groups) {
      for (const OpenValues& values : group.layers()) {
        layers.push_back(layer_of(run.header, group, values));
      }
    }
  }
  return layers;
}

}  // namespace moescope
