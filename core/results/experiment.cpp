#include "core/results/experiment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <variant>

#include "core/base/error.hpp"
#include "core/base/grid_text.hpp"
#include "core/base/hash.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/layer/dtype.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_options.hpp"
#include "core/workload/workload.hpp"

namespace moescope {
namespace {

/// Keeps the order of axes in the file, which is the order of the points.
using Json = nlohmann::ordered_json;

/// More than anyone waits for; a slip of the keyboard multiplies quickly.
constexpr std::size_t kMaxPoints = 20'000;

/// An axis that takes counts or texts, and where its value goes.
struct AxisKind {
  std::string_view name;
  std::variant<std::optional<std::int64_t> ExperimentPoint::*, std::string ExperimentPoint::*> member;
  std::int64_t minimum = 0;                                         ///< of counts
  void (*check)(std::string_view) = nullptr;                        ///< of texts; throws InvalidArgument
  std::int64_t maximum = std::numeric_limits<std::int64_t>::max();  ///< of counts
};

void check_l2(std::string_view text) {
  if (text != "cold" && text != "warm") {
    throw InvalidArgument("l2", text, "must be cold or warm");
  }
}

constexpr std::array kAxes = {
    AxisKind{"num_tokens", &ExperimentPoint::num_tokens, 1},
    AxisKind{"hidden_size", &ExperimentPoint::hidden_size, 1},
    AxisKind{"num_experts", &ExperimentPoint::num_experts, 1},
    AxisKind{"grid", &ExperimentPoint::grid, 0, [](std::string_view text) { parse_grid(text); }},
    AxisKind{"top_k", &ExperimentPoint::top_k, 1},
    AxisKind{"shared_size", &ExperimentPoint::shared_size, 0},
    AxisKind{"expert_size", &ExperimentPoint::expert_size, 1},
    AxisKind{"heads", &ExperimentPoint::heads, 1},
    AxisKind{"key_size", &ExperimentPoint::key_size, 1},
    AxisKind{"group_size", &ExperimentPoint::group_size, 1},
    AxisKind{"tile_tokens", &ExperimentPoint::tile_tokens, 1, nullptr, kStripTileTokens},
    AxisKind{"dtype", &ExperimentPoint::dtype, 0, [](std::string_view text) { parse_dtype(text); }},
    AxisKind{"activation", &ExperimentPoint::activation, 0,
             [](std::string_view text) { parse_activation(text); }},
    AxisKind{"gates", &ExperimentPoint::gates, 0, [](std::string_view text) { parse_gate_mode(text); }},
    AxisKind{"l2", &ExperimentPoint::l2, 0, check_l2},
    AxisKind{"device", &ExperimentPoint::device},
    AxisKind{"seed", &ExperimentPoint::seed, 0},
};
/// Lists of their own at the top of the file. Workloads change fastest: synthetic ones share their weights.
constexpr AxisKind kSystems{"systems", &ExperimentPoint::system, 0,
                            [](std::string_view text) { parse_system(text); }};
constexpr AxisKind kPresets{"presets", &ExperimentPoint::preset};
constexpr AxisKind kWorkloads{"workloads", &ExperimentPoint::workload, 0,
                              [](std::string_view text) { WorkloadSpec::parse(text); }};

/// An axis of this experiment with its values as the file has them.
struct Axis {
  AxisKind kind;
  std::vector<Json> values;
};

/// Parses one file; every message names it and the field.
class Parser {
 public:
  explicit Parser(std::string name) : name_(std::move(name)) {}

  Experiment parse(std::string_view text) {
    const auto file = parse_json<Json>(text, {name_, ""});
    if (!file.is_object()) {
      throw FileError(name_, "", "is not a JSON object");
    }
    require_known(file, "",
                  {"name", "about", "systems", "presets", "workloads", "schedules", "metrics", "tuned_on",
                   "axes", "zip", "min_samples", "max_time_s", "minutes"});
    Experiment experiment;
    experiment.name = name_of(file);
    experiment.about = text_of(file, "about");
    experiment.schedules = texts_of(file, "schedules");
    for (const std::string& schedule : experiment.schedules) {
      checked("schedules", schedule, [&] { parse_schedule(schedule); });
    }
    experiment.metrics = texts_of(file, "metrics");
    experiment.tuned_on = text_of(file, "tuned_on");
    if (file.contains("tuned_on")) {
      checked("tuned_on", experiment.tuned_on, [&] { WorkloadSpec::parse(experiment.tuned_on); });
    }
    read_sampling(file, experiment);
    read_minutes(file, experiment);
    read_axes(file);
    make_points(group(file), experiment);
    // Sorted keys: the order in which a file says things does not matter, but for the axes' values.
    auto canonical = parse_json<nlohmann::json>(text, {name_, ""});
    canonical.erase("minutes");  // an estimate that got better makes no other experiment
    experiment.canonical = canonical.dump();
    return experiment;
  }

