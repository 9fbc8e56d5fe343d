#include "profiler/page/html_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <vector>

#include "profiler/page/html_contents.hpp"
#include "profiler/page/html_layers.hpp"
#include "profiler/page/html_summary.hpp"
#include "profiler/page/page_figures.hpp"
#include "profiler/report/recorded_points.hpp"
#include "profiler/report/report_figures.hpp"
#include "profiler/report/roofline.hpp"
#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

/// Of the page itself; they stand in it as they are.
constexpr std::string_view kStyle =
#include "page.css.inc"
    ;
constexpr std::string_view kScript =
#include "page.js.inc"
    ;

/// More figures of sweeps than this nobody looks at; the tables have everything.
constexpr std::size_t kMaxFigures = 24;

/// Numbers of runs on the page by their ids, from 1 on.
std::map<std::string, std::size_t> run_numbers(std::span<const RecordedRun> runs) {
  std::map<std::string, std::size_t> numbers;
  for (const RecordedRun& run : runs) {
    numbers.try_emplace(run.header.run_id, numbers.size() + 1);
  }
  return numbers;
}

/// "103 runs on DEVICES, built from REVISIONS, DAYS".
std::string runs_line(std::span<const RecordedRun> runs) {
  std::set<std::string> devices;
  std::set<std::string> revisions;
  std::set<std::string> days;
  for (const RecordedRun& run : runs) {
    devices.insert(html_text(run.header.device));
    revisions.insert(html_text(run.header.git_revision.substr(0, 7)));
    days.insert(html_text(run.header.started_utc.substr(0, 10)));
  }
  const std::size_t count = run_numbers(runs).size();
  const auto listed = [](const std::set<std::string>& all, const char* between, const char* many) {
    constexpr std::size_t kMost = 4;
    return all.size() <= kMost ? fmt::format("{}", fmt::join(all, between))
                               : fmt::format("{} {}", all.size(), many);
  };
  const std::string when =
      days.size() < 2 ? listed(days, ", ", "") : fmt::format("{} to {}", *days.begin(), *days.rbegin());
  return fmt::format("<p class=note>{} on {}, built from {}, {}. <a href=\"#runs\">Which runs</a></p>\n",
                     count == 1 ? "1 run" : fmt::format("{} runs", count), listed(devices, "; ", "devices"),
                     listed(revisions, ", ", "revisions"), when);
}

std::string runs_table(std::span<const RecordedRun> runs) {
  const auto numbers = run_numbers(runs);
  std::string html =
      "<table class=sortable><thead><tr><th scope=col>no.</th><th scope=col class=t>run</th><th scope=col "
      "class=t>device</th><th scope=col class=t>driver</th><th scope=col class=t>built from</th><th "
      "scope=col>rows</th><th scope=col class=t>command</th></tr></thead>\n<tbody>\n";
  std::set<std::string> seen;
  for (const RecordedRun& run : runs) {
    const RunHeader& header = run.header;
    const std::size_t number = numbers.at(header.run_id);
    // A run that was continued, or given twice, has several entries and one place to link to.
    const std::string id = seen.insert(header.run_id).second ? fmt::format(" id=run-{}", number) : "";
    html += fmt::format(
        "<tr{}><td>{}</td><td class=t>{}</td><td class=t>{}</td><td class=t>{}</td><td "
        "class=t>{}{}<br>{}</td>"
        "<td>{}</td><td class=t><code>{}</code></td></tr>\n",
        id, number, html_text(header.run_id), html_text(header.device), html_text(header.driver),
        html_text(header.git_revision.substr(0, 12)), header.git_dirty ? ", with changes" : "",
        html_text(header.build), run.rows.size(), html_text(header.command_line));
  }
  return html + "</tbody></table>\n";
}

std::string missing_list(std::span<const RecordedRun> runs) {
  std::set<std::string> lines;
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      if (row.status != Status::kOk) {
        lines.insert(fmt::format("<li>{} {}: {} ({}, {})</li>\n", html_text(row.schedule),
                                 html_text(row.metric), html_text(row.reason), to_string(row.status),
                                 html_text(row.workload)));
      }
    }
  }
  return lines.empty() ? "<p>Nothing.</p>\n" : fmt::format("<ul>\n{}</ul>\n", fmt::join(lines, ""));
}

