#include "profiler/report/phase_diagram.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace moescope {
namespace {

/// Layers at L = 10, 100, 1000 and two K: "slow_start" takes 1 s at every L, "grower" L^2 / scale seconds.
RecordedRun make_run(Source source, double scale) {
  RecordedRun run;
  run.header.device = "device";
  for (const std::int64_t top_k : {8, 64}) {
    for (const std::int64_t num_tokens : {10, 100, 1000}) {
      for (const char* schedule : {"slow_start", "grower"}) {
        ResultRow row;
        row.schedule = schedule;
        row.stage = to_string(Stage::kLayer);
        row.backend = source == Source::kModelled ? "sim: X" : "cuda";
        row.num_tokens = num_tokens;
        row.hidden_size = row.grid_rows = row.grid_cols = 16;
        row.top_k = top_k;
        row.workload = "gaussian:1";
        row.source = source;
        row.metric = "time_s";
        const auto tokens = static_cast<double>(num_tokens);
        row.value = row.schedule == "grower" ? tokens * tokens / scale : 1.0;
        run.rows.push_back(row);
      }
    }
  }
  return run;
}

TEST(PhaseDiagram, FindsWhereSchedulesCrossOver) {
  const std::vector<RecordedRun> runs = {make_run(Source::kModelled, 40000)};
  const auto panels = phase_panels(recorded_layers(runs));
  ASSERT_EQ(panels.size(), 1U);
  EXPECT_EQ(panels[0].title, "X, gaussian:1");
  EXPECT_EQ(panels[0].top_ks(), (std::vector<std::int64_t>{8, 64}));
  ASSERT_EQ(panels[0].points.size(), 6U);
  EXPECT_EQ(panels[0].points[0].fastest(), "grower");
  EXPECT_NEAR(panels[0].points[0].margin(), 400, 1e-9);
  const auto at = panels[0].crossovers(8, "slow_start", "grower");
  ASSERT_EQ(at.size(), 1U);
  EXPECT_NEAR(at[0], 200, 1e-6);  // a power law is a line in the logarithms
  EXPECT_NEAR(panels[0].crossovers(8, "grower", "slow_start").at(0), -200, 1e-6);
  EXPECT_TRUE(panels[0].crossovers(9, "slow_start", "grower").empty());
  const std::string table = crossover_table(panels).text();
  EXPECT_NE(table.find("grower, from 200 slow_start"), std::string::npos) << table;
  const Figure figure = phase_figure(panels);
  EXPECT_NE(figure.title.find("modelled"), std::string::npos);
  ASSERT_EQ(figure.panels.size(), 1U);
  ASSERT_EQ(figure.panels[0].series.size(), 3U);
  EXPECT_EQ(figure.panels[0].series[0].label, "grower");
  EXPECT_EQ(figure.panels[0].series[0].x.size(), 4U);
  EXPECT_EQ(figure.panels[0].series[1].tags, (std::vector<std::string>{"25.0", "25.0"}));
  EXPECT_EQ(figure.panels[0].series[2].label, "equally fast");
  EXPECT_NEAR(figure.panels[0].series[2].x[0], 200, 1e-6);
}

TEST(PhaseDiagram, SaysSoWhereOneIsFastestThroughout) {
  const std::vector<RecordedRun> runs = {make_run(Source::kModelled, 1)};
  const auto panels = phase_panels(recorded_layers(runs));
  EXPECT_TRUE(panels.at(0).crossovers(8, "slow_start", "grower").empty());
  EXPECT_NE(crossover_table(panels).text().find("8  slow_start\n"), std::string::npos)
      << crossover_table(panels).text();
  EXPECT_EQ(phase_figure(panels).panels[0].series.size(), 2U) << "no line";
}

TEST(PhaseDiagram, NeverMixesMeasuredAndModelledAndNeedsTwoAxes) {
  std::vector<RecordedRun> runs = {make_run(Source::kModelled, 40000), make_run(Source::kMeasured, 40000)};
  const auto panels = phase_panels(recorded_layers(runs));
  ASSERT_EQ(panels.size(), 2U);
  EXPECT_EQ(panels[1].source, Source::kMeasured);
  EXPECT_EQ(panels[1].title, "cuda on device, gaussian:1");
  EXPECT_EQ(phase_figure(panels).title.find("modelled"), std::string::npos);
  std::erase_if(runs[0].rows, [](const ResultRow& row) { return row.top_k == 8; });
  std::erase_if(runs[1].rows, [](const ResultRow& row) { return row.schedule == "grower"; });
  EXPECT_TRUE(phase_panels(recorded_layers(runs)).empty());
}

TEST(PhaseDiagram, KeepsPanelsApartByEveryAxisAndNamesThem) {
  const auto panels_with = [](const auto& change) {
    std::vector<RecordedRun> runs = {make_run(Source::kModelled, 40000), make_run(Source::kModelled, 40000)};
    for (ResultRow& row : runs[1].rows) {
      change(row);
    }
    const auto panels = phase_panels(recorded_layers(runs));
    EXPECT_TRUE(panels.size() < 2 || panels[0].title != panels[1].title) << panels[0].title;
    return panels.size();
  };
  EXPECT_EQ(panels_with([](ResultRow&) {}), 1U) << "an interrupted sweep is one";
  EXPECT_EQ(panels_with([](ResultRow& row) { row.seed = 1; }), 2U);
  EXPECT_EQ(panels_with([](ResultRow& row) { row.group_size = 8; }), 2U);
  EXPECT_EQ(panels_with([](ResultRow& row) { row.tile_tokens = 8; }), 2U);
  EXPECT_EQ(panels_with([](ResultRow& row) { row.activation = "gelu"; }), 2U);
  EXPECT_EQ(panels_with([](ResultRow& row) { row.grid_rows = 256, row.grid_cols = 1; }), 2U);
}

TEST(PhaseDiagram, ShowsHostileNames) {
  RecordedRun run = make_run(Source::kModelled, 40000);
  for (ResultRow& row : run.rows) {
    row.backend = "sim: GPU`touch owned`\x1b[2J";
    row.schedule = row.schedule == "grower" ? "$(grower)\n" : row.schedule;
  }
  const std::vector<RecordedRun> runs = {run};
  const auto panels = phase_panels(recorded_layers(runs));
  ASSERT_EQ(panels.size(), 1U);
  const std::string table = crossover_table(panels).text();
  EXPECT_NE(table.find("GPU`touch owned`\\x1b[2J, gaussian:1"), std::string::npos) << table;
  EXPECT_NE(table.find("$(grower)\\n, from 200 slow_start"), std::string::npos) << table;
  const std::string script = figure_script(phase_figure(panels), "phase");
  EXPECT_EQ(script.find('`'), std::string::npos) << script;
}

}  // namespace
}  // namespace moescope
