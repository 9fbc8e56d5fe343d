#include "profiler/report/report_figures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <tuple>

#include "core/schedule/schedule_info.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/report/row_facts.hpp"

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

/// Lines that one pair of axes can show, and names below one axis; more become further figures.
constexpr std::size_t kMaxLines = 12;
constexpr std::size_t kMaxNames = 26;

using Layers = std::vector<const RecordedLayer*>;

/// Axes that tell where and when a layer was recorded: those may be lines of one figure.
bool is_source_axis(std::string_view name) {
  return name == "device" || name == "revision" || name == "run" || name == "point";
}

/// What grids of a growing number of experts have in common.
std::string grid_kind(const ResultRow& what) {
  return what.grid_rows == what.grid_cols ? "square grids"
         : what.grid_rows == 1            ? "grids of 1 row"
                                          : fmt::format("grids of {} rows", what.grid_rows);
}

/// Everything that is held fixed while `varied` changes, as words for a caption: the same words, the same
/// figure. Systems are lines of one figure, each with its own activation and gates. Two quantities that were
/// swept in step tell layers apart by themselves, so a figure has only what truly varies alone.
std::string fixed_text(const RecordedLayer& layer, std::string_view varied) {
  const bool baseline = layer.what.system != "omnimoe";
  std::vector<std::string> words;
  for (const LayerAxis& axis : layer_axes(layer)) {
    const bool own =
        axis.name == "system" || (baseline && (axis.name == "activation" || axis.name == "gates"));
    const bool moves = axis.name == varied;
    if (axis.name == "grid" && varied == "N") {
      words.push_back(grid_kind(layer.what));
    } else if (!own && !moves && !is_source_axis(axis.name) && !axis.text.empty()) {
      words.push_back(axis.name == "workload" ? short_workload(axis.value) : axis.text);
      // Two files of one name are two workloads.
      if (axis.name == "workload" && words.back() != axis.value) {
        words.back() += fmt::format(" ({})", axis.value);
      }
    }
  }
  return fmt::format("{}", fmt::join(words, ", "));
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

/// Whether anything of the layer can be drawn; a check's layers have errors alone and are no recording.
bool has_times(const RecordedLayer& layer) {
  return std::ranges::any_of(layer.schedules, [](const RecordedSchedule& schedule) {
    return schedule.value(Stage::kLayer, "time_s") || schedule.experts_time_s();
  });
}

/// Layers that were recorded in one place, and its name among the figure's.
struct Recording {
  std::string name;
  Layers layers;
  std::string run = {};  ///< its id where device and revision do not tell it from another
};

std::set<double> values_of(const Layers& layers, const Quantity& quantity) {
  std::set<double> values;
  for (const RecordedLayer* layer : layers) {
    values.insert(*quantity.of(*layer));
  }
  return values;
}

/// `layers` by what `key` says of them, in order of appearance.
template <class Key>
std::vector<Layers> split_by(const Layers& layers, const Key& key) {
  std::map<std::string, std::size_t> places;
  std::vector<Layers> parts;
  for (const RecordedLayer* layer : layers) {
    const auto [place, is_new] = places.try_emplace(key(*layer), parts.size());
    if (is_new) {
      parts.emplace_back();
    }
    parts[place->second].push_back(layer);
  }
  return parts;
}

/// The recordings of one sweep: by device and revision, and by run where every run has a sweep of its own.
/// Otherwise runs of one revision are one recording, of a point that they share the last counts: a sweep may
/// consist of many runs. Those that are no sweep are left out.
std::vector<Recording> recordings_of(const Layers& layers, const Quantity& quantity) {
  const auto is_sweep = [&](const Layers& part) { return values_of(part, quantity).size() > 1; };
  std::vector<Layers> parts;
  std::set<std::string> several;  // ids of runs in one place
  for (const Layers& place : split_by(layers, [](const RecordedLayer& layer) {
         return fmt::format("{}\n{}\n{}", layer.header->device, layer.header->git_revision,
                            layer.header->git_dirty);
       })) {
    auto runs = split_by(place, [](const RecordedLayer& layer) { return layer.header->run_id; });
    if (std::ranges::all_of(runs, is_sweep)) {
      for (std::size_t i = 0; i < runs.size() && runs.size() > 1; ++i) {
        several.insert(runs[i].front()->header->run_id);
      }
      std::ranges::move(runs, std::back_inserter(parts));
    } else {
      parts.push_back(place);
    }
  }
  std::erase_if(parts, [&](const Layers& part) { return !is_sweep(part); });
  std::vector<const RunHeader*> headers;
  for (const Layers& part : parts) {
    headers.push_back(part.back()->header);
  }
  const auto names = run_names(headers);
  std::vector<Recording> recordings;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string& run = parts[i].front()->header->run_id;
    recordings.push_back({names[i], std::move(parts[i]), several.contains(run) ? run : ""});
  }
  return recordings;
}

