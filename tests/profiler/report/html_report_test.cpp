#include "profiler/report/html_report.hpp"

#include <gtest/gtest.h>

#include <set>

#include "profiler/report/layer_names.hpp"
#include "profiler/report/recorded_points.hpp"
#include "profiler/report/report_figures.hpp"

namespace moescope {
namespace {

ResultRow make_row(const std::string& schedule, Stage stage, const std::string& metric, double value,
                   std::int64_t num_tokens, const std::string& workload = "zipf:1") {
  ResultRow row;
  row.set_shape(
      LayerShape{.num_tokens = num_tokens, .hidden_size = 8, .grid_rows = 4, .grid_cols = 4, .top_k = 2});
  row.schedule = schedule;
  row.stage = to_string(stage);
  row.backend = "cpu";
  row.workload = workload;
  row.l2_state = schedule == "none" ? "none" : "cold";
  row.metric = metric;
  row.unit = "s";
  row.value = value;
  row.spread = 0.1;
  row.repro = "moescope compare -L " + std::to_string(num_tokens);
  return row;
}

/// Two schedules over three numbers of tokens, one of them failed once.
std::vector<RecordedRun> make_runs() {
  RecordedRun run;
  run.header.run_id = "run";
  run.header.device = "a <machine>";
  run.header.command_line = "moescope sweep a&b.json";
  for (const std::int64_t tokens : {16, 32, 64}) {
    run.rows.push_back(make_row("none", Stage::kRouterSelect, "unevenness_nats", 1.25, tokens));
    run.rows.push_back(make_row("none", Stage::kExperts, "floor_bytes", 1000, tokens));
    for (const char* schedule : {"token_centric", "staircase"}) {
      const double time = static_cast<double>(tokens) * 1e-3;
      run.rows.push_back(make_row(schedule, Stage::kLayer, "time_s", 2 * time, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExpertScores, "time_s", time, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExpertCombine, "time_s", time / 2, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExperts, "l2_read_bytes", 1500, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExperts, "l2_write_bytes", 500, tokens));
      run.rows.push_back(make_row(schedule, Stage::kLayer, "relative_error", 2e-3, tokens));
    }
  }
  ResultRow failed = make_row("dense_masked", Stage::kLayer, "time_s", 1, 64);
  failed.value.reset();
  failed.spread.reset();
  failed.status = Status::kFailed;
  failed.reason = "no <memory>";
  run.rows.push_back(failed);
  return {run};
}

TEST(RecordedLayers, GroupsRowsThatBelongSideBySide) {
  const auto runs = make_runs();
  const auto layers = recorded_layers(runs);
  ASSERT_EQ(layers.size(), 3U);
  EXPECT_EQ(layers[1].what.num_tokens, 32);
  EXPECT_EQ(layers[1].what.l2_state, "cold");
  ASSERT_EQ(layers[1].schedules.size(), 2U);
  EXPECT_EQ(layers[1].schedules[0].name, "token_centric");
  EXPECT_EQ(layers[1].common.value(Stage::kExperts, "floor_bytes"), 1000);
  EXPECT_DOUBLE_EQ(*layers[1].schedules[0].experts_time_s(), 0.048) << "scores and combine";
  EXPECT_EQ(layers[1].schedules[0].experts_requested_bytes(), 2000);
  EXPECT_EQ(layers[1].shape_text(), "L32 d8 N4x4 K2 shared 0, bf16");
  ASSERT_EQ(layers[2].schedules.size(), 3U);
  EXPECT_EQ(layers[2].schedules[2].value(Stage::kLayer, "time_s"), std::nullopt);
}

TEST(RecordedLayers, KeepsPointsOfASweepApart) {
  auto runs = make_runs();
  for (ResultRow& row : runs[0].rows) {
    row.point = row.num_tokens == 16 ? "a" : "b";
    row.num_tokens = 16;
  }
  EXPECT_EQ(recorded_layers(runs).size(), 2U);
}

TEST(ReportFigures, DrawsWhatWasSweptAndNothingElse) {
  const auto runs = make_runs();
  const auto figures = report_figures(recorded_layers(runs), 10);
  ASSERT_EQ(figures.size(), 1U);
  ASSERT_EQ(figures[0].panels.size(), 2U);
  const FigurePanel& layer = figures[0].panels[0];
  EXPECT_EQ(layer.x_label, "tokens L");
  EXPECT_TRUE(layer.log_x);
  ASSERT_EQ(layer.series.size(), 2U);
  EXPECT_EQ(layer.series[0].label, "token_centric") << "in the order of the table of schedules";
  EXPECT_EQ(layer.series[0].x, (std::vector<double>{16, 32, 64}));
  EXPECT_EQ(layer.series[0].y, (std::vector<double>{32, 64, 128})) << layer.y_label;
  EXPECT_EQ(layer.series[1].look, "staircase") << "a schedule has one colour in all figures";
  EXPECT_EQ(figures[0].title.find("L 16"), std::string::npos) << figures[0].title;
  EXPECT_NE(figures[0].title.find("d 8, N 16 (grid 4x4), K 2"), std::string::npos) << figures[0].title;
  EXPECT_NE(figures[0].title.find("silu, gates softmax"), std::string::npos) << figures[0].title;
  EXPECT_TRUE(report_figures(recorded_layers(runs), 0).empty());
}

TEST(ReportFigures, PutsWorkloadsOverTheirSkew) {
  RecordedRun run;
  for (const auto& [workload, unevenness] :
       {std::pair("snapshot:some/where/layer_2.safetensors", 3.0), std::pair("uniform", 0.1)}) {
    run.rows.push_back(make_row("none", Stage::kRouterSelect, "unevenness_nats", unevenness, 16, workload));
    run.rows.push_back(make_row("staircase", Stage::kLayer, "time_s", unevenness, 16, workload));
  }
  const std::vector<RecordedRun> runs = {run};
  const auto figures = report_figures(recorded_layers(runs), 10);
  ASSERT_EQ(figures.size(), 1U);
  const FigureSeries& series = figures[0].panels[0].series.at(0);
  EXPECT_EQ(series.x, (std::vector<double>{0, 1}));
  EXPECT_EQ(series.y, (std::vector<double>{100, 3000}));
  EXPECT_EQ(figures[0].panels[0].x_names, (std::vector<std::string>{"uniform (0.10)", "layer_2 (3.00)"}));
  EXPECT_EQ(figures[0].panels.size(), 1U) << "no time of the expert stage: no panel of it";
}

TEST(ReportFigures, KeepsRevisionsApart) {
  std::vector<RecordedRun> runs;
  for (const std::int64_t tokens : {16, 32}) {
    RecordedRun& run = runs.emplace_back();
    run.header.git_revision = tokens == 16 ? "0123456789" : "abcdef0123";
    run.rows.push_back(make_row("staircase", Stage::kLayer, "time_s", 1, tokens));
  }
  EXPECT_TRUE(report_figures(recorded_layers(runs), 10).empty());
  runs[1].header.git_revision = runs[0].header.git_revision;
  ASSERT_EQ(report_figures(recorded_layers(runs), 10).size(), 1U);
  EXPECT_NE(report_figures(recorded_layers(runs), 10)[0].title.find("revision 0123456"), std::string::npos);
}

TEST(RecordedLayers, AreApartWhereAnyAxisDiffers) {
  const auto layers_with = [](const auto& change) {
    RecordedRun run;
    run.rows.push_back(make_row("staircase", Stage::kLayer, "time_s", 1, 16));
    run.rows.push_back(make_row("staircase", Stage::kLayer, "time_s", 2, 16));
    change(run.rows.back());
    const std::vector<RecordedRun> runs = {run};
    const auto layers = recorded_layers(runs);
    const auto names = layer_names(layers);
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), layers.size()) << names.front();
    return layers.size();
  };
  EXPECT_EQ(layers_with([](ResultRow&) {}), 1U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.system = "peer"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.backend = "cuda"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.hidden_size = 9; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.grid_rows = 8, row.grid_cols = 2; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.shared_size = 64; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.dtype = "fp32"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.activation = "gelu"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.gates = "probability"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.workload = "zipf:2"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.seed = 1; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.l2_state = "warm"; }), 2U);
  EXPECT_EQ(layers_with([](ResultRow& row) { row.point = "p2"; }), 2U);
  // Whatever field of a point it is: one schedule with two values is two layers, but for ranks of one run.
  for_each_field(Point(), [](const PointField& field, const auto&) {
    const std::string_view key = field.key;
    RecordedRun run;
    for (const char* value : {"8", "32"}) {
      ResultRow& row = run.rows.emplace_back(make_row("staircase", Stage::kLayer, "time_s", 1, 16));
      for_each_field(static_cast<Point&>(row), [&](const PointField& other, auto& member) {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(member)>, std::string>) {
          member = other.key == key ? value : member;
        } else {
          member = other.key == key ? std::stoi(value) : member;
        }
      });
    }
    const std::vector<RecordedRun> runs = {run};
    EXPECT_EQ(recorded_layers(runs).size(), key == "schedule" || key == "rank" ? 1U : 2U) << key;
  });
  const auto with_sizes = [](ResultRow& first, ResultRow& second) {
    first.group_size = 8;
    second.group_size = 32;
  };
  RecordedRun run;
  run.rows.push_back(make_row("expert_centric", Stage::kLayer, "time_s", 1, 16));
  run.rows.push_back(make_row("expert_centric", Stage::kLayer, "time_s", 2, 16));
  run.rows.push_back(make_row("token_centric", Stage::kLayer, "time_s", 3, 16));
  run.rows.push_back(make_row("none", Stage::kExperts, "floor_bytes", 1000, 16));
  with_sizes(run.rows[0], run.rows[1]);
  std::vector<RecordedRun> runs = {run};
  auto layers = recorded_layers(runs);
  ASSERT_EQ(layers.size(), 2U);
  for (const RecordedLayer& layer : layers) {
    EXPECT_EQ(layer.what.l2_state, "cold");
    ASSERT_EQ(layer.schedules.size(), 2U) << "what has no group size belongs to both";
    EXPECT_EQ(layer.schedules[0].rows.size(), 1U);
    EXPECT_EQ(layer.common.value(Stage::kExperts, "floor_bytes"), 1000);
  }
  EXPECT_EQ(layers[0].what.group_size, 8);
  EXPECT_EQ(layers[1].what.group_size, 32);
  EXPECT_NE(layer_names(layers)[1].find("B 32"), std::string::npos) << layer_names(layers)[1];
  // Schedules that each have a size of their own stand side by side.
  runs[0].rows[1].schedule = "tuned";
  layers = recorded_layers(runs);
  ASSERT_EQ(layers.size(), 1U);
  EXPECT_EQ(layers[0].what.group_size, 8) << "not what tuned chose";
  // Two runs of one layer.
  runs = {run, run};
  runs[0].header.run_id = "first";
  runs[1].header.run_id = "second";
  layers = recorded_layers(runs);
  EXPECT_EQ(layers.size(), 4U);
  EXPECT_NE(layer_names(layers)[3].find("run second"), std::string::npos) << layer_names(layers)[3];
}

