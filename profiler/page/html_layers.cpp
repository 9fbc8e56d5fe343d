#include "profiler/page/html_layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/layer/stage.hpp"
#include "core/schedule/schedule_info.hpp"
#include "profiler/report/layer_names.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

/// A cell that shows a number, with the number itself for sorting.
std::string number_cell(const std::optional<double>& value, std::string (*format)(double)) {
  return value ? fmt::format("<td data-value=\"{:.9g}\">{}</td>", *value, format(*value)) : "<td>-</td>";
}

std::string ratio_text(double value) { return fmt::format("{:.2f}x", value); }
std::string floor_text(double value) { return fmt::format("{:.1f}x", value); }
std::string error_text(double value) { return fmt::format("{:.1e}", value); }
std::string flop_text(double value) { return format_engineering(value, "flop"); }

/// The schedule's colour of all figures, its name and what it chose or was set to.
std::string schedule_cell(const RecordedLayer& layer, const RecordedSchedule& schedule) {
  const ScheduleInfo* info = find_schedule_info(schedule.name);
  std::string text =
      info == nullptr ? "" : fmt::format("<span class=s style=\"background:{}\"></span>", info->colour);
  text += html_text(schedule.name);
  const ResultRow* time = schedule.find(Stage::kLayer, "time_s");
  text += time != nullptr && time->source == Source::kModelled ? " (modelled)" : "";
  if (time != nullptr && time->status == Status::kOk && !time->reason.empty()) {
    text += fmt::format(" ({})", html_text(time->reason));
  }
  const auto own = std::ranges::find_if(schedule.rows, [&](const ResultRow* row) {
    return row->group_size && row->group_size != layer.what.group_size;
  });
  return own == schedule.rows.end() ? text : text + fmt::format(", B {}", *(*own)->group_size);
}

std::string schedule_row(const RecordedLayer& layer, const RecordedSchedule& schedule) {
  const ResultRow* time = schedule.find(Stage::kLayer, "time_s");
  const auto floor = layer.common.value(Stage::kExperts, "floor_bytes");
  const auto bytes = schedule.experts_requested_bytes();
  const bool measured = time != nullptr && time->status == Status::kOk;
  std::string html = fmt::format("<tr><td class=t>{}</td>", schedule_cell(layer, schedule));
  if (time != nullptr && !measured) {
    return html + fmt::format("<td class=t colspan=8>{}: {}</td></tr>\n", to_string(time->status),
                              html_text(time->reason));
  }
  html += number_cell(measured ? time->value : std::nullopt, format_seconds);
  html += number_cell(measured ? time->spread : std::nullopt, format_percent);
  html += number_cell(schedule.value(Stage::kLayer, "speed_up_over_token_centric"), ratio_text);
  html += number_cell(schedule.experts_time_s(), format_seconds);
  html += number_cell(schedule.value(Stage::kExperts, "speed_up_over_token_centric"), ratio_text);
  html += number_cell(bytes, format_bytes);
  html +=
      number_cell(bytes && floor && *floor > 0 ? std::optional(*bytes / *floor) : std::nullopt, floor_text);
  html += number_cell(schedule.value(Stage::kLayer, "relative_error"), error_text);
  return html + "</tr>\n";
}

