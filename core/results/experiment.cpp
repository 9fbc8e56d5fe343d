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
#include "core/results/experiment_axes.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_options.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/trace_file.hpp"
#include "core/workload/workload.hpp"

namespace moescope {
namespace {

/// Keeps the order of axes in the file, which is the order of the points.
using Json = nlohmann::ordered_json;

/// More than anyone waits for; a slip of the keyboard multiplies quickly.
constexpr std::size_t kMaxPoints = 20'000;

/// An axis of this experiment with its values as the file has them.
struct Axis {
  RequestField kind;
  bool is_text = false;
  std::vector<Json> values;
};

/// Where a point keeps what an axis sets.
using Member = std::variant<std::string*, std::optional<std::int64_t>*>;
Member member_of(ExperimentPoint& point, std::string_view axis) {
  Member member;
  if (axis == detail::kSystems.key) {
    member = &point.system;
  } else if (axis == detail::kPresets.key) {
    member = &point.preset;
  } else if (axis == detail::kWorkloads.key) {
    member = &point.workload;
  } else {
    detail::for_each_axis(point, [&](const RequestField& field, auto& value) {
      if (axis == field.key) {
        member = &value;
      }
    });
  }
  return member;
}

/// Throws InvalidArgument("schedule", ...) unless some baseline may be asked to run like this.
void require_baseline_schedule(std::string_view text) {
  const ScheduleOptions of = parse_schedule(text);
  const auto runs = [&](const SystemTraits& t) { return t.system != System::kOmniMoe && t.has(of); };
  if (of.kind != ScheduleKind::kAuto && system_names(runs).empty()) {
    throw InvalidArgument("schedule", text, "is no baseline's");
  }
}

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
                  {"name", "about", "systems", "presets", "workloads", "schedules", "baseline_schedules",
                   "metrics", "tuned_on", "axes", "zip", "min_samples", "max_time_s", "minutes"});
    Experiment experiment;
    experiment.name = name_of(file);
    experiment.about = text_of(file, "about");
    experiment.schedules = texts_of(file, "schedules");
    for (const std::string& schedule : experiment.schedules) {
      checked("schedules", schedule, [&] { parse_schedule(schedule); });
    }
    experiment.baseline_schedules = texts_of(file, "baseline_schedules");
    for (const std::string& schedule : experiment.baseline_schedules) {
      checked("baseline_schedules", schedule, [&] { require_baseline_schedule(schedule); });
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

  /// Values of a list, or the one value where a list may be left out. Throws for a list without any.
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

  void add_axis(const RequestField& kind, bool is_text, const std::string& field, const Json& value) {
    Axis axis{kind, is_text, values_of(value, field)};
    for (const Json& each : axis.values) {
      if (is_text) {
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
    for (const RequestField& kind : {detail::kSystems, detail::kPresets}) {
      add_list(file, kind);
    }
    const Json axes = file.value("axes", Json::object());
    if (!axes.is_object()) {
      fail("axes", axes, "must be an object");
    }
    const ExperimentPoint names;
    for (const auto& item : axes.items()) {
      const std::string& key = item.key();  // no binding: clang 14 captures none
      const Json& value = item.value();
      std::string known;
      bool found = false;
      detail::for_each_axis(names, [&](const RequestField& field, const auto& member) {
        known += fmt::format("{}{}", known.empty() ? "" : ", ", field.key);
        if (key == field.key) {
          found = true;
          add_axis(field, std::is_same_v<std::remove_cvref_t<decltype(member)>, std::string>, "axes." + key,
                   value);
        }
      });
      if (!found) {
        throw FileError(name_, "axes." + detail::printable(key), fmt::format("is not one of {}", known));
      }
    }
    if (axes.contains("grid") && axes.contains("num_experts")) {
      fail("axes.num_experts", axes["num_experts"], "cannot be given beside axes.grid");
    }
    add_list(file, detail::kWorkloads);
  }

  void add_list(const Json& file, const RequestField& kind) {
    const std::string key(kind.key);
    if (!file.contains(key)) {
      return;
    }
    if (!file[key].is_array()) {
      fail(key, file[key], "must be a list of strings");
    }
    if (kind.key == detail::kWorkloads.key) {
      add_axis(kind, true, key, expand_layers(file[key]));
      return;
    }
    add_axis(kind, true, key, file[key]);
  }

  /// Each "trace:FILE#layer=all" as one workload a layer: the layers are values of the axis.
  Json expand_layers(const Json& workloads) const {
    Json expanded = Json::array();
    for (const Json& workload : workloads) {
      if (!workload.is_string()) {
        expanded.push_back(workload);  // refused as any other value
        continue;
      }
      checked("workloads", workload, [&] {
        for (const std::string& layer : expand_trace_layers(workload.get<std::string>())) {
          expanded.push_back(layer);
        }
      });
    }
    return expanded;
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
             fmt::format("{} has {} values, {} has {}", first.kind.key, first.values.size(),
                         axes_[a].kind.key, axes_[a].values.size()));
      }
    }
    return groups;
  }

