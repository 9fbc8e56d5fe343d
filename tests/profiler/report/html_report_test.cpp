#include "profiler/report/html_report.hpp"

#include <gtest/gtest.h>

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
  EXPECT_EQ(layer.series[0].label, "staircase");
  EXPECT_EQ(layer.series[0].x, (std::vector<double>{16, 32, 64}));
  EXPECT_EQ(layer.series[0].y, (std::vector<double>{32, 64, 128})) << layer.y_label;
  EXPECT_EQ(layer.series[0].colour, 2) << "a schedule has one colour in all figures";
  EXPECT_EQ(figures[0].title.find("L 16"), std::string::npos) << figures[0].title;
  EXPECT_NE(figures[0].title.find("N 16, K 2"), std::string::npos) << figures[0].title;
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

TEST(HtmlReport, SaysOfLayersWithoutTimesOnlyHowFarOffTheyWere) {
  RecordedRun run;
  run.rows.push_back(make_row("staircase", Stage::kLayer, "relative_error", 2.5e-3, 16));
  const std::vector<RecordedRun> runs = {run};
  const std::string html = html_report("checks", runs, {});
  EXPECT_NE(html.find("not timed: 1; their largest error: 2.5e-03"), std::string::npos);
  EXPECT_EQ(html.find("<td class=t>staircase"), std::string::npos);
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
  for (const char* text : {"http:", "https:", "<script", "<link", "src=\"/", "<machine>"}) {
    EXPECT_EQ(html.find(text), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace moescope