/// The line above a layer's schedules: what it is, by every axis; how skewed; how to measure it again.
std::string layer_row(const RecordedLayer& layer, const std::map<std::string, std::size_t>& run_numbers) {
  const ResultRow& what = layer.what;
  std::vector<std::string> words;
  for (const LayerAxis& axis : layer_axes(layer)) {
    const bool elsewhere =
        axis.name == "workload" || axis.name == "system" || axis.name == "run" || axis.name == "point";
    if (!elsewhere && !axis.text.empty()) {
      words.push_back(html_text(axis.text));
    }
  }
  std::string text = fmt::format("<b>{}</b> {} {}", html_text(what.workload), html_text(what.system),
                                 fmt::join(words, ", "));
  const auto add = [&](const char* label, std::string_view metric) {
    if (const auto value = layer.common.value(Stage::kRouterSelect, metric)) {
      text += fmt::format("; {} {:.3g}", label, *value);
    }
  };
  add("usage", "usage");
  add("unevenness", "unevenness_nats");
  add("max/mean", "max_over_mean");
  add("reuse", "reuse");
  if (const auto number = run_numbers.find(layer.header->run_id);
      run_numbers.size() > 1 && number != run_numbers.end()) {
    text += fmt::format("; <a href=\"#run-{0}\">run {0}</a>", number->second);
  }
  if (!what.repro.empty()) {
    text += fmt::format("<br><code>{}</code>", html_text(what.repro));
  }
  return fmt::format("<tr class=layer><th colspan=9 scope=rowgroup>{}</th></tr>\n", text);
}

/// Whether a time of the layer or of its expert stage was tried, so that it belongs in the table.
bool has_time(const RecordedSchedule& schedule) {
  return schedule.find(Stage::kLayer, "time_s") != nullptr || schedule.experts_time_s();
}

/// What was counted of a stage: measured rows alone, formulas have the same names.
std::optional<double> counted(const RecordedSchedule& schedule, Stage stage,
                              std::initializer_list<std::string_view> metrics) {
  double sum = 0;
  for (const std::string_view metric : metrics) {
    // The newest comes first. Not by a view: clang 14 has none of libstdc++'s.
    const auto row = std::find_if(schedule.rows.rbegin(), schedule.rows.rend(), [&](const ResultRow* one) {
      return one->stage == to_string(stage) && one->metric == metric && one->source == Source::kMeasured &&
             one->status == Status::kOk;
    });
    if (row == schedule.rows.rend()) {
      return std::nullopt;
    }
    sum += *(*row)->value;
  }
  return sum;
}

struct StageColumn {
  const char* title;
  std::vector<std::string_view> metrics;
  std::string (*format)(double);
};

std::optional<double> counted(const RecordedSchedule& schedule, Stage stage, const StageColumn& column) {
  double sum = 0;
  for (const std::string_view metric : column.metrics) {
    const auto value = counted(schedule, stage, {metric});
    if (!value) {
      return std::nullopt;
    }
    sum += *value;
  }
  return sum;
}

const std::vector<StageColumn>& stage_columns() {
  static const std::vector<StageColumn> columns = {
      {"HBM read", {"hbm_read_bytes"}, format_bytes},
      {"HBM written", {"hbm_write_bytes"}, format_bytes},
      {"L2 read", {"l2_read_bytes"}, format_bytes},
      {"L2 written", {"l2_write_bytes"}, format_bytes},
      {"L2 reduced", {"l2_reduction_bytes", "l2_atomic_bytes"}, format_bytes},
      {"tensor pipe", {"tensor_utilisation"}, format_percent},
      {"issue slots", {"issue_utilisation"}, format_percent},
      {"FLOP run", {"tensor_flop", "cuda_core_flop"}, flop_text}};
  return columns;
}