  void mark_zipped(const Json& name, int zip, std::vector<int>& zipped) const {
    const auto found = std::ranges::find_if(axes_, [&](const Axis& axis) {
      return name.is_string() && name.get<std::string>() == axis.kind.key;
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
    const Member member = member_of(point, axis.kind.key);
    if (auto* const* to = std::get_if<std::string*>(&member)) {
      text = value.get<std::string>();
      **to = text;
    } else {
      const auto number = value.get<std::int64_t>();
      *std::get<std::optional<std::int64_t>*>(member) = number;
      text = fmt::format("{} {}", axis.kind.key, number);
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
    detail::for_each_axis(point, [&](const RequestField& field, const auto& asked) {
      const Json value = json_of(asked);
      if (!value.is_null()) {
        checked(fmt::format("axes.{}", field.key), value, [&] {
          require_system_has({&system, 1}, field.key,
                             value.is_string() ? value.get<std::string>() : value.dump());
        });
      }
    });
  }

  /// Null when it was not asked for.
  static Json json_of(const std::string& asked) { return asked.empty() ? Json() : Json(asked); }
  static Json json_of(const std::optional<std::int64_t>& asked) { return asked ? Json(*asked) : Json(); }

  static std::string id_of(const ExperimentPoint& point, const Experiment& experiment) {
    nlohmann::json fields = {{"schedules", experiment.schedules}};
    if (!experiment.tuned_on.empty()) {
      fields["tuned_on"] = experiment.tuned_on;
    }
    if (!experiment.baseline_schedules.empty() && point.system != to_string(System::kOmniMoe)) {
      fields["baseline_schedules"] = experiment.baseline_schedules;
    }
    fields[detail::kSystems.key] = point.system;
    fields[detail::kPresets.key] = point.preset;
    fields[detail::kWorkloads.key] = point.workload;
    // Points keep their ids when a new axis comes, so it counts only where it is given. These were always
    // counted.
    for (const char* first : {"grid", "dtype", "activation", "gates", "l2"}) {
      fields[first] = "";
    }
    detail::for_each_axis(point, [&](const RequestField& field, const auto& asked) {
      const Json value = json_of(asked);
      if (!value.is_null()) {
        fields[field.key] = value;
      }
    });
    return fmt::format("{:016x}", fnv1a(fields.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

  std::string name_;
  std::vector<Axis> axes_;
};

}  // namespace

namespace detail {

void check_l2(std::string_view text) {
  if (text != "cold" && text != "warm") {
    throw InvalidArgument("l2", text, "must be cold or warm");
  }
}
void check_system(std::string_view text) { parse_system(text); }
void check_workload(std::string_view text) { WorkloadSpec::parse(text); }

}  // namespace detail

Experiment parse_experiment(std::string_view text, const std::string& name) {
  return Parser(name).parse(text);
}

Experiment read_experiment(const std::filesystem::path& file) {
  return parse_experiment(read_text(file), file.string());
}

}  // namespace moescope