/// Lines of text as paragraphs, the first one stressed.
std::string paragraphs(const std::string& text) {
  std::string html;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = html_text(text.substr(at, end - at));
    html += at == 0 ? fmt::format("<p><b>{}</b></p>\n", line) : fmt::format("<p>{}</p>\n", line);
    at = end + 1;
  }
  return html;
}

constexpr const char* kBefore = "A";
constexpr const char* kAfter = "B";

/// What `moescope diff` says.
std::string baseline_answer(const ReportBaseline& baseline) {
  return paragraphs(regression_conclusion(baseline.report, {kBefore, kAfter}, baseline.threshold)) +
         fmt::format("<p class=note>A: {}<br>B: {}</p>\n", html_text(baseline.before),
                     html_text(baseline.after));
}

/// Figure and table of every point, those that need a look first.
std::string baseline_html(const ReportBaseline& baseline, PageFigures& figures) {
  const SideNames names{kBefore, kAfter};
  const Figure figure = regression_figure(baseline.report, names, baseline.threshold);
  const std::string html = figure.panels.empty() ? "" : figures.add(figure.title, figure);
  return html + "<div class=wide>" + regression_table(baseline.report, true).html(true) + "</div>\n";
}

std::string sweeps_html(const std::vector<RecordedLayer>& layers, PageFigures& figures) {
  std::string html;
  for (const Figure& figure : report_figures(layers, kMaxFigures)) {
    html += figures.add(fmt::format("time over {}: {}", figure.panels.front().x_label, figure.title), figure);
  }
  return html.empty() ? "<p class=note>Nothing was swept: there is no figure to draw.</p>\n" : html;
}

/// A figure of two panels and a table per layer: where each stage stands under the measured roofs.
std::string rooflines_html(std::span<const Roofline> rooflines, PageFigures& figures) {
  std::string html;
  for (const Roofline& roofline : rooflines) {
    const Figure all = roofline_figure(roofline);
    html += fmt::format("<h3>{}</h3>\n<p class=note>{} {}</p>\n", html_text(roofline.ceilings.device),
                        html_text(all.title), html_text(roofline_legend(roofline)));
    const auto tables = roofline_tables(roofline);
    for (std::size_t p = 0; p + 1 < all.panels.size(); p += 2) {
      Figure pair = all;
      pair.panels = {all.panels[p], all.panels[p + 1]};
      const std::string label = pair.panels[0].title.substr(pair.panels[0].title.find(' ') + 1);
      pair.panels[0].title = "HBM";
      pair.panels[1].title = "L2";
      html += figures.add("roofline: " + label, pair);
    }
    for (const RooflineTable& layer : tables) {
      html += fmt::format("<details><summary>stages of {}</summary>\n{}</details>\n", html_text(layer.label),
                          layer.table.html());
    }
  }
  return html;
}

std::string sections_html(const std::vector<HtmlSection>& sections) {
  // A page of many sections is looked through by their names.
  constexpr std::size_t kMostOpen = 4;
  std::string html;
  for (std::size_t i = 0; i < sections.size(); ++i) {
    html += fmt::format("<details id=layers-{}{}><summary><h3>{}</h3></summary>\n{}</details>\n", i + 1,
                        sections.size() <= kMostOpen ? " open" : "", html_text(sections[i].heading),
                        sections[i].body);
  }
  return html;
}

/// What the rows' times are: measured, modelled, or some of each.
std::string times_legend(std::span<const RecordedRun> runs) {
  bool measured = false;
  bool modelled = false;
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      const bool timed = row.metric == "time_s" && row.status == Status::kOk;
      measured = measured || (timed && row.source == Source::kMeasured);
      modelled = modelled || (timed && row.source == Source::kModelled);
    }
  }
  if (!measured && modelled) {
    return "<p class=note>Times and bytes of stages are modelled, and nothing here was measured. ";
  }
  return fmt::format(
      "<p class=note>Times are measured: median over alternating samples, spread (max - min) / median{}. ",
      modelled ? "; those of a schedule that says (modelled) are a model's, and so are its bytes" : "");
}

