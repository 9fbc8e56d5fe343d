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
#include "core/results/experiment_fields.hpp"
#include "core/results/experiment_points.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_options.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/trace_file.hpp"
#include "core/workload/workload.hpp"

namespace moescope {
namespace {

using detail::Json;

/// Throws InvalidArgument("schedule", ...) unless some baseline may be asked to run like this.
void require_baseline_schedule(std::string_view text) {
  const ScheduleOptions of = parse_schedule(text);
  const auto runs = [&](const SystemTraits& t) { return t.system != System::kOmniMoe && t.has(of); };
  if (of.kind != ScheduleKind::kAuto && system_names(runs).empty()) {
    throw InvalidArgument("schedule", text, "is no baseline's");
  }
}

/// Parses one file; every message names it and the field.
class Parser : detail::ExperimentFields {
 public:
  Parser(std::string name, std::optional<std::int64_t> draw_seed)
      : ExperimentFields(std::move(name)), draw_seed_(draw_seed) {}

  Experiment parse(std::string_view text) {
    const auto file = parse_json<Json>(text, {name(), ""});
    if (!file.is_object()) {
      throw FileError(name(), "", "is not a JSON object");
    }
    require_known(file, "",
                  {"name", "about", "systems", "presets", "workloads", "schedules", "baseline_schedules",
                   "metrics", "tuned_on", "axes", "zip", "draw", "min_samples", "max_time_s", "minutes"});
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
    experiment.points = detail::experiment_points(*this, file, axes_, group(file), experiment, draw_seed_);
    // Sorted keys: the order in which a file says things does not matter, but for the axes' values.
    auto canonical = parse_json<nlohmann::json>(text, {name(), ""});
    canonical.erase("minutes");  // an estimate that got better makes no other experiment
    if (draw_seed_ && canonical.contains("draw")) {
      canonical["draw"]["seed"] = *draw_seed_;
    }
    experiment.canonical = canonical.dump();
    return experiment;
  }

 private:
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

  void add_axis(const RequestField& kind, bool is_text, const std::string& field, const Json& value) {
    detail::Axis axis{kind, is_text, values_of(value, field)};
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
        throw FileError(name(), "axes." + detail::printable(key), fmt::format("is not one of {}", known));
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
      const detail::Axis& first = axes_[groups[at].front()];
      if (first.values.size() != axes_[a].values.size()) {
        fail("zip", zips[static_cast<std::size_t>(zipped[a])],
             fmt::format("{} has {} values, {} has {}", first.kind.key, first.values.size(),
                         axes_[a].kind.key, axes_[a].values.size()));
      }
    }
    return groups;
  }

  void mark_zipped(const Json& name, int zip, std::vector<int>& zipped) const {
    const auto found = std::ranges::find_if(axes_, [&](const detail::Axis& axis) {
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

  std::optional<std::int64_t> draw_seed_;
  std::vector<detail::Axis> axes_;
};

}  // namespace

namespace detail {

void check_system(std::string_view text) { parse_system(text); }
void check_workload(std::string_view text) { WorkloadSpec::parse(text); }

}  // namespace detail

Experiment parse_experiment(std::string_view text, const std::string& name,
                            std::optional<std::int64_t> draw_seed) {
  return Parser(name, draw_seed).parse(text);
}

Experiment read_experiment(const std::filesystem::path& file, std::optional<std::int64_t> draw_seed) {
  return parse_experiment(read_text(file), file.string(), draw_seed);
}

}  // namespace moescope
