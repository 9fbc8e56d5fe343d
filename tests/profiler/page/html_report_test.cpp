#include "profiler/page/html_report.hpp"

#include <gtest/gtest.h>

#include <string>

#include "tests/support/sweep_rows.hpp"

namespace moescope {
namespace {

using test::make_row;
using test::make_runs;

/// A name that ends a tag, an attribute or a terminal's patience.
constexpr const char* kHostile = "\"'><script>alert(1)</script>&amp;`x`\x1b[2J\xe9";

/// Stands for the real one, which draws in a browser (scripts/browser.sh).
const PlottingLibrary kLibrary{.script = "/*library*/", .version = "3.9.1", .reason = ""};

std::size_t count(const std::string& text, const std::string& word) {
  std::size_t found = 0;
  for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    ++found;
  }
  return found;
}

TEST(HtmlReport, ShowsHostileNamesFromEveryField) {
  auto runs = make_runs();
  RunHeader& header = runs[0].header;
  for (std::string* text : {&header.run_id, &header.command_line, &header.git_revision, &header.version,
                            &header.build, &header.device, &header.driver, &header.started_utc}) {
    *text = kHostile;
  }
  for (ResultRow& row : runs[0].rows) {
    for (std::string* text : {&row.system, &row.backend, &row.dtype, &row.activation, &row.gates,
                              &row.workload, &row.l2_state, &row.unit, &row.repro, &row.reason}) {
      *text = kHostile;
    }
    row.schedule = row.schedule == "staircase" ? kHostile : row.schedule;
  }
  const ReportPage page = html_report(kHostile, runs, kLibrary);
  const std::string& html = page.html;
  ASSERT_GT(page.figures, 0U);
  EXPECT_EQ(count(html, "<script"), 3U) << "data, library and the page's own";
  EXPECT_EQ(count(html, "</script"), 3U);
  EXPECT_EQ(html.find("alert(1)</script>"), std::string::npos);
  EXPECT_EQ(html.substr(0, html.find("id=figure-data")).find("\"'>"), std::string::npos);
  EXPECT_EQ(html.find('\x1b'), std::string::npos);
  EXPECT_EQ(html.find('\xe9'), std::string::npos);
  const std::string shown = "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;`x`\\x1b[2J\\xe9";
  for (const char* before : {"<td class=t>", "<b>", "<h1>", "<code>", "<span class=s"}) {
    EXPECT_NE(html.find(before), std::string::npos) << before;
  }
  for (const char* before : {"<td class=t>", "<b>", "<h1>", "<code>", "on ", "L2 ", "gates "}) {
    EXPECT_NE(html.find(before + shown), std::string::npos) << before << "the name";
  }
}

TEST(HtmlReport, LeadsToEverythingAndShowsStagesAndRuns) {
  auto runs = make_runs();
  runs.push_back(runs.front());
  runs[1].header.run_id = "another";
  ResultRow counted = make_row("staircase", Stage::kExpertScores, "hbm_read_bytes", 3 * 1024 * 1024, 16);
  runs[1].rows.push_back(counted);
  const std::string html = html_report("two", runs, kLibrary).html;
  for (std::size_t at = html.find("href=\"#"); at != std::string::npos; at = html.find("href=\"#", at + 1)) {
    const auto begin = at + 7;
    const std::string id = html.substr(begin, html.find('"', begin) - begin);
    const auto target = html.find(" id=" + id);
    EXPECT_NE(target, std::string::npos) << id;
    EXPECT_EQ(html.find(" id=" + id + ">", target + 1), std::string::npos) << id << " is one place";
  }
  for (const char* text : {"href=\"#figure-1\"", "href=\"#run-2\"", "href=\"#layers-1\"", "expert_scores",
                           "<th scope=col>HBM read</th>", "3.00 MiB", "of the layer", "background:#009E73"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
}

TEST(HtmlReport, SaysOfLayersWithoutTimesOnlyHowFarOffTheyWere) {
  RecordedRun run;
  run.rows.push_back(make_row("staircase", Stage::kLayer, "relative_error", 2.5e-3, 16));
  const std::vector<RecordedRun> runs = {run};
  const std::string html = html_report("checks", runs, kLibrary).html;
  EXPECT_NE(html.find("not timed: 1; their largest error: 2.5e-03"), std::string::npos);
  EXPECT_EQ(html.find("<td class=t>staircase"), std::string::npos);
}

TEST(HtmlReport, BeginsWithWhatTheRowsSay) {
  auto runs = make_runs();
  for (ResultRow& row : runs.front().rows) {
    if (row.schedule == "staircase" && row.metric == "time_s" && row.num_tokens > 16) {
      *row.value /= 2;  // at 16 tokens both take as long
    }
  }
  const std::string html = html_report("r", runs, kLibrary).html;
  const auto summary = html.find("<h2 id=summary>");
  ASSERT_NE(summary, std::string::npos);
  EXPECT_LT(summary, html.find("<nav"));
  for (const char* text :
       {"<b>a &lt;machine&gt;: the fastest of 3 layers: staircase on 2, token_centric on 1.</b>",
        "2.00x (median; at most 2.00x)", "On 1 of them the lead is within the noise",
        "<summary>every layer: 3</summary>", "<a href=\"#fastest\">"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
  const std::string nothing = html_report("r", {}, kLibrary).html;
  EXPECT_EQ(nothing.find("id=summary"), std::string::npos) << "nothing to say";
  EXPECT_EQ(nothing.find("#fastest"), std::string::npos) << "no link to what is not there";
}

TEST(HtmlReport, HasEverythingInsideAndNothingFromElsewhere) {
  const auto runs = make_runs();
  const ReportPage page = html_report("a & b", runs, kLibrary);
  const std::string& html = page.html;
  EXPECT_EQ(page.figures, 1U);
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  EXPECT_TRUE(html.ends_with("</html>\n"));
  for (const char* text :
       {"<title>a &amp; b</title>", "a &lt;machine&gt;", "moescope sweep a&amp;b.json", "token_centric",
        "128 ms", "2.0e-03", "2.0x", "failed: no &lt;memory&gt;", "<code>moescope compare -L 32</code>",
        "<script>/*library*/</script>", "Chart.js 3.9.1", "unevenness 1.25", "data-value=\"0.128\"",
        "default-src 'none'", "<noscript>"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
  for (const char* text : {"http:", "https:", "<script src", "<link", "src=\"/", "<machine>", "url("}) {
    EXPECT_EQ(html.find(text), std::string::npos) << text;
  }
}

TEST(HtmlReport, WithoutALibrarySaysSoAndKeepsItsTables) {
  const auto runs = make_runs();
  const ReportPage page =
      html_report("r", runs, {.script = "", .version = "", .reason = "no <library> here; get one"});
  EXPECT_EQ(page.figures, 0U);
  for (const char* text : {"No figures: no &lt;library&gt; here; get one", "class=no-figures",
                           "<td data-value=\"0.128\">128 ms</td>"}) {
    EXPECT_NE(page.html.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(page.html.find("figure-data\">"), std::string::npos);
  EXPECT_EQ(count(page.html, "<script"), 1U) << "tables still sort";
}

TEST(HtmlReport, ShowsWhatADiffSays) {
  const auto runs = make_runs();
  auto after = runs;
  for (ResultRow& row : after[0].rows) {
    if (row.metric == "time_s" && row.value && row.schedule == "staircase") {
      *row.value *= 1.5;
    }
  }
  const TimeRules rules{.threshold = 0.05, .layers_alone = true};
  const ReportBaseline baseline{"before <b>", "after", 0.05, compare_times(runs, after, rules)};
  const ReportPage page = html_report("r", after, kLibrary, &baseline);
  const std::string& html = page.html;
  for (const char* text : {"<b>B is slower beyond noise at 3 of 6 points: staircase on zipf:1 (1.50x), "
                           "staircase on zipf:1 (1.50x), "
                           "staircase on zipf:1 (1.50x)</b>",
                           "A: before &lt;b&gt;<br>B: after", "<td class=\"t bad\">SLOW</td>", "id=baseline",
                           "time of B over time of A"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(count(html, ">SLOW</td>"), 3U);
  EXPECT_EQ(count(html, ">SAME</td>"), 3U) << "the page has what is the same, too";
  EXPECT_EQ(page.figures, 2U);
  EXPECT_LT(html.find("B is slower beyond noise"), html.find("<nav"));
}

TEST(HtmlReport, NamesNoWinnerWithinTheNoise) {
  const auto runs = make_runs();  // both schedules take as long, at a spread of a tenth
  const std::string html = html_report("r", runs, kLibrary).html;
  EXPECT_NE(html.find("<b>a &lt;machine&gt;: no schedule is the fastest beyond the noise on any layer.</b>"),
            std::string::npos);
  EXPECT_NE(html.find("1.00x (median; at most 1.00x), on each of 3 layers within the spread"),
            std::string::npos);
  EXPECT_EQ(html.find("the fastest of 3 layers"), std::string::npos);
}

TEST(HtmlReport, CallsNoModelledTimeMeasured) {
  auto runs = make_runs();
  const std::string measured = html_report("r", runs, kLibrary).html;
  EXPECT_NE(measured.find("Times are measured: median"), std::string::npos);
  EXPECT_EQ(measured.find("odelled"), std::string::npos);
  for (ResultRow& row : runs[0].rows) {
    if (row.schedule == "staircase" && row.metric == "time_s") {
      row.source = Source::kModelled;
      *row.value /= 4;
    }
  }
  const std::string some = html_report("r", runs, kLibrary).html;
  EXPECT_NE(some.find("staircase (modelled)"), std::string::npos);
  EXPECT_NE(some.find("those of a schedule that says (modelled) are a model's"), std::string::npos);
  EXPECT_EQ(some.find("staircase on 3"), std::string::npos) << "a model wins no race against a clock";
  for (ResultRow& row : runs[0].rows) {
    row.source = row.metric == "time_s" ? Source::kModelled : row.source;
  }
  const std::string all = html_report("r", runs, kLibrary).html;
  EXPECT_EQ(all.find("Times are measured"), std::string::npos);
  EXPECT_NE(all.find("nothing here was measured"), std::string::npos);
  EXPECT_NE(all.find("cpu (modelled): the fastest of 3 layers"), std::string::npos);
}

}  // namespace
}  // namespace moescope