TEST(ReportFigures, PutsRunsSideBySideEachNamed) {
  auto runs = make_runs();
  runs.push_back(runs.front());
  runs[0].header.git_revision = "0123456789";
  runs[1].header.git_revision = "abcdef0123";
  runs[1].header.run_id = "another";
  const auto figures = report_figures(recorded_layers(runs), 10);
  ASSERT_EQ(figures.size(), 1U);
  std::set<std::string> labels;
  for (const FigureSeries& series : figures[0].panels[0].series) {
    EXPECT_TRUE(labels.insert(series.label).second) << series.label;
    EXPECT_EQ(series.variant, series.label.find("abcdef0") != std::string::npos ? 1 : 0) << series.label;
    EXPECT_TRUE(series.look == "staircase" || series.look == "token_centric") << series.look;
  }
  EXPECT_EQ(labels.size(), 4U);
  EXPECT_TRUE(labels.contains("staircase, revision 0123456+")) << *labels.begin();
}

TEST(ReportFigures, NamesNoRunThatHasNothingToDraw) {
  auto runs = make_runs();
  runs.push_back(runs.front());  // as a check records: errors, no times
  runs[1].header.device = "elsewhere";
  std::erase_if(runs[1].rows, [](const ResultRow& row) { return row.metric == "time_s"; });
  const auto figures = report_figures(recorded_layers(runs), 10);
  ASSERT_EQ(figures.size(), 1U);
  EXPECT_NE(figures[0].title.find("on a <machine>"), std::string::npos) << figures[0].title;
  EXPECT_EQ(figures[0].panels[0].series[0].label, figures[0].panels[0].series[0].look);
}