constexpr std::string_view kLegend =
    "Speed-up over token_centric, round by round. Bytes are analytic: what the expert stage loads and "
    "stores; the floor is active experts, tokens "
    "and output once; those of a stage were counted. Errors are relative, against the fp64 oracle.</p>\n";

/// The figures' data, the library and the page's own script; nothing may be fetched.
std::string scripts(const PageFigures& figures, const PlottingLibrary& library) {
  std::string html = "<footer class=note>Made by moescope.";
  if (library.script.empty()) {
    return html + fmt::format("</footer>\n<script>{}</script>\n", kScript);
  }
  html += fmt::format(" Figures: Chart.js {}, MIT licence.</footer>\n", html_text(library.version));
  return html + fmt::format(
                    "<script type=\"application/json\" id=figure-data>{}</script>\n<script>{}</script>\n"
                    "<script>{}</script>\n",
                    figures.json(), library.script, kScript);
}

}  // namespace

ReportPage html_report(const std::string& title, std::span<const RecordedRun> runs,
                       const PlottingLibrary& library, const ReportBaseline* baseline) {
  const auto layers = recorded_layers(runs);
  PageFigures figures;
  // The answers stand before the contents.
  std::string answers;
  std::vector<PageSection> sections;
  if (baseline != nullptr) {
    answers += baseline_answer(*baseline);
    sections.push_back({"baseline", "What changed, point by point", baseline_html(*baseline, figures), {}});
  }
  HtmlSummary summary = html_summary(layers);
  answers += summary.conclusions;
  if (!answers.empty()) {
    answers = fmt::format("<section>\n<h2 id=summary>What the rows say</h2>\n{}</section>\n", answers);
  }
  if (!summary.details.empty()) {
    sections.push_back({"fastest", "The fastest, by device", std::move(summary.details), {}});
  }
  const std::size_t before_sweeps = figures.count();
  std::string sweeps = sweeps_html(layers, figures);
  sections.push_back({"figures", "Figures", std::move(sweeps), figure_links(figures, before_sweeps)});
  const std::size_t before_rooflines = figures.count();
  if (const auto rooflines = profiled_rooflines(runs, RooflineFlop::kUseful); !rooflines.empty()) {
    std::string html = rooflines_html(rooflines, figures);
    sections.push_back({"rooflines", "Stages against the measured roofs", std::move(html),
                        figure_links(figures, before_rooflines)});
  }
  const auto tables = layer_sections(layers, run_numbers(runs));
  std::vector<PageLink> table_links;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    table_links.push_back({fmt::format("layers-{}", i + 1), tables[i].heading});
  }
  sections.push_back({"schedules", "Schedules and their stages",
                      times_legend(runs) + std::string(kLegend) + sections_html(tables),
                      std::move(table_links)});
  sections.push_back({"missing", "What is missing, and why", missing_list(runs), {}});
  sections.push_back({"runs", "Runs", runs_table(runs), {}});

  std::string body;
  for (const PageSection& section : sections) {
    body += fmt::format("<section>\n<h2 id={}>{}</h2>\n{}</section>\n", section.id,
                        html_text(section.heading), section.html);
  }
  std::string note =
      "<noscript><p class=note>Figures, sorting and filters need JavaScript; the tables below "
      "hold every value.</p></noscript>\n";
  if (library.script.empty() && figures.count() > 0) {
    note +=
        fmt::format("<p class=warning id=no-figures>No figures: {}. The tables below hold every value.</p>\n",
                    html_text(library.reason));
  }
  const std::string name = html_text(title);
  return {
      fmt::format("<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
                  "<meta name=viewport content=\"width=device-width,initial-scale=1\">"
                  "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src "
                  "'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
                  "<title>{0}</title><style>{1}</style></head>\n<body{2}>\n<main>\n<h1>{0}</h1>\n{3}{4}{5}{6}"
                  "{7}{8}</main>\n</body></html>\n",
                  name, kStyle, library.script.empty() ? " class=no-figures" : "", runs_line(runs), answers,
                  note, contents_html(sections), body, scripts(figures, library)),
      library.script.empty() ? 0 : figures.count()};
}

}  // namespace moescope