/// Place on the axis: the quantity's value, and over skew the workload, too: two may be equally uneven.
using Place = std::pair<double, std::string>;

Place place_of(const RecordedLayer& layer, const Quantity& quantity) {
  return {*quantity.of(layer), quantity.name == "workload" ? layer.what.workload : ""};
}

/// Milliseconds, and the row behind them.
struct LinePoint {
  double y = 0;
  std::vector<FigureFact> facts;
};

/// One line by place; of several points at one place the last was recorded last.
struct Line {
  std::string label;
  std::string look;
  int variant = 0;
  std::map<Place, LinePoint> points;
};

/// Workloads of all recordings by their skew, named below the axis: several lie close together on a scale of
/// numbers. Empty for other quantities.
std::map<Place, std::string> place_names(const std::vector<Recording>& recordings, const Quantity& quantity) {
  std::map<Place, std::string> names;
  for (const Recording& recording : recordings) {
    for (const RecordedLayer* layer : recording.layers) {
      const Place place = place_of(*layer, quantity);
      if (!place.second.empty()) {
        names[place] = fmt::format("{} ({:.2f})", short_workload(place.second), place.first);
      }
    }
  }
  return names;
}

/// The row of a time and its seconds; of an expert stage in two parts those of both.
struct FoundTime {
  const ResultRow* row = nullptr;
  double time_s = 0;
};

std::optional<FoundTime> layer_time(const RecordedSchedule& schedule) {
  const ResultRow* row = schedule.find(Stage::kLayer, "time_s");
  return row != nullptr && row->status == Status::kOk ? std::optional(FoundTime{row, *row->value})
                                                      : std::nullopt;
}

std::optional<FoundTime> expert_time(const RecordedSchedule& schedule) {
  const auto time_s = schedule.experts_time_s();
  if (!time_s) {
    return std::nullopt;
  }
  const auto* const stage = std::ranges::find_if(
      kExpertStages, [&](Stage one) { return schedule.value(one, "time_s").has_value(); });
  return FoundTime{schedule.find(*stage, "time_s"), *time_s};
}

using TimeOf = std::optional<FoundTime> (*)(const RecordedSchedule&);

/// Lines of all recordings, in the order of systems, schedules, recordings.
std::vector<Line> lines_of(const std::vector<Recording>& recordings, const Quantity& quantity,
                           TimeOf time_of) {
  std::vector<std::string> systems;
  for (const Recording& recording : recordings) {
    for (const RecordedLayer* layer : recording.layers) {
      if (std::ranges::find(systems, layer->what.system) == systems.end()) {
        systems.push_back(layer->what.system);
      }
    }
  }
  // System, place of the schedule, schedule, recording.
  std::map<std::tuple<std::size_t, std::size_t, std::string, std::size_t>, Line> lines;
  for (std::size_t r = 0; r < recordings.size(); ++r) {
    for (const RecordedLayer* layer : recordings[r].layers) {
      const auto system =
          static_cast<std::size_t>(std::ranges::find(systems, layer->what.system) - systems.begin());
      for (const RecordedSchedule& schedule : layer->schedules) {
        const auto time = time_of(schedule);
        if (!time) {
          continue;
        }
        Line& line = lines[{system, schedule_order(schedule.name), schedule.name, r}];
        line.look =
            systems.size() > 1 ? fmt::format("{} {}", layer->what.system, schedule.name) : schedule.name;
        line.label = recordings.size() > 1 ? fmt::format("{}, {}", line.look, recordings[r].name) : line.look;
        line.variant = static_cast<int>(r);
        line.points[place_of(*layer, quantity)] = {time->time_s * 1e3,
                                                   row_facts(*time->row, *layer->header, time->time_s)};
      }
    }
  }
  std::vector<Line> result;
  for (auto& [place, line] : lines) {
    result.push_back(std::move(line));
  }
  return result;
}

/// What one figure shows of a sweep: all, or a part where all would be too much.
struct Part {
  std::size_t first_line = 0;
  std::size_t first_name = 0;
};