TEST(ReportFigures, KeepsEquallyUnevenWorkloadsApartAndSplitsMany) {
  RecordedRun run;
  for (int i = 0; i < 40; ++i) {
    const std::string workload = "zipf:" + std::to_string(i);
    run.rows.push_back(
        make_row("none", Stage::kRouterSelect, "unevenness_nats", i < 2 ? 0.0 : i, 16, workload));
    run.rows.push_back(make_row("staircase", Stage::kLayer, "time_s", 1 + i, 16, workload));
  }
  const std::vector<RecordedRun> runs = {run};
  const auto figures = report_figures(recorded_layers(runs), 10);
  ASSERT_EQ(figures.size(), 2U) << "40 names are too many for one axis";
  std::size_t points = 0;
  for (const Figure& figure : figures) {
    points += figure.panels.at(0).series.at(0).x.size();
    EXPECT_EQ(figure.panels[0].series[0].x.size(), figure.panels[0].x_names.size());
  }
  EXPECT_EQ(points, 40U) << "no workload hides another";
}

/// A name that ends a tag, an attribute or a terminal's patience.
constexpr const char* kHostile = "\"'><script>alert(1)</script>&amp;`x`\x1b[2J\xe9";

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
  std::vector<ReportFigure> figures;
  for (const Figure& figure : report_figures(recorded_layers(runs), 10)) {
    figures.push_back({figure.title, "<svg></svg>", ""});
  }
  ASSERT_FALSE(figures.empty());
  figures.push_back({kHostile, "", kHostile});
  const std::string html = html_report(kHostile, runs, figures);
  EXPECT_EQ(html.find("<script"), html.rfind("<script")) << "the page's own alone";
  EXPECT_EQ(html.find("alert(1)</script>"), std::string::npos);
  EXPECT_EQ(html.find("\"'>"), std::string::npos);
  EXPECT_EQ(html.find('\x1b'), std::string::npos);
  EXPECT_EQ(html.find('\xe9'), std::string::npos);
  const std::string shown = "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;`x`\\x1b[2J\\xe9";
  for (const char* before : {"<td class=t>", "<b>", "<h1>", "<code>", "<span class=s", "no figure: "}) {
    EXPECT_NE(html.find(before), std::string::npos) << before;
  }
  for (const char* before :
       {"<td class=t>", "<b>", "<h1>", "<code>", "no figure: ", "on ", "L2 ", "gates "}) {
    EXPECT_NE(html.find(before + shown), std::string::npos) << before << "the name";
  }
}