 private:
  [[noreturn]] void fail(std::string_view field, const Json& value, std::string_view requirement) const {
    throw FileError(name_, field, fmt::format("{}: {}", shown(value), requirement));
  }

  /// Runs a check that throws InvalidArgument, whose message names the value and what it must be.
  template <class Check>
  void checked(std::string_view field, const Json& value, const Check& check) const {
    try {
      check();
    } catch (const InvalidArgument& error) {
      fail(field, value, error.what());
    }
  }

  void require_known(const Json& object, const std::string& prefix,
                     std::initializer_list<std::string_view> known) const {
    for (const auto& [key, value] : object.items()) {
      if (std::ranges::find(known, key) == known.end()) {
        throw FileError(name_, prefix + detail::printable(key),
                        fmt::format("is not one of {}", fmt::join(known, ", ")));
      }
    }
  }

  std::string text_of(const Json& file, const char* key) const {
    if (!file.contains(key)) {
      return {};
    }
    if (!file[key].is_string()) {
      fail(key, file[key], "must be a string");
    }
    return file[key].get<std::string>();
  }

  std::string name_of(const Json& file) const {
    std::string name = text_of(file, "name");
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
             c == '_';
    };
    if (name.empty() || !std::ranges::all_of(name, allowed)) {
      fail("name", name, "an experiment needs one, of letters, digits, - and _");
    }
    return name;
  }

  /// Values of a list, or the one value where a list may be left out; no value twice.
  std::vector<Json> values_of(const Json& value, const std::string& field) const {
    std::vector<Json> values;
    if (value.is_array()) {
      values.assign(value.begin(), value.end());
    } else {
      values.push_back(value);
    }
    if (values.empty()) {
      fail(field, value, "needs a value");
    }
    return values;
  }

  std::vector<std::string> texts_of(const Json& file, const char* key) const {
    std::vector<std::string> texts;
    if (!file.contains(key)) {
      return texts;
    }
    if (!file[key].is_array()) {
      fail(key, file[key], "must be a list of strings");
    }
    for (const Json& value : values_of(file[key], key)) {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        fail(key, value, "must be a string");
      }
      if (std::ranges::count(texts, value.get<std::string>()) > 0) {
        fail(key, value, "stands there twice");
      }
      texts.push_back(value.get<std::string>());
    }
    return texts;
  }