FigurePanel panel(const std::vector<Line>& lines, const std::map<Place, std::string>& names,
                  const Quantity& quantity, std::string title, const Part& part) {
  FigurePanel result;
  result.title = std::move(title);
  result.x_label = quantity.label;
  result.y_label = "milliseconds (median)";
  result.log_x = quantity.log;
  result.log_y = true;
  std::map<Place, double> places;
  std::size_t index = 0;
  for (const auto& [x, name] : names) {
    if (index >= part.first_name && index < part.first_name + kMaxNames) {
      places[x] = static_cast<double>(result.x_names.size());
      result.x_names.push_back(name);
    }
    ++index;
  }
  for (std::size_t l = part.first_line; l < std::min(lines.size(), part.first_line + kMaxLines); ++l) {
    FigureSeries series;
    series.label = lines[l].label;
    series.look = lines[l].look;
    series.variant = lines[l].variant;
    for (const auto& [x, point] : lines[l].points) {
      const auto place = places.find(x);
      if (names.empty() || place != places.end()) {
        series.x.push_back(names.empty() ? x.first : place->second);
        series.y.push_back(point.y);
        series.facts.push_back(point.facts);
      }
    }
    if (!series.x.empty()) {
      result.series.push_back(std::move(series));
    }
  }
  return result;
}

/// Whether anything changes along the panel's axis.
bool worth_drawing(const FigurePanel& panel) {
  return std::ranges::any_of(panel.series, [](const FigureSeries& series) { return series.x.size() > 1; });
}

/// Figures of one sweep: one, or as many as it takes to keep each readable.
std::vector<Figure> figures_of(const std::vector<Recording>& recordings, const Quantity& quantity,
                               const std::string& fixed) {
  const RecordedLayer& first = *recordings.front().layers.front();
  const std::string kind(to_string(time_source(first)));
  const auto names = place_names(recordings, quantity);
  const auto layer_lines = lines_of(recordings, quantity, layer_time);
  const auto expert_lines = lines_of(recordings, quantity, expert_time);
  const std::size_t most = std::max(layer_lines.size(), expert_lines.size());
  std::vector<Figure> figures;
  for (std::size_t line = 0; line < most; line += kMaxLines) {
    for (std::size_t name = 0; name < std::max<std::size_t>(1, names.size()); name += kMaxNames) {
      Figure& figure = figures.emplace_back();
      figure.title = fixed;
      if (recordings.size() == 1) {
        const RunHeader& header = *first.header;
        figure.title += fmt::format(", on {}, revision {}{}", header.device, header.git_revision.substr(0, 7),
                                    header.git_dirty ? "+" : "");
        figure.title += recordings[0].run.empty() ? "" : fmt::format(", run {}", recordings[0].run);
      }
      const Part part{line, name};
      figure.panels.push_back(panel(layer_lines, names, quantity, kind + " time of the layer", part));
      figure.panels.push_back(panel(expert_lines, names, quantity, kind + " time of the expert stage", part));
      std::erase_if(figure.panels, [](const FigurePanel& one) { return !worth_drawing(one); });
      figure.columns = figure.panels.empty() || figure.panels.front().x_names.size() <= kMaxNames / 2 ? 2 : 1;
    }
  }
  std::erase_if(figures, [](const Figure& figure) { return figure.panels.empty(); });
  for (std::size_t i = 0; i < figures.size() && figures.size() > 1; ++i) {
    figures[i].title += fmt::format(", part {} of {}", i + 1, figures.size());
  }
  return figures;
}

}  // namespace

std::vector<Figure> report_figures(const std::vector<RecordedLayer>& layers, std::size_t limit) {
  struct Candidate {
    std::size_t points = 0;
    std::vector<Figure> figures;
  };
  std::vector<Candidate> candidates;
  const auto add = [&](const std::vector<Recording>& recordings, const Quantity& quantity,
                       const std::string& fixed) {
    std::size_t points = 0;
    for (const Recording& recording : recordings) {
      points = std::max(points, values_of(recording.layers, quantity).size());
    }
    candidates.push_back({points, figures_of(recordings, quantity, fixed)});
  };
  for (const Quantity& quantity : kQuantities) {
    Layers all;
    for (const RecordedLayer& layer : layers) {
      if (has_times(layer) && quantity.of(layer)) {
        all.push_back(&layer);
      }
    }
    for (const Layers& members :
         split_by(all, [&](const RecordedLayer& layer) { return fixed_text(layer, quantity.name); })) {
      const std::string fixed = fixed_text(*members.front(), quantity.name);
      const auto recordings = recordings_of(members, quantity);
      const bool together =
          recordings.size() > 1 && lines_of(recordings, quantity, layer_time).size() <= kMaxLines;
      if (together) {
        add(recordings, quantity, fixed);
        continue;
      }
      for (const Recording& recording : recordings) {
        add({recording}, quantity, fixed);
      }
    }
  }
  std::ranges::stable_sort(candidates, std::ranges::greater(), &Candidate::points);
  std::vector<Figure> figures;
  for (Candidate& candidate : candidates) {
    for (Figure& figure : candidate.figures) {
      if (figures.size() < limit) {
        figures.push_back(std::move(figure));
      }
    }
  }
  return figures;
}

}  // namespace moescope