TEST(HtmlReport, LeadsToEverythingAndShowsStagesAndRuns) {
  auto runs = make_runs();
  runs.push_back(runs.front());
  runs[1].header.run_id = "another";
  ResultRow counted = make_row("staircase", Stage::kExpertScores, "hbm_read_bytes", 3 * 1024 * 1024, 16);
  runs[1].rows.push_back(counted);
  const std::string html = html_report("two", runs, {{"over L", "<svg></svg>", ""}});
  for (std::size_t at = html.find("href=\"#"); at != std::string::npos; at = html.find("href=\"#", at + 1)) {
    const auto begin = at + 7;
    const std::string id = html.substr(begin, html.find('"', begin) - begin);
    const auto target = html.find(" id=" + id);
    EXPECT_NE(target, std::string::npos) << id;
    EXPECT_EQ(html.find(" id=" + id + ">", target + 1), std::string::npos) << id << " is one place";
  }
  for (const char* text : {"href=\"#figure-1\"", "href=\"#run-2\"", "href=\"#layers-1\"", "expert_scores",
                           "<th>HBM read</th>", "3.00 MiB", "of the layer", "background:#009E73"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
}

TEST(HtmlReport, SaysOfLayersWithoutTimesOnlyHowFarOffTheyWere) {
  RecordedRun run;
  run.rows.push_back(make_row("staircase", Stage::kLayer, "relative_error", 2.5e-3, 16));
  const std::vector<RecordedRun> runs = {run};
  const std::string html = html_report("checks", runs, {});
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
  const std::string html = html_report("r", runs, {});
  const auto summary = html.find("<h2 id=summary>");
  ASSERT_NE(summary, std::string::npos);
  EXPECT_LT(summary, html.find("<nav>"));
  for (const char* text :
       {"<h3>a &lt;machine&gt;</h3>", "The fastest of 3 layers: staircase on 2, token_centric on 1.",
        "2.00x (median; at most 2.00x)", "On 1 of them the lead is within the noise", "<input class=filter>",
        "<a href=\"#summary\">"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(html_report("r", {}, {}).find("#summary"), std::string::npos) << "nothing to say, no link to it";
}

TEST(HtmlReport, HasEverythingInsideAndNothingFromElsewhere) {
  const auto runs = make_runs();
  const std::string html =
      html_report("a & b", runs, {{"drawn", "<svg>circle</svg>", ""}, {"not", "", "no gnuplot"}});
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  EXPECT_TRUE(html.ends_with("</html>\n"));
  for (const char* text :
       {"<title>a &amp; b</title>", "a &lt;machine&gt;", "moescope sweep a&amp;b.json", "token_centric",
        "128 ms", "2.0e-03", "2.0x", "failed: no &lt;memory&gt;", "<code>moescope compare -L 32</code>",
        "data:image/svg+xml;base64,PHN2Zz5jaXJjbGU8L3N2Zz4=", "no figure: no gnuplot", "unevenness 1.25"}) {
    EXPECT_NE(html.find(text), std::string::npos) << text;
  }
  for (const char* text : {"http:", "https:", "<script src", "<link", "src=\"/", "<machine>"}) {
    EXPECT_EQ(html.find(text), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace moescope
