#include "profiler/report/report_figures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <set>

namespace moescope {
namespace {

/// A quantity that a sweep may have varied.
struct Quantity {
  std::string_view name;
  std::string_view label;
  std::optional<double> (*of)(const RecordedLayer& layer);
  bool log = true;
};

std::optional<double> number(std::optional<std::int64_t> value) {
  return value ? std::optional(static_cast<double>(*value)) : std::nullopt;
}

constexpr std::array kQuantities = {
    Quantity{"L", "tokens L", [](const RecordedLayer& layer) { return number(layer.what.num_tokens); }},
    Quantity{"N", "experts N",
             [](const RecordedLayer& layer) { return number(layer.what.grid_rows * layer.what.grid_cols); }},
    Quantity{"K", "experts per token K", [](const RecordedLayer& layer) { return number(layer.what.top_k); }},
    Quantity{"d", "width d", [](const RecordedLayer& layer) { return number(layer.what.hidden_size); }},
    Quantity{"shared", "width of the shared MLP",
             [](const RecordedLayer& layer) { return number(layer.what.shared_size); }, false},
    Quantity{"B", "group size B", [](const RecordedLayer& layer) { return number(layer.what.group_size); }},
    Quantity{"tile_tokens", "most tokens of a strip's tile",
             [](const RecordedLayer& layer) { return number(layer.what.tile_tokens); }},
    Quantity{"workload", "unevenness of expert load: KL to uniform (nats)",
             [](const RecordedLayer& layer) {
               return layer.common.value(Stage::kRouterSelect, "unevenness_nats");
             },
             false},
};

/// Colours of schedules in every figure; see figure.cpp.
int colour_of(std::string_view schedule) {
  constexpr std::array<std::string_view, 6> kOrder = {
      "token_centric", "expert_centric", "staircase", "staircase:atomics", "dense_masked", "sparse_library"};
  const auto place = std::ranges::find(kOrder, schedule);
  return place != kOrder.end() ? static_cast<int>(place - kOrder.begin()) : schedule == "auto" ? 7 : -1;
}

/// "tablea_layer2" of snapshot:some/where/tablea_layer2.safetensors; other workloads as they are.
std::string short_name(const std::string& workload) {
  const bool is_file = workload.starts_with("snapshot:") || workload.starts_with("trace:");
  return is_file ? std::filesystem::path(workload.substr(workload.find(':') + 1)).stem().string() : workload;
}

/// Everything that is held fixed while `varied` changes; a line of text for titles. Two quantities that were
/// swept in step tell layers apart by themselves, so a figure has only what truly varies alone.
std::string fixed_text(const RecordedLayer& layer, std::string_view varied) {
  const ResultRow& what = layer.what;
  std::vector<std::string> words;
  for (const Quantity& quantity : kQuantities) {
    const auto value = quantity.of(layer);
    if (quantity.name != varied && quantity.name != "workload" && value) {
      words.push_back(fmt::format("{} {:g}", quantity.name, *value));
    }
  }
  if (varied != "workload") {
    words.push_back(what.workload);
  }
  words.push_back(what.dtype);
  words.push_back(
      fmt::format("{} on {}, L2 {}, seed {}", what.backend, layer.header->device, what.l2_state, what.seed));
  words.push_back(fmt::format("revision {}", layer.header->git_revision.substr(0, 7)));
  for (const auto& [value, usual] : {std::pair(what.activation, "silu"), std::pair(what.gates, "softmax")}) {
    if (value != usual && value != "none") {
      words.push_back(value);
    }
  }
  return fmt::format("{}", fmt::join(words, ", "));
}

/// "staircase", or with the system where there are several.
std::string line_name(const RecordedLayer& layer, const RecordedSchedule& schedule, bool several_systems) {
  return several_systems ? fmt::format("{} {}", layer.what.system, schedule.name) : schedule.name;
}

/// Where a layer's times come from; layers of one figure share a backend, hence this.
Source time_source(const RecordedLayer& layer) {
  for (const RecordedSchedule& schedule : layer.schedules) {
    if (const ResultRow* row = schedule.find(Stage::kLayer, "time_s")) {
      return row->source;
    }
  }
  return Source::kMeasured;
}

/// Milliseconds of one line by x; of several at one x the last was recorded last.
struct Line {
  std::map<double, double> points;
  int colour = -1;
};

/// Workloads of `layers` by their skew, named below the axis: several lie close together on a scale of
/// numbers.
std::map<double, std::string> workload_names(const std::vector<const RecordedLayer*>& layers,
                                             const Quantity& quantity) {
  std::map<double, std::string> names;
  for (const RecordedLayer* layer : layers) {
    if (const auto x = quantity.of(*layer)) {
      std::string& name = names[*x];
      const std::string more = short_name(layer->what.workload);
      name = name.empty() || name == more ? more : fmt::format("{}, {}", name, more);
    }
  }
  for (auto& [x, name] : names) {
    name += fmt::format(" ({:.2f})", x);
  }
  return names;
}

FigurePanel panel(const std::vector<const RecordedLayer*>& layers, const Quantity& quantity,
                  std::string title, std::optional<double> (*time_of)(const RecordedSchedule&)) {
  std::set<std::string> systems;
  for (const RecordedLayer* layer : layers) {
    systems.insert(layer->what.system);
  }
  const bool several = systems.size() > 1;
  const auto names =
      quantity.name == "workload" ? workload_names(layers, quantity) : std::map<double, std::string>();
  std::map<std::string, Line> lines;
  for (const RecordedLayer* layer : layers) {
    for (const RecordedSchedule& schedule : layer->schedules) {
      const auto x = quantity.of(*layer);
      const auto y = time_of(schedule);
      if (x && y) {
        Line& line = lines[line_name(*layer, schedule, several)];
        const double place =
            names.empty() ? *x : static_cast<double>(std::distance(names.begin(), names.find(*x)));
        line.points[place] = *y * 1e3;
        line.colour = several ? -1 : colour_of(schedule.name);
      }
    }
  }
  FigurePanel result;
  result.title = std::move(title);
  result.x_label = quantity.label;
  result.y_label = "milliseconds (median)";
  result.log_x = quantity.log;
  result.log_y = true;
  for (const auto& [x, name] : names) {
    result.x_names.push_back(name);
  }
  for (const auto& [name, line] : lines) {
    FigureSeries series;
    series.label = name;
    series.colour = line.colour;
    for (const auto& [x, y] : line.points) {
      series.x.push_back(x);
      series.y.push_back(y);
    }
    result.series.push_back(std::move(series));
  }
  return result;
}

/// Whether anything changes along the panel's axis.
bool worth_drawing(const FigurePanel& panel) {
  return std::ranges::any_of(panel.series, [](const FigureSeries& series) { return series.x.size() > 1; });
}

}  // namespace

std::vector<Figure> report_figures(const std::vector<RecordedLayer>& layers, std::size_t limit) {
  struct Candidate {
    std::size_t points = 0;
    Figure figure;
  };
  std::vector<Candidate> candidates;
  for (const Quantity& quantity : kQuantities) {
    std::map<std::string, std::vector<const RecordedLayer*>> groups;
    for (const RecordedLayer& layer : layers) {
      if (quantity.of(layer)) {
        groups[fixed_text(layer, quantity.name)].push_back(&layer);
      }
    }
    for (const auto& [fixed, members] : groups) {
      std::set<double> values;
      for (const RecordedLayer* layer : members) {
        values.insert(*quantity.of(*layer));
      }
      if (values.size() < 2) {
        continue;
      }
      Figure figure;
      figure.title = fixed;
      const std::string kind(to_string(time_source(*members.front())));
      figure.panels.push_back(
          panel(members, quantity, kind + " time of the layer",
                [](const RecordedSchedule& s) { return s.value(Stage::kLayer, "time_s"); }));
      figure.panels.push_back(panel(members, quantity, kind + " time of the expert stage",
                                    [](const RecordedSchedule& s) { return s.experts_time_s(); }));
      std::erase_if(figure.panels, [](const FigurePanel& one) { return !worth_drawing(one); });
      if (!figure.panels.empty()) {
        candidates.push_back({values.size(), std::move(figure)});
      }
    }
  }
  std::ranges::stable_sort(candidates, std::ranges::greater(), &Candidate::points);
  std::vector<Figure> figures;
  for (std::size_t i = 0; i < std::min(limit, candidates.size()); ++i) {
    figures.push_back(std::move(candidates[i].figure));
  }
  return figures;
}

}  // namespace moescope
