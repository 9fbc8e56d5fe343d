#include "profiler/report/html_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "profiler/report/html_layers.hpp"
#include "profiler/report/html_summary.hpp"
#include "profiler/report/recorded_points.hpp"

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
    "img{max-width:100%;height:auto}.note{color:#555}.s{display:inline-block;width:.7em;height:.7em;"
    "margin-right:.4em}nav ol,nav ul{margin:.2rem 0;font-size:.92em}nav ul "
    "ul{columns:3}h3{font-size:1.05rem;margin:1.6rem 0 "
    ".2rem;"
    "overflow-wrap:anywhere}td details table{margin:.3rem 0 .6rem;font-size:.92em}"
    ".sortable th{cursor:pointer}th[aria-sort=ascending]::after{content:' \\25B2'}"
    "th[aria-sort=descending]::after{content:' \\25BC'}input{font:inherit;padding:.1rem .4rem}"
    "@media print{nav,input,label,script{display:none}body{max-width:none;margin:0;font-size:11px}"
    "figure,tr{break-inside:avoid}details:not([open])>*{display:revert}}";

/// Numbers of runs on the page by their ids, from 1 on.
std::map<std::string, std::size_t> run_numbers(std::span<const RecordedRun> runs) {
  std::map<std::string, std::size_t> numbers;
  for (const RecordedRun& run : runs) {
    numbers.try_emplace(run.header.run_id, numbers.size() + 1);
  }
  return numbers;
}

/// One line of what the runs are, the table folded below it: a report of many runs begins with what they
/// found.
std::string runs_table(std::span<const RecordedRun> runs) {
  std::set<std::string> devices;
  std::set<std::string> revisions;
  std::set<std::string> days;
  for (const RecordedRun& run : runs) {
    devices.insert(html_text(run.header.device));
    revisions.insert(html_text(run.header.git_revision.substr(0, 7)));
    days.insert(html_text(run.header.started_utc.substr(0, 10)));
  }
  const auto numbers = run_numbers(runs);
  std::string html = fmt::format("<details{}><summary>{} on {}, built from {}, {}</summary>\n",
                                 numbers.size() <= 4 ? " open" : "",
                                 numbers.size() == 1 ? "1 run" : fmt::format("{} runs", numbers.size()),
                                 fmt::join(devices, "; "), fmt::join(revisions, ", "), fmt::join(days, ", "));
  html +=
      "<table><tr><th></th><th class=t>run</th><th class=t>device</th><th class=t>driver</th><th "
      "class=t>built "
      "from</th><th>rows</th><th class=t>command</th></tr>\n";
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
  return html + "</table></details>\n";
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
  for (std::size_t i = 0; i < figures.size(); ++i) {
    const ReportFigure& figure = figures[i];
    const std::string title = html_text(figure.title);
    // As an image of its own: the ids inside one SVG would meet those of the next.
    const std::string image =
        figure.svg.empty()
            ? fmt::format("<p class=note>no figure: {}</p>", html_text(figure.reason))
            : fmt::format(R"(<img alt="{}" src="data:image/svg+xml;base64,{}">)", title, base64(figure.svg));
    html += fmt::format("<figure id=figure-{0}>{1}<figcaption>{0}. {2}</figcaption></figure>\n", i + 1, image,
                        title);
  }
  return html.empty() ? "<p class=note>Nothing was swept: there is no figure to draw.</p>\n" : html;
}

/// Titles of figures without the words that all have, for a list that can be looked through.
std::vector<std::string> short_titles(const std::vector<ReportFigure>& figures) {
  const auto words_of = [](const std::string& title) {
    std::vector<std::string> words;
    for (std::size_t at = 0; at <= title.size();) {
      const std::size_t end = std::min(title.find(", ", at), title.size());
      words.push_back(title.substr(at, end - at));
      at = end + 2;
    }
    return words;
  };
  std::map<std::string, std::size_t> count;
  for (const ReportFigure& figure : figures) {
    const auto words = words_of(figure.title);
    for (const std::string& word : std::set<std::string>(words.begin(), words.end())) {
      ++count[word];
    }
  }
  std::vector<std::string> titles;
  for (const ReportFigure& figure : figures) {
    std::vector<std::string> words = words_of(figure.title);
    const auto in_all = [&](const std::string& word) { return count[word] == figures.size(); };
    if (!std::ranges::all_of(words, in_all)) {
      std::erase_if(words, in_all);
    }
    titles.push_back(fmt::format("{}", fmt::join(words, ", ")));
  }
  return titles;
}

/// Links to everything below.
std::string contents(bool has_summary, const std::vector<ReportFigure>& figures,
                     const std::vector<HtmlSection>& sections) {
  std::string html = "<nav><h2>Contents</h2><ul>\n";
  html += has_summary ? "<li><a href=\"#summary\">What the rows say</a></li>\n" : "";
  html +=
      "<li><a href=\"#runs\">Runs</a></li>\n"
      "<li><a href=\"#figures\">Figures</a>";
  const auto titles = short_titles(figures);
  for (std::size_t i = 0; i < figures.size(); ++i) {
    html += fmt::format("{}<li><a href=\"#figure-{}\">{}</a></li>\n", i == 0 ? "<ol>\n" : "", i + 1,
                        html_text(titles[i]));
  }
  html += figures.empty() ? "</li>\n" : "</ol></li>\n";
  html += "<li><a href=\"#schedules\">Schedules and their stages</a>";
  for (std::size_t i = 0; i < sections.size(); ++i) {
    html += fmt::format("{}<li><a href=\"#layers-{}\">{}</a></li>\n", i == 0 ? "<ul>\n" : "", i + 1,
                        html_text(sections[i].heading));
  }
  html += sections.empty() ? "</li>\n" : "</ul></li>\n";
  return html + "<li><a href=\"#missing\">What is missing, and why</a></li>\n</ul></nav>\n";
}

std::string sections_html(const std::vector<HtmlSection>& sections) {
  std::string html;
  for (std::size_t i = 0; i < sections.size(); ++i) {
    html +=
        fmt::format("<h3 id=layers-{}>{}</h3>\n{}", i + 1, html_text(sections[i].heading), sections[i].body);
  }
  return html;
}

}  // namespace

std::string html_report(const std::string& title, std::span<const RecordedRun> runs,
                        const std::vector<ReportFigure>& figures) {
  const auto layers = recorded_layers(runs);
  const auto sections = layer_sections(layers, run_numbers(runs));
  const std::string summary = html_summary(layers);
  return fmt::format(
      "<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{0}</title><style>{1}</style></head>"
      "<body>\n<h1>{0}</h1>\n{7}{2}<h2 id=runs>Runs</h2>\n{3}<h2 id=figures>Figures</h2>\n{4}"
      "<h2 id=schedules>Schedules and their stages</h2>\n"
      "<p class=note>Times are measured: median over alternating samples, spread (max - min) / median; "
      "on a backend &quot;sim: ...&quot; they and the bytes are modelled. Speed-up over token_centric, round "
      "by round. Bytes are analytic: what the expert stage loads and stores; the floor is active experts, "
      "tokens and output once; those of a stage were counted. Errors are relative, against the fp64 "
      "oracle.</p>\n"
      "{5}<h2 id=missing>What is missing, and why</h2>\n{6}{8}</body></html>\n",
      html_text(title), kStyle, contents(!summary.empty(), figures, sections), runs_table(runs),
      figures_html(figures), sections_html(sections), missing_list(runs),
      summary.empty() ? "" : fmt::format("<h2 id=summary>What the rows say</h2>\n{}", summary),
      html_table_script());
}

}  // namespace moescope