/// Every stage of every schedule: its time, its share of the layer's, and what was counted of it; columns
/// that nobody counted are left out. Empty without a stage beside the layer and its experts.
std::string stages_table(const RecordedLayer& layer) {
  std::vector<const StageColumn*> columns;
  for (const StageColumn& column : stage_columns()) {
    if (std::ranges::any_of(layer.schedules, [&](const RecordedSchedule& schedule) {
          return std::ranges::any_of(
              kStages, [&](Stage stage) { return counted(schedule, stage, column).has_value(); });
        })) {
      columns.push_back(&column);
    }
  }
  std::string rows;
  for (const RecordedSchedule& schedule : layer.schedules) {
    const auto layer_s = schedule.value(Stage::kLayer, "time_s");
    const std::string name = schedule_cell(layer, schedule);
    for (const Stage stage : kStages) {
      const auto time_s = schedule.value(stage, "time_s");
      if (!time_s || stage == Stage::kLayer) {
        continue;
      }
      rows += fmt::format("<tr><td class=t>{}</td><td class=t>{}</td>", name, to_string(stage));
      rows += number_cell(time_s, format_seconds);
      rows += number_cell(layer_s && *layer_s > 0 ? std::optional(*time_s / *layer_s) : std::nullopt,
                          format_percent);
      for (const StageColumn* column : columns) {
        rows += number_cell(counted(schedule, stage, *column), column->format);
      }
      rows += "</tr>\n";
    }
  }
  if (rows.empty()) {
    return {};
  }
  std::string head =
      "<thead><tr><th scope=col class=t>schedule</th><th scope=col class=t>stage</th><th "
      "scope=col>time</th><th "
      "scope=col>of the layer</th>";
  for (const StageColumn* column : columns) {
    head += fmt::format("<th scope=col>{}</th>", column->title);
  }
  return fmt::format(
      "<tr class=stages><td colspan=9 class=t><details{}><summary>stages</summary>\n<table "
      "class=sortable>{}</tr>"
      "</thead>\n<tbody>{}</tbody></table></details></td></tr>\n",
      columns.empty() ? "" : " open", head, rows);
}

/// Everything but where and when: equal for what was recorded several times.
std::string without_source(const RecordedLayer& layer) {
  std::string key;
  for (const LayerAxis& axis : layer_axes(layer)) {
    if (axis.name != "device" && axis.name != "revision" && axis.name != "run" && axis.name != "point") {
      key += fmt::format("{}:{}\n", axis.value.size(), axis.value);
    }
  }
  return key;
}

constexpr std::string_view kHead =
    "<table class=sortable><thead><tr><th scope=col class=t>schedule</th><th scope=col>layer</th><th "
    "scope=col>spread</th><th scope=col>speed-up</th><th scope=col>experts</th><th scope=col>experts' "
    "speed-up</th><th scope=col>requested bytes</th><th scope=col>over floor</th><th "
    "scope=col>error</th></tr></thead>\n";

}  // namespace

std::vector<HtmlSection> layer_sections(const std::vector<RecordedLayer>& layers,
                                        const std::map<std::string, std::size_t>& run_numbers) {
  // Sections, and in them layers that are the same, in order of appearance.
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, std::vector<const RecordedLayer*>>>>>
      all;
  const auto place_of = [](auto& list, const std::string& key) -> auto& {
    const auto found = std::ranges::find(list, key, [](const auto& entry) { return entry.first; });
    return found != list.end() ? found->second
                               : list.emplace_back(key, decltype(list.front().second){}).second;
  };
  std::size_t untimed = 0;
  double worst = 0;
  for (const RecordedLayer& layer : layers) {
    if (std::ranges::none_of(layer.schedules, has_time)) {
      ++untimed;
      for (const RecordedSchedule& schedule : layer.schedules) {
        worst = std::max(worst, schedule.value(Stage::kLayer, "relative_error").value_or(0));
      }
      continue;
    }
    auto& section = place_of(all, fmt::format("{}, {}", layer.what.system, layer.what.workload));
    place_of(section, without_source(layer)).push_back(&layer);
  }
  std::vector<HtmlSection> sections;
  for (const auto& [heading, groups] : all) {
    std::string body(kHead);
    for (const auto& [key, members] : groups) {
      for (const RecordedLayer* layer : members) {
        body += "<tbody>\n" + layer_row(*layer, run_numbers);
        for (const RecordedSchedule& schedule : layer->schedules) {
          body += schedule_row(*layer, schedule);
        }
        body += stages_table(*layer) + "</tbody>\n";
      }
    }
    sections.push_back({heading, body + "</table>\n"});
  }
  if (untimed > 0) {
    sections.push_back({"without times", fmt::format("<p class=note>Layers that were run but not timed: {}; "
                                                     "their largest error: {}.</p>\n",
                                                     untimed, error_text(worst))});
  }
  return sections;
}

}  // namespace moescope