  void read_sampling(const Json& file, Experiment& experiment) const {
    if (file.contains("min_samples")) {
      experiment.min_samples = count("min_samples", file["min_samples"], 2);
    }
    if (file.contains("max_time_s")) {
      const Json& value = file["max_time_s"];
      if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
        fail("max_time_s", value, "must be a number > 0");
      }
      experiment.max_time_s = value.get<double>();
    }
  }

  void read_minutes(const Json& file, Experiment& experiment) const {
    const Json minutes = file.value("minutes", Json::object());
    if (!minutes.is_object()) {
      fail("minutes", minutes, "must be an object of backends");
    }
    require_known(minutes, "minutes.", {"cpu", "cuda", "model"});
    for (const auto& [backend, value] : minutes.items()) {
      if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
        fail("minutes." + backend, value, "must be a number > 0");
      }
      experiment.minutes[backend] = value.get<double>();
    }
  }

  std::int64_t count(const std::string& field, const Json& value, std::int64_t minimum) const {
    const bool fits = value.is_number_integer() && (!value.is_number_unsigned() ||
                                                    std::in_range<std::int64_t>(value.get<std::uint64_t>()));
    if (!fits || value.get<std::int64_t>() < minimum) {
      fail(field, value, fmt::format("must be an integer >= {}", minimum));
    }
    return value.get<std::int64_t>();
  }

  void add_axis(const AxisKind& kind, const std::string& field, const Json& value) {
    Axis axis{kind, values_of(value, field)};
    for (const Json& each : axis.values) {
      if (std::holds_alternative<std::string ExperimentPoint::*>(kind.member)) {
        if (!each.is_string() || each.get_ref<const std::string&>().empty()) {
          fail(field, each, "must be a string");
        }
        if (kind.check != nullptr) {
          checked(field, each, [&] { kind.check(each.get_ref<const std::string&>()); });
        }
      } else {
        if (count(field, each, kind.minimum) > kind.maximum) {
          fail(field, each, fmt::format("must be an integer <= {}", kind.maximum));
        }
      }
    }
    axes_.push_back(std::move(axis));
  }

  void read_axes(const Json& file) {
    for (const AxisKind& kind : {kSystems, kPresets}) {
      add_list(file, kind);
    }
    const Json axes = file.value("axes", Json::object());
    if (!axes.is_object()) {
      fail("axes", axes, "must be an object");
    }
    for (const auto& [key, value] : axes.items()) {
      const auto* kind = std::ranges::find(kAxes, key, &AxisKind::name);
      if (kind == kAxes.end()) {
        std::string known;
        for (const AxisKind& each : kAxes) {
          known += fmt::format("{}{}", known.empty() ? "" : ", ", each.name);
        }
        throw FileError(name_, "axes." + detail::printable(key), fmt::format("is not one of {}", known));
      }
      add_axis(*kind, "axes." + key, value);
    }
    if (axes.contains("grid") && axes.contains("num_experts")) {
      fail("axes.num_experts", axes["num_experts"], "cannot be given beside axes.grid");
    }
    add_list(file, kWorkloads);
  }

  void add_list(const Json& file, const AxisKind& kind) {
    const std::string key(kind.name);
    if (!file.contains(key)) {
      return;
    }
    if (!file[key].is_array()) {
      fail(key, file[key], "must be a list of strings");
    }
    add_axis(kind, key, file[key]);
  }

  /// Indices into axes_ that go in step, in the order of the points; most stand alone.
  std::vector<std::vector<std::size_t>> group(const Json& file) const {
    std::vector<int> zipped(axes_.size(), -1);
    const Json zips = file.value("zip", Json::array());
    if (!zips.is_array()) {
      fail("zip", zips, "must be a list of lists of axes");
    }
    for (std::size_t z = 0; z < zips.size(); ++z) {
      if (!zips[z].is_array() || zips[z].size() < 2) {
        fail("zip", zips[z], "must be a list of two axes or more");
      }
      for (const Json& name : zips[z]) {
        mark_zipped(name, static_cast<int>(z), zipped);
      }
    }
    std::vector<std::vector<std::size_t>> groups;
    std::vector<std::size_t> group_of_zip(zips.size(), axes_.size());
    for (std::size_t a = 0; a < axes_.size(); ++a) {
      if (zipped[a] < 0) {
        groups.push_back({a});
        continue;
      }
      std::size_t& at = group_of_zip[static_cast<std::size_t>(zipped[a])];
      if (at == axes_.size()) {
        at = groups.size();
        groups.emplace_back();
      }
      groups[at].push_back(a);
      const Axis& first = axes_[groups[at].front()];
      if (first.values.size() != axes_[a].values.size()) {
        fail("zip", zips[static_cast<std::size_t>(zipped[a])],
             fmt::format("{} has {} values, {} has {}", first.kind.name, first.values.size(),
                         axes_[a].kind.name, axes_[a].values.size()));
      }
    }
    return groups;
  }

  void mark_zipped(const Json& name, int zip, std::vector<int>& zipped) const {
    const auto found = std::ranges::find_if(axes_, [&](const Axis& axis) {
      return name.is_string() && name.get<std::string>() == axis.kind.name;
    });
    if (found == axes_.end()) {
      fail("zip", name, "is not an axis of this experiment");
    }
    int& mark = zipped[static_cast<std::size_t>(found - axes_.begin())];
    if (mark >= 0) {
      fail("zip", name, "is zipped twice");
    }
    mark = zip;
  }

  void make_points(const std::vector<std::vector<std::size_t>>& groups, Experiment& experiment) const {
    std::size_t total = 1;
    for (const auto& members : groups) {
      total *= axes_[members.front()].values.size();
      if (total > kMaxPoints) {
        throw FileError(name_, "axes", fmt::format("make more than {} points", kMaxPoints));
      }
    }
    std::set<std::string> ids;
    for (std::size_t index = 0; index < total; ++index) {
      ExperimentPoint point;
      std::vector<std::string> words;
      std::size_t period = total;
      for (const auto& members : groups) {
        const std::size_t size = axes_[members.front()].values.size();
        period /= size;
        for (const std::size_t a : members) {
          set(axes_[a], index / period % size, point, words);
        }
      }
      check_preset(point);
      check_axes(point);
      point.label = words.empty() ? experiment.name : fmt::format("{}", fmt::join(words, ", "));
      point.id = id_of(point, experiment);
      if (!ids.insert(point.id).second) {
        throw FileError(name_, "axes", fmt::format("make the point \"{}\" twice", point.label));
      }
      experiment.points.push_back(std::move(point));
    }
  }

  static void set(const Axis& axis, std::size_t index, ExperimentPoint& point,
                  std::vector<std::string>& words) {
    const Json& value = axis.values[index];
    std::string text;
    if (const auto* member = std::get_if<std::string ExperimentPoint::*>(&axis.kind.member)) {
      text = value.get<std::string>();
      point.** member = text;
    } else {
      const auto number = value.get<std::int64_t>();
      point.*std::get<std::optional<std::int64_t> ExperimentPoint::*>(axis.kind.member) = number;
      text = fmt::format("{} {}", axis.kind.name, number);
    }
    if (axis.values.size() > 1) {
      words.push_back(std::move(text));
    }
  }

  void check_preset(const ExperimentPoint& point) const {
    if (point.preset.empty()) {
      return;
    }
    const System system = parse_system(point.system);
    checked("presets", point.preset, [&] {
      if (system == System::kOmniMoe) {
        find_preset(point.preset);
      } else {
        find_system_preset(system, point.preset);
      }
    });
  }

  /// Refuses a value that the point's system has no use for.
  void check_axes(const ExperimentPoint& point) const {
    const System system = parse_system(point.system);
    for (const AxisKind& kind : kAxes) {
      Json value;
      if (const auto* text = std::get_if<std::string ExperimentPoint::*>(&kind.member)) {
        value = (point.**text).empty() ? Json() : Json(point.**text);
      } else if (const auto number =
                     point.*std::get<std::optional<std::int64_t> ExperimentPoint::*>(kind.member)) {
        value = *number;
      }
      if (!value.is_null()) {
        checked(fmt::format("axes.{}", kind.name), value, [&] {
          require_system_has({&system, 1}, kind.name,
                             value.is_string() ? value.get<std::string>() : value.dump());
        });
      }
    }
  }

  static std::string id_of(const ExperimentPoint& point, const Experiment& experiment) {
    nlohmann::json fields = {{"schedules", experiment.schedules}};
    if (!experiment.tuned_on.empty()) {
      fields["tuned_on"] = experiment.tuned_on;
    }
    for (const auto* list : {&kSystems, &kPresets, &kWorkloads}) {
      fields[std::string(list->name)] = point.*std::get<std::string ExperimentPoint::*>(list->member);
    }
    for (const AxisKind& kind : kAxes) {
      const std::string key(kind.name);
      if (kind.member == decltype(kind.member)(&ExperimentPoint::device) && point.device.empty()) {
        continue;  // points recorded before there was such an axis keep their ids
      }
      if (const auto* text = std::get_if<std::string ExperimentPoint::*>(&kind.member)) {
        fields[key] = point.**text;
      } else if (const auto number =
                     point.*std::get<std::optional<std::int64_t> ExperimentPoint::*>(kind.member)) {
        fields[key] = *number;
      }
    }
    return fmt::format("{:016x}", fnv1a(fields.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

  std::string name_;
  std::vector<Axis> axes_;
};

}  // namespace

Experiment parse_experiment(std::string_view text, const std::string& name) {
  return Parser(name).parse(text);
}

Experiment read_experiment(const std::filesystem::path& file) {
  return parse_experiment(read_text(file), file.string());
}

std::string_view experiment_schema_json() {
  static constexpr std::string_view kSchema =
#include "experiment_schema.inc"
      ;
  return kSchema;
}

}  // namespace moescope
