#include "profiler/report/phase_diagram.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <utility>

#include "core/schedule/schedule_info.hpp"
#include "profiler/report/layer_names.hpp"

namespace moescope {
namespace {

/// Points of one K by L.
std::map<std::int64_t, const PhasePoint*> row_of(const PhasePanel& panel, std::int64_t top_k) {
  std::map<std::int64_t, const PhasePoint*> row;
  for (const PhasePoint& point : panel.points) {
    if (point.top_k == top_k) {
      row[point.num_tokens] = &point;
    }
  }
  return row;
}

std::optional<double> time_of(const PhasePoint& point, std::string_view schedule) {
  const auto found = point.layer_s.find(std::string(schedule));
  return found == point.layer_s.end() ? std::nullopt : std::optional(found->second);
}

/// Schedules of all panels, in the order of every legend.
std::vector<std::string> all_schedules(std::span<const PhasePanel> panels) {
  std::set<std::string> names;
  for (const PhasePanel& panel : panels) {
    for (const PhasePoint& point : panel.points) {
      for (const auto& entry : point.layer_s) {
        names.insert(entry.first);
      }
    }
  }
  std::vector<std::string> ordered(names.begin(), names.end());
  std::ranges::stable_sort(ordered, {}, schedule_order);
  return ordered;
}

/// Layers with one key differ in L and K alone, and in where a sweep was interrupted.
std::string key_of(const std::vector<LayerAxis>& axes, Source source) {
  std::string key(to_string(source));
  for (const LayerAxis& axis : axes) {
    if (axis.name != "L" && axis.name != "K" && axis.name != "point" && axis.name != "run") {
      key += fmt::format("\n{}:{}", axis.value.size(), axis.value);
    }
  }
  return key;
}

/// All pairs of `names`.
std::vector<std::pair<std::string, std::string>> pairs_of(const std::vector<std::string>& names) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (std::size_t a = 0; a < names.size(); ++a) {
    for (std::size_t b = a + 1; b < names.size(); ++b) {
      pairs.emplace_back(names[a], names[b]);
    }
  }
  return pairs;
}

/// Whether one of the two is fastest at the recorded points on both sides of `num_tokens`.
bool fastest_around(const PhasePanel& panel, std::int64_t top_k, double num_tokens,
                    const std::pair<std::string, std::string>& pair) {
  const auto row = row_of(panel, top_k);
  const auto above = std::ranges::find_if(
      row, [&](const auto& entry) { return static_cast<double>(entry.first) >= num_tokens; });
  if (above == row.end() || above == row.begin()) {
    return false;
  }
  const auto of_pair = [&](const PhasePoint& point) {
    return point.fastest() == pair.first || point.fastest() == pair.second;
  };
  return of_pair(*above->second) && of_pair(*std::prev(above)->second);
}

FigurePanel draw(const PhasePanel& panel, const std::vector<std::string>& schedules) {
  FigurePanel drawn{panel.title, "tokens L", "experts per token K", true, {}, true};
  for (std::size_t s = 0; s < schedules.size(); ++s) {
    FigureSeries series;
    series.label = schedules[s];
    series.line = false;
    for (const PhasePoint& point : panel.points) {
      if (point.fastest() == schedules[s]) {
        series.x.push_back(static_cast<double>(point.num_tokens));
        series.y.push_back(static_cast<double>(point.top_k));
        series.tags.push_back(fmt::format("{:.1f}", point.margin()));
      }
    }
    drawn.series.push_back(std::move(series));
  }
  const auto pairs = pairs_of(schedules);
  bool labelled = false;  // the points on both sides say which pair it is
  for (const auto& pair : pairs) {
    FigureSeries line;
    line.label = labelled ? "" : "equally fast";
    line.points = false;
    line.look = kReferenceLook;
    for (const std::int64_t top_k : panel.top_ks()) {
      for (const double at : panel.crossovers(top_k, pair.second, pair.first)) {
        if (fastest_around(panel, top_k, std::abs(at), pair)) {
          line.x.push_back(std::abs(at));
          line.y.push_back(static_cast<double>(top_k));
        }
      }
    }
    if (line.x.size() > 1) {
      labelled = true;
      drawn.series.push_back(std::move(line));
    }
  }
  return drawn;
}

/// "token_centric", from L = 210 staircase".
std::string crossover_text(const PhasePanel& panel, std::int64_t top_k,
                           const std::pair<std::string, std::string>& pair) {
  const auto row = row_of(panel, top_k);
  const auto first = time_of(*row.begin()->second, pair.first);
  const auto second = time_of(*row.begin()->second, pair.second);
  if (!first || !second) {
    return "-";
  }
  std::string text = *first <= *second ? pair.first : pair.second;
  for (const double at : panel.crossovers(top_k, pair.second, pair.first)) {
    text += fmt::format(", from {:.0f} {}", std::abs(at), at > 0 ? pair.second : pair.first);
  }
  return text;
}

}  // namespace

const std::string& PhasePoint::fastest() const {
  return std::ranges::min_element(layer_s, {}, [](const auto& entry) { return entry.second; })->first;
}

