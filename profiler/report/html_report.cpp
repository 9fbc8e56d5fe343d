#include "profiler/report/html_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "profiler/report/recorded_points.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

constexpr std::string_view kStyle =
    "body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}"
    "table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "th{background:#f4f4f4}td.t,th.t{text-align:left}tr.layer td{background:#eef3fa;text-align:left}"
    "code{font-size:.85em;overflow-wrap:anywhere}summary{cursor:pointer}figure{margin:1rem "
    "0}figcaption{color:#444}"
    "img{max-width:100%;height:auto}.note{color:#555}";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

/// One line of what the runs are, the table folded below it: a report of many runs begins with what they
/// found.
std::string runs_table(std::span<const RecordedRun> runs) {
  std::set<std::string> devices;
  std::set<std::string> revisions;
  std::set<std::string> days;
  for (const RecordedRun& run : runs) {
    devices.insert(escaped(run.header.device));
    revisions.insert(escaped(run.header.git_revision.substr(0, 7)));
    days.insert(escaped(run.header.started_utc.substr(0, 10)));
  }
  std::string html = fmt::format("<details{}><summary>{} on {}, built from {}, {}</summary>\n",
                                 runs.size() <= 4 ? " open" : "",
                                 runs.size() == 1 ? "1 run" : fmt::format("{} runs", runs.size()),
                                 fmt::join(devices, "; "), fmt::join(revisions, ", "), fmt::join(days, ", "));
  html +=
      "<table><tr><th class=t>run</th><th class=t>device</th><th class=t>driver</th><th class=t>built "
      "from</th><th>rows</th><th class=t>command</th></tr>\n";
  for (const RecordedRun& run : runs) {
    const RunHeader& header = run.header;
    html += fmt::format(
        "<tr><td class=t>{}</td><td class=t>{}</td><td class=t>{}</td><td class=t>{}{}<br>{}</td><td>{}</td>"
        "<td class=t><code>{}</code></td></tr>\n",
        escaped(header.run_id), escaped(header.device), escaped(header.driver),
        escaped(header.git_revision.substr(0, 12)), header.git_dirty ? ", with changes" : "",
        escaped(header.build), run.rows.size(), escaped(header.command_line));
  }
  return html + "</table></details>\n";
}

std::string text_or_dash(const std::optional<double>& value, std::string (*format)(double)) {
  return value ? format(*value) : "-";
}

std::string ratio_text(double value) { return fmt::format("{:.2f}x", value); }
std::string error_text(double value) { return fmt::format("{:.1e}", value); }

std::string schedule_row(const RecordedLayer& layer, const RecordedSchedule& schedule) {
  const ResultRow* time = schedule.find(Stage::kLayer, "time_s");
  const auto floor = layer.common.value(Stage::kExperts, "floor_bytes");
  const auto bytes = schedule.experts_requested_bytes();
  const bool measured = time != nullptr && time->status == Status::kOk;
  const std::string name =
      schedule.name + (measured && !time->reason.empty() ? fmt::format(" ({})", time->reason) : "");
  std::string html = fmt::format("<tr><td class=t>{}</td>", escaped(name));
  if (time != nullptr && !measured) {
    return html + fmt::format("<td class=t colspan=8>{}: {}</td></tr>\n", to_string(time->status),
                              escaped(time->reason));
  }
  const auto cell = [&](const std::string& text) { html += fmt::format("<td>{}</td>", text); };
  cell(measured ? format_seconds(*time->value) : "-");
  cell(measured && time->spread ? format_percent(*time->spread) : "-");
  cell(text_or_dash(schedule.value(Stage::kLayer, "speed_up_over_token_centric"), ratio_text));
  cell(text_or_dash(schedule.experts_time_s(), format_seconds));
  cell(text_or_dash(schedule.value(Stage::kExperts, "speed_up_over_token_centric"), ratio_text));
  cell(text_or_dash(bytes, format_bytes));
  cell(bytes && floor && *floor > 0 ? fmt::format("{:.1f}x", *bytes / *floor) : "-");
  cell(text_or_dash(schedule.value(Stage::kLayer, "relative_error"), error_text));
  return html + "</tr>\n";
}

/// The line above a layer's schedules: what it is, how skewed, how to measure it again.
std::string layer_row(const RecordedLayer& layer) {
  const ResultRow& what = layer.what;
  std::string text =
      fmt::format("<b>{}</b> {} {} on {}, L2 {}, seed {}", escaped(what.workload), escaped(what.system),
                  layer.shape_text(), escaped(what.backend), escaped(what.l2_state), what.seed);
  text += what.group_size ? fmt::format(", B {}", *what.group_size) : "";
  text += what.tile_tokens ? fmt::format(", tiles of {} tokens", *what.tile_tokens) : "";
  const auto add = [&](const char* label, std::string_view metric) {
    if (const auto value = layer.common.value(Stage::kRouterSelect, metric)) {
      text += fmt::format("; {} {:.3g}", label, *value);
    }
  };
  add("usage", "usage");
  add("unevenness", "unevenness_nats");
  add("max/mean", "max_over_mean");
  add("reuse", "reuse");
  if (!what.repro.empty()) {
    text += fmt::format("<br><code>{}</code>", escaped(what.repro));
  }
  return fmt::format("<tr class=layer><td colspan=9>{}</td></tr>\n", text);
}

/// Whether a time of the layer or of its expert stage was tried, so that it belongs in the table.
bool has_time(const RecordedSchedule& schedule) {
  return schedule.find(Stage::kLayer, "time_s") != nullptr || schedule.experts_time_s();
}

std::string layers_table(const std::vector<RecordedLayer>& layers) {
  std::string html =
      "<table><tr><th class=t>schedule</th><th>layer</th><th>spread</th><th>speed-up</th><th>experts</th>"
      "<th>speed-up</th><th>requested bytes</th><th>over floor</th><th>error</th></tr>\n";
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
    html += layer_row(layer);
    for (const RecordedSchedule& schedule : layer.schedules) {
      html += schedule_row(layer, schedule);
    }
  }
  html += "</table>\n";
  return untimed == 0 ? html
                      : html + fmt::format(
                                   "<p class=note>Layers that were run but not timed: {}; "
                                   "their largest error: {}.</p>\n",
                                   untimed, error_text(worst));
}

