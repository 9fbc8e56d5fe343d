#include "profiler/report/report_figures.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "profiler/report/layer_names.hpp"
#include "profiler/report/recorded_points.hpp"
#include "tests/support/sweep_rows.hpp"

namespace moescope {
namespace {

using test::make_row;
using test::make_runs;

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
    row.point = std::string(1, row.num_tokens == 16 ? 'a' : 'b');
    row.num_tokens = 16;
  }
  EXPECT_EQ(recorded_layers(runs).size(), 2U);
}

TEST(RecordedLayers, KeepStatesOfTheCacheApartWhicheverScheduleHasThem) {
  auto runs = make_runs();
  for (ResultRow& row : runs[0].rows) {
    if (row.num_tokens == 32 && row.schedule == "staircase" && row.l2_state == "cold") {
      row.l2_state = "warm";
    }
  }
  int warm = 0;
  int cold = 0;
  for (const RecordedLayer& layer : recorded_layers(runs)) {
    if (layer.what.num_tokens != 32) {
      continue;
    }
    (layer.what.l2_state == "warm" ? warm : cold) += 1;
    for (const RecordedSchedule& schedule : layer.schedules) {
      if (schedule.value(Stage::kLayer, "time_s")) {
        EXPECT_EQ(schedule.name == "staircase", layer.what.l2_state == "warm") << schedule.name;
      }
    }
    EXPECT_EQ(layer.common.value(Stage::kExperts, "floor_bytes"), 1000) << "of no state: of both";
  }
  EXPECT_EQ(warm, 1);
  EXPECT_EQ(cold, 1);
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
  // Whatever field of a point it is: one schedule with two values is two layers; what is of a
  // single rank is of no layer.
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
    EXPECT_EQ(recorded_layers(runs).size(), key == "rank" ? 0U : key == "schedule" ? 1U : 2U) << key;
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

TEST(ReportFigures, SayOfEveryPointWhichRowIsBehindIt) {
  auto runs = make_runs();
  runs[0].header.device = "a machine";
  const auto figures = report_figures(recorded_layers(runs), 10);
  const auto fact = [](const FigureSeries& series, std::size_t point, const std::string& name) {
    const auto& facts = series.facts.at(point);
    const auto found = std::ranges::find(facts, name, &FigureFact::name);
    return found == facts.end() ? std::string("none") : found->text;
  };
  const FigureSeries& layer = figures.at(0).panels.at(0).series.at(1);
  ASSERT_EQ(layer.facts.size(), 3U);
  EXPECT_EQ(fact(layer, 1, "time"), "64.0 ms");
  EXPECT_EQ(fact(layer, 1, "spread"), "10.0 % of 1 samples");
  EXPECT_EQ(fact(layer, 1, "schedule"), "staircase");
  EXPECT_EQ(fact(layer, 1, "shape"), "L32 d8 4x4 K2 bf16");
  EXPECT_EQ(fact(layer, 1, "device"), "a machine");
  EXPECT_EQ(fact(layer, 1, "again"), "moescope compare -L 32");
  const FigureSeries& experts = figures.at(0).panels.at(1).series.at(1);
  EXPECT_EQ(fact(experts, 2, "time"), "96.0 ms, scores and combine together");
  EXPECT_EQ(fact(experts, 2, "stage"), "experts");
  EXPECT_EQ(fact(experts, 2, "spread"), "none") << "of two rows there is none";
}

}  // namespace
}  // namespace moescope