double PhasePoint::margin() const {
  double best = INFINITY;
  double next = INFINITY;
  for (const auto& entry : layer_s) {
    next = std::min(next, std::max(best, entry.second));
    best = std::min(best, entry.second);
  }
  return next / best;
}

std::vector<std::int64_t> PhasePanel::top_ks() const {
  std::set<std::int64_t> values;
  for (const PhasePoint& point : points) {
    values.insert(point.top_k);
  }
  return {values.begin(), values.end()};
}

std::vector<double> PhasePanel::crossovers(std::int64_t top_k, std::string_view schedule,
                                           std::string_view other) const {
  std::vector<double> found;
  std::optional<std::pair<double, double>> before;  // log L, log of other's time over schedule's
  for (const auto& [num_tokens, point] : row_of(*this, top_k)) {
    const auto mine = time_of(*point, schedule);
    const auto theirs = time_of(*point, other);
    if (!mine || !theirs) {
      continue;
    }
    const std::pair<double, double> now{std::log(static_cast<double>(num_tokens)), std::log(*theirs / *mine)};
    if (before && (before->second < 0) != (now.second < 0)) {
      const double share = before->second / (before->second - now.second);
      const double at = std::exp(before->first + share * (now.first - before->first));
      found.push_back(now.second < 0 ? -at : at);
    }
    before = now;
  }
  return found;
}

std::vector<PhasePanel> phase_panels(const std::vector<RecordedLayer>& layers) {
  std::vector<PhasePanel> panels;
  std::map<std::string, std::size_t> places;
  std::vector<std::vector<LayerAxis>> axes;
  for (const RecordedLayer& layer : layers) {
    const ResultRow& what = layer.what;
    PhasePoint point{what.num_tokens, what.top_k, {}};
    Source source = Source::kMeasured;
    for (const RecordedSchedule& schedule : layer.schedules) {
      const ResultRow* time = schedule.find(Stage::kLayer, "time_s");
      if (time != nullptr && time->status == Status::kOk && time->value.value_or(0) > 0) {
        point.layer_s[schedule.name] = *time->value;
        source = time->source;
      }
    }
    if (what.system != "omnimoe" || point.layer_s.size() < 2) {
      continue;
    }
    const std::string title =
        source == Source::kModelled
            ? fmt::format("{}, {}", what.backend.starts_with("sim: ") ? what.backend.substr(5) : what.backend,
                          what.workload)
            : fmt::format("{} on {}, {}", what.backend, layer.header->device, what.workload);
    auto layer_is = layer_axes(layer);
    const auto [place, is_new] = places.try_emplace(key_of(layer_is, source), panels.size());
    if (is_new) {
      panels.push_back({title, source, {}});
      axes.push_back(std::move(layer_is));
    }
    // Of a point that was recorded twice the last counts.
    auto& points = panels[place->second].points;
    std::erase_if(points, [&](const PhasePoint& other) {
      return other.num_tokens == point.num_tokens && other.top_k == point.top_k;
    });
    points.push_back(std::move(point));
  }
  std::vector<std::string> titles;
  std::ranges::transform(panels, std::back_inserter(titles), &PhasePanel::title);
  tell_apart(titles, axes, {"L", "K", "point", "run"});
  for (std::size_t i = 0; i < panels.size(); ++i) {
    panels[i].title = titles[i];
  }
  std::erase_if(panels, [](const PhasePanel& panel) {
    std::set<std::int64_t> tokens;
    for (const PhasePoint& point : panel.points) {
      tokens.insert(point.num_tokens);
    }
    return tokens.size() < 2 || panel.top_ks().size() < 2;
  });
  return panels;
}

Figure phase_figure(std::span<const PhasePanel> panels) {
  Figure figure;
  const bool modelled =
      std::ranges::all_of(panels, [](const PhasePanel& panel) { return panel.source == Source::kModelled; });
  figure.title =
      fmt::format("The fastest schedule of a layer{}; beside a point: time of the next fastest over its own",
                  modelled ? ", modelled" : "");
  figure.columns = 3;
  const auto schedules = all_schedules(panels);
  for (const PhasePanel& panel : panels) {
    figure.panels.push_back(draw(panel, schedules));
  }
  return figure;
}

Table crossover_table(std::span<const PhasePanel> panels) {
  const auto pairs = pairs_of(all_schedules(panels));
  std::vector<TableColumn> columns = {{"where", Align::kLeft, Need::kAlways, true},
                                      {"K", Align::kRight, Need::kAlways}};
  for (const auto& pair : pairs) {
    columns.push_back(
        {fmt::format("{} or {}: the faster one, by L", pair.first, pair.second), Align::kLeft, Need::kBelow});
  }
  Table table(std::move(columns));
  for (const PhasePanel& panel : panels) {
    table.add_rule();
    for (const std::int64_t top_k : panel.top_ks()) {
      std::vector<std::string> cells = {panel.title, fmt::to_string(top_k)};
      for (const auto& pair : pairs) {
        cells.push_back(crossover_text(panel, top_k, pair));
      }
      table.add_row(std::move(cells));
    }
  }
  return table;
}

}  // namespace moescope