std::string missing_list(std::span<const RecordedRun> runs) {
  std::set<std::string> lines;
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      if (row.status != Status::kOk) {
        lines.insert(fmt::format("<li>{} {}: {} ({}, {})</li>\n", escaped(row.schedule), escaped(row.metric),
                                 escaped(row.reason), to_string(row.status), escaped(row.workload)));
      }
    }
  }
  return lines.empty() ? "<p>Nothing.</p>\n" : fmt::format("<ul>\n{}</ul>\n", fmt::join(lines, ""));
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t b = i; b < i + 3; ++b) {
      group = group << 8U | (b < bytes.size() ? static_cast<unsigned char>(bytes[b]) : 0U);
    }
    for (std::size_t digit = 0; digit < 4; ++digit) {
      out += i + digit > bytes.size() ? '=' : kDigits[group >> (18 - 6 * digit) & 63U];
    }
  }
  return out;
}

std::string figures_html(const std::vector<ReportFigure>& figures) {
  std::string html;
  for (const ReportFigure& figure : figures) {
    // As an image of its own: the ids inside one SVG would meet those of the next.
    const std::string image = figure.svg.empty()
                                  ? fmt::format("<p class=note>no figure: {}</p>", escaped(figure.reason))
                                  : fmt::format(R"(<img alt="{}" src="data:image/svg+xml;base64,{}">)",
                                                escaped(figure.title), base64(figure.svg));
    html += fmt::format("<figure>{}<figcaption>{}</figcaption></figure>\n", image, escaped(figure.title));
  }
  return html.empty() ? "<p class=note>Nothing was swept: there is no figure to draw.</p>\n" : html;
}

}  // namespace

std::string html_report(const std::string& title, std::span<const RecordedRun> runs,
                        const std::vector<ReportFigure>& figures) {
  return fmt::format(
      "<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{0}</title><style>{1}</style></head>"
      "<body>\n<h1>{0}</h1>\n<h2>Runs</h2>\n{2}<h2>Figures</h2>\n{3}<h2>Schedules</h2>\n"
      "<p class=note>Times are measured: median over alternating samples, spread (max - min) / median; "
      "on a backend &quot;sim: ...&quot; they and the bytes are modelled. Speed-up over token_centric, round "
      "by round. Bytes are analytic: what the expert stage loads and stores; the floor is active experts, "
      "tokens and output once. Errors are relative, against the fp64 oracle.</p>\n{4}"
      "<h2>What is missing, and why</h2>\n{5}</body></html>\n",
      escaped(title), kStyle, runs_table(runs), figures_html(figures), layers_table(recorded_layers(runs)),
      missing_list(runs));
}

}  // namespace moescope
