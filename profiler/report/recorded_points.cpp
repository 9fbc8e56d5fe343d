#include "profiler/report/recorded_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <type_traits>
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

constexpr std::string_view kNone = "none";

std::string field_text(const std::string& value) { return value == kNone ? "" : value; }
std::string field_text(const std::optional<std::int64_t>& value) {
  return value ? fmt::to_string(*value) : "";
}
template <class T>
requires std::is_arithmetic_v<T> std::string field_text(T value) { return fmt::to_string(value); }

void reset(std::string& value) { value = kNone; }
void reset(std::optional<std::int64_t>& value) { value.reset(); }
template <class T>
requires std::is_arithmetic_v<T>
void reset(T&) {}

/// Calls visit(place, member) for the axes that a schedule may have of its own, or that its rows may leave
/// open: all fields of a point that tell schedules and states apart, but the name.
template <class P, class Visit>
void for_each_open(P& point, const Visit& visit) {
  std::size_t axis = 0;
  for_each_field(point, [&](const PointField& field, auto& value) {
    const std::string_view key = field.key;
    if (field.part != PointPart::kLayer && key != "schedule") {
      visit(axis++, value);
    }
  });
}

/// Of those axes the ones that are a state of all schedules alike.
const std::vector<bool>& state_axes() {
  static const std::vector<bool> axes = [] {
    std::vector<bool> states;
    for_each_field(Point{}, [&](const PointField& field, const auto&) {
      if (field.part != PointPart::kLayer && field.key != std::string_view("schedule")) {
        states.push_back(field.part == PointPart::kState);
      }
    });
    return states;
  }();
  return axes;
}

/// By place; empty: any.
using OpenValues = std::vector<std::string>;
OpenValues open_values(const Point& point) {
  OpenValues values;
  for_each_open(point, [&](std::size_t, const auto& value) { values.push_back(field_text(value)); });
  return values;
}

/// Takes what `point` says of one axis.
void take_open(Point& what, const Point& point, std::size_t axis) {
  for_each_open(what, [&](std::size_t place, auto& mine) {
    for_each_open(point, [&](std::size_t other, const auto& theirs) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(mine)>,
                                   std::remove_cvref_t<decltype(theirs)>>) {
        if (place == axis && other == axis) {
          mine = theirs;
        }
      }
    });
  });
}

/// A row with its open axes.
struct OpenRow {
  const ResultRow* row;
  OpenValues values;
};

/// Rows that agree on all other axes, and what schedules were recorded with.
class RowGroup {
 public:
  void add(const ResultRow& row) {
    rows_.push_back({&row, open_values(row)});
    for (std::size_t axis = 0; axis < rows_.back().values.size(); ++axis) {
      std::vector<std::string>& known = values_[owner(row, axis)][axis];
      const std::string& value = rows_.back().values[axis];
      if (!value.empty() && std::ranges::find(known, value) == known.end()) {
        known.push_back(value);
      }
    }
  }
  const std::vector<OpenRow>& rows() const { return rows_; }

  /// Every combination of the values by which one and the same schedule was recorded more than once, and of
  /// states that differ: each is a layer of its own. One, with nothing in it, without such values.
  std::vector<OpenValues> layers() const {
    std::vector<OpenValues> all(1, OpenValues(rows_.front().values.size()));
    for (std::size_t axis = 0; axis < all.front().size(); ++axis) {
      std::vector<std::string> split;
      for (const auto& [owner, values] : values_) {
        const auto known = values.find(axis);
        if (known == values.end() || known->second.size() < 2) {
          continue;
        }
        for (const std::string& value : known->second) {
          if (std::ranges::find(split, value) == split.end()) {
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

  /// Whether a row belongs to the layer of these values: it has no other of its own where its schedule, or of
  /// a state the group, has several.
  bool takes(const OpenValues& layer, const OpenRow& open) const {
    for (std::size_t axis = 0; axis < layer.size(); ++axis) {
      const std::string& value = open.values[axis];
      if (!layer[axis].empty() && !value.empty() && value != layer[axis] &&
          values_.at(owner(*open.row, axis)).at(axis).size() > 1) {
        return false;
      }
    }
    return true;
  }

 private:
  /// Whose values of an axis are told apart: the row's schedule's, or ("") the group's.
  static std::string owner(const ResultRow& row, std::size_t axis) {
    return state_axes()[axis] ? "" : row.schedule;
  }

  std::vector<OpenRow> rows_;
  std::map<std::string, std::map<std::size_t, std::vector<std::string>>> values_;  ///< of an owner, by axis
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

/// Whether the schedule is a choice among others. Such a row says what was chosen.
bool is_choice(const ResultRow& row) {
  const ScheduleInfo* info = find_schedule_info(row.schedule);
  return info != nullptr && info->chosen;
}

/// The layer of `values` among the rows of a group.
RecordedLayer layer_of(const RunHeader& header, const RowGroup& group, const OpenValues& values) {
  RecordedLayer layer{&header, *group.rows().front().row, {"none", {}}, {}};
  for_each_open(static_cast<Point&>(layer.what), [](std::size_t, auto& value) { reset(value); });
  std::vector<const OpenRow*> taken;
  for (const OpenRow& open : group.rows()) {
    if (group.takes(values, open)) {
      schedule_of(layer, open.row->schedule).rows.push_back(open.row);
      taken.push_back(&open);
    }
  }
  // What a layer was run with is what its rows say, before those of schedules that choose.
  std::stable_partition(taken.begin(), taken.end(),
                        [](const OpenRow* open) { return !is_choice(*open->row); });
  for (std::size_t axis = 0; axis < values.size(); ++axis) {
    const auto first = std::ranges::find_if(taken, [&](const OpenRow* open) {
      const std::string& value = open->values[axis];
      return !value.empty() && (values[axis].empty() || values[axis] == value);
    });
    if (first != taken.end()) {
      take_open(layer.what, *(*first)->row, axis);
    }
  }
  return layer;
}

}  // namespace

const ResultRow* RecordedSchedule::find(Stage stage, std::string_view metric) const {
  const ResultRow* found = nullptr;
  for (const ResultRow* row : rows) {
    const bool asked = row->stage == to_string(stage) && row->metric == metric;
    // One metric may have a formula, a model and a measurement: the first of these, as last recorded.
    if (asked && (found == nullptr || row->source == found->source)) {
      found = row;
    }
  }
  return found;
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
