#include "profiler/report/roofline.hpp"

#include <gtest/gtest.h>

#include <sstream>

#include <algorithm>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "profiler/text/table_output.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

ResultRow row_of(std::string schedule, std::string stage, std::string metric, double value,
                 Source source = Source::kMeasured) {
  ResultRow row;
  row.schedule = std::move(schedule);
  row.stage = std::move(stage);
  row.metric = std::move(metric);
  row.value = value;
  row.source = source;
  row.backend = "cuda";
  row.dtype = "bf16";
  row.workload = "snapshot:some/where/layer_2.safetensors";
  row.num_tokens = 64;
  row.hidden_size = 8;
  row.grid_rows = row.grid_cols = 4;
  row.top_k = 2;
  row.l2_state = source == Source::kAnalytic ? "none" : "cold";
  row.unit = "x";
  return row;
}

/// One ceiling as `moescope ceilings` writes it.
ResultRow ceiling_row(std::string_view metric, double value) {
  ResultRow row = row_of("none", std::string(kDeviceStage), std::string(metric), value);
  row.workload = row.dtype = row.l2_state = "none";
  return row;
}

void add_stage(RecordedRun& run, const std::string& schedule, const std::string& stage, double time_s,
               double flop, double hbm_bytes, double l2_bytes) {
  run.rows.push_back(row_of(schedule, stage, "time_s", time_s));
  run.rows.push_back(row_of(schedule, stage, "useful_flop", flop, Source::kAnalytic));
  // The analytic bytes of the same name must not be taken for measured ones.
  run.rows.push_back(row_of(schedule, stage, "hbm_read_bytes", 1, Source::kAnalytic));
  run.rows.push_back(row_of(schedule, stage, "hbm_read_bytes", hbm_bytes - 1));
  run.rows.push_back(row_of(schedule, stage, "hbm_write_bytes", 1));
  run.rows.push_back(row_of(schedule, stage, "l2_read_bytes", l2_bytes));
  run.rows.push_back(row_of(schedule, stage, "l2_write_bytes", 0));
  run.rows.push_back(row_of(schedule, stage, "l2_reduction_bytes", 0));
  run.rows.push_back(row_of(schedule, stage, "l2_atomic_bytes", 0));
  run.rows.push_back(row_of(schedule, stage, "tensor_flop", 3 * flop));
  run.rows.push_back(row_of(schedule, stage, "cuda_core_flop", flop));
}

std::vector<RecordedRun> recorded() {
  RecordedRun run;
  run.header.device = "fake device";
  run.header.git_revision = "0123456789abcdef";
  run.header.started_utc = "2026-01-02T03:04:05Z";
  run.rows = {ceiling_row(ceiling::kHbmCopy, 100), ceiling_row(ceiling::kL2Read, 400),
              ceiling_row(ceiling::kBf16Matrix, 1000)};
  for (const char* schedule : {"token_centric", "staircase"}) {
    add_stage(run, schedule, "router_project", 2, 400, 4, 8);
    add_stage(run, schedule, "router_select", 2, 0, 50, 100);
    add_stage(run, schedule, "experts", 4, 800, 80, 160);
    run.rows.push_back(row_of(schedule, "layer", "time_s", 8));
  }
  return {run};
}

const RooflinePoint& point_of(const Roofline& roofline, std::string_view schedule, std::string_view stage) {
  return *std::ranges::find_if(roofline.points, [&](const RooflinePoint& point) {
    return point.schedule == schedule && point.stage == stage;
  });
}

TEST(Roofline, PointsAreFlopOverMeasuredTimeAndBytes) {
  const Roofline roofline = read_roofline(recorded(), RooflineFlop::kUseful);
  EXPECT_EQ(roofline.points.size(), 8U);
  const RooflinePoint& experts = point_of(roofline, "staircase", "experts");
  EXPECT_EQ(experts.performance(), 200.0);
  EXPECT_EQ(experts.hbm_intensity(), 10.0) << "read and written, as counted";
  EXPECT_EQ(experts.l2_intensity(), 5.0);
  const RooflinePoint& select = point_of(roofline, "staircase", "router_select");
  EXPECT_FALSE(select.performance().has_value()) << "no FLOP, no place on a roofline";
  EXPECT_EQ(select.hbm_bytes, 50.0);
  EXPECT_FALSE(point_of(roofline, "staircase", "layer").hbm_bytes.has_value()) << "not counted";
  EXPECT_EQ(
      point_of(read_roofline(recorded(), RooflineFlop::kExecuted), "staircase", "experts").performance(),
      800.0);
}

TEST(Roofline, L2IntensityTakesWhatL2ReadNotWhatSeveralMultiprocessorsReceived) {
  std::vector<RecordedRun> runs = recorded();
  runs[0].rows.push_back(row_of("staircase", "experts", "l2_slice_read_bytes", 80));
  const Roofline roofline = read_roofline(runs, RooflineFlop::kUseful);
  EXPECT_EQ(point_of(roofline, "staircase", "experts").l2_bytes, 80.0);
  EXPECT_EQ(point_of(roofline, "token_centric", "experts").l2_bytes, 160.0) << "the slices were not counted";
}

TEST(Roofline, RoofIsTheSmallerOfBandwidthAndPeak) {
  const Roofline roofline = read_roofline(recorded(), RooflineFlop::kUseful);
  EXPECT_EQ(roofline.hbm_roof(2), 200.0);
  EXPECT_EQ(roofline.hbm_roof(50), 1000.0);
  EXPECT_EQ(roofline.l2_roof(2), 800.0);
  EXPECT_EQ(Roofline{}.hbm_roof(2), std::nullopt);
}

TEST(Roofline, FigureHasAPanelPerLevelWithRoofAndLabelledPoints) {
  const Figure figure = roofline_figure(read_roofline(recorded(), RooflineFlop::kUseful));
  ASSERT_EQ(figure.panels.size(), 2U);
  EXPECT_EQ(figure.columns, 2);
  EXPECT_NE(figure.title.find("revision 0123456, 2026-01-02"), std::string::npos) << figure.title;
  for (const FigurePanel& panel : figure.panels) {
    EXPECT_TRUE(panel.log_x && panel.log_y);
    ASSERT_EQ(panel.series.size(), 4U) << "a roof, two schedules, the stages they share";
    EXPECT_FALSE(panel.series[0].points);
    EXPECT_EQ(panel.series[0].y.back(), 1000.0) << "the roof reaches its flat part";
    EXPECT_EQ(panel.series[1].tags, std::vector<std::string>{"token_centric"});
    EXPECT_EQ(panel.series[2].tags, std::vector<std::string>{"staircase"});
    EXPECT_EQ(panel.series[3].tags, std::vector<std::string>{"router_project"}) << "once for both schedules";
  }
  EXPECT_EQ(figure.panels[0].series[2].x, std::vector<double>{10});
  EXPECT_EQ(figure.panels[1].series[2].x, std::vector<double>{5});
  EXPECT_NE(figure.panels[0].title.find("layer_2, L64_d8_N16_K2 bf16, L2 cold"), std::string::npos)
      << figure.panels[0].title;
  const FigurePanel& hbm = figure.panels[0];
  EXPECT_EQ(hbm.series[1].tag_x, hbm.series[2].tag_x) << "two schedules at the same place";
  EXPECT_GT(hbm.series[2].tag_y[0] / hbm.series[1].tag_y[0], 1.3) << "do not hide each other's tags";
  const std::string script = figure_script(figure, "roofline");
  EXPECT_NE(script.find("using 4:5:3 with labels left textcolor rgb \"#0072B2\""), std::string::npos);
  EXPECT_NE(script.find("set logscale x"), std::string::npos);
  EXPECT_NE(script.find("set origin 0.5,0\n"), std::string::npos) << "side by side";
  EXPECT_NE(script.find("with lines"), std::string::npos);
}

/// Every layer's label and table.
std::string roofline_text(const Roofline& roofline) {
  std::ostringstream text;
  TableOutput out(text, text, {});
  for (const RooflineTable& layer : roofline_tables(roofline)) {
    out.text() << one_line(layer.label) << '\n';
    out.show(layer.label, layer.table);
  }
  return text.str();
}

TEST(Roofline, TableHasEveryStageWithItsDistanceToBothRoofs) {
  const std::string text = roofline_text(read_roofline(recorded(), RooflineFlop::kUseful));
  EXPECT_NE(text.find("20.0 %"), std::string::npos) << "experts: 200 of 1000 FLOP/s at 10 FLOP/B\n" << text;
  EXPECT_NE(text.find("25.0 %"), std::string::npos) << "router_select: 50 bytes in 2 s of 100 a second\n"
                                                    << text;
  EXPECT_NE(text.find("layer"), std::string::npos);
}

TEST(Roofline, UsefulFlopFollowTheStageAsItRan) {
  auto runs = recorded();
  // Recorded formulas know the fused stage; it ran as two, of which one was counted.
  add_stage(runs.front(), "staircase", "expert_scores", 2, 0, 40, 80);
  std::erase_if(runs.front().rows, [](const ResultRow& row) {
    return row.stage == "expert_scores" && row.metric == "useful_flop";
  });
  EXPECT_EQ(point_of(read_roofline(runs, RooflineFlop::kUseful), "staircase", "expert_scores").flop, 400.0);
}

TEST(Roofline, LastRecordingOfAPointCounts) {
  auto runs = recorded();
  runs.push_back(runs.front());
  for (ResultRow& row : runs.back().rows) {
    if (row.metric == "time_s") {
      row.value = *row.value / 2;
    }
  }
  const Roofline roofline = read_roofline(runs, RooflineFlop::kUseful);
  EXPECT_EQ(roofline.points.size(), 8U);
  EXPECT_EQ(point_of(roofline, "staircase", "experts").performance(), 400.0);
}

TEST(Roofline, TellsLayersApartByEveryAxis) {
  auto runs = recorded();
  const auto rows = runs.front().rows;
  for (ResultRow row : rows) {
    if (row.stage != kDeviceStage) {
      row.shared_size = 64;
      row.seed = 2;
      row.value = 2 * *row.value;
      runs.front().rows.push_back(row);
    }
  }
  const Roofline roofline = read_roofline(runs, RooflineFlop::kUseful);
  EXPECT_EQ(roofline.points.size(), 16U) << "two layers, not the last of both";
  for (const RooflinePoint& point : roofline.points) {
    const bool second = point.label.find("seed 2") != std::string::npos;
    EXPECT_NE(point.label.find(second ? "shared 64" : "seed 0"), std::string::npos) << point.label;
    if (point.stage == "experts") {
      EXPECT_EQ(point.flop, second ? 1600.0 : 800.0) << "its own FLOP, not the other layer's";
      EXPECT_EQ(point.time_s, second ? 8.0 : 4.0);
    }
  }
  EXPECT_EQ(roofline_figure(roofline).panels.size(), 4U);
}

TEST(Roofline, KeepsRunsApartAndTakesNothingFromAnother) {
  auto runs = recorded();
  runs.front().header.run_id = "first";
  runs.push_back(runs.front());
  runs.back().header.run_id = "second";
  std::erase_if(runs.back().rows, [](const ResultRow& row) { return row.metric == "time_s"; });
  EXPECT_EQ(read_roofline(runs, RooflineFlop::kUseful).points.size(), 8U) << "no time, no point";
  for (ResultRow& row : runs.back().rows) {
    row.value = row.stage == kDeviceStage ? *row.value : 10 * *row.value;
  }
  for (const RooflinePoint& point : read_roofline(runs, RooflineFlop::kUseful).points) {
    if (point.stage == "experts") {
      EXPECT_EQ(point.flop, 800.0) << point.label;
    }
  }
  runs.back() = runs.front();
  runs.back().header.run_id = "second";
  const Roofline both = read_roofline(runs, RooflineFlop::kUseful);
  EXPECT_EQ(both.points.size(), 16U) << "side by side";
  EXPECT_NE(both.points.back().label.find("run second"), std::string::npos) << both.points.back().label;
}

TEST(Roofline, DrawsNoMoreLayersThanAPersonLooksAt) {
  auto runs = recorded();
  const auto rows = runs.front().rows;
  for (std::uint64_t seed = 1; seed < 20; ++seed) {
    for (ResultRow row : rows) {
      row.seed = seed;
      if (row.stage != kDeviceStage) {
        runs.front().rows.push_back(row);
      }
    }
  }
  const Roofline roofline = read_roofline(runs, RooflineFlop::kUseful);
  EXPECT_EQ(roofline.points.size(), 20U * 8);
  const Figure figure = roofline_figure(roofline);
  EXPECT_EQ(figure.panels.size(), 24U);
  EXPECT_NE(figure.title.find("12 of 20"), std::string::npos) << figure.title;
  EXPECT_NE(roofline_text(roofline).find("seed 19"), std::string::npos) << "the table has all";
}

TEST(Roofline, DrawsLayersWithCountedBytesBeforeOthers) {
  auto runs = recorded();
  const auto rows = runs.front().rows;
  std::vector<ResultRow> uncounted;
  for (std::uint64_t seed = 1; seed < 20; ++seed) {
    for (ResultRow row : rows) {
      row.seed = seed;
      if (row.stage != kDeviceStage && !row.metric.ends_with("bytes")) {
        uncounted.push_back(row);
      }
    }
  }
  // Another schedule came first in the file: the stages that all share are then not its.
  for (ResultRow& row : uncounted) {
    row.schedule = row.schedule == "token_centric" ? "dense_masked" : row.schedule;
  }
  runs.front().rows.insert(runs.front().rows.begin(), uncounted.begin(), uncounted.end());
  const Figure figure = roofline_figure(read_roofline(runs, RooflineFlop::kUseful));
  ASSERT_EQ(figure.panels.size(), 2U) << "one layer has points, 19 have not";
  EXPECT_NE(figure.panels[0].title.find("seed 0"), std::string::npos) << figure.panels[0].title;
  EXPECT_NE(figure.title.find("1 of 20 layers, those with counted bytes"), std::string::npos) << figure.title;
  ASSERT_EQ(figure.panels[0].series.size(), 4U);
  EXPECT_EQ(figure.panels[0].series[3].tags, std::vector<std::string>{"router_project"});
  runs.front().rows = uncounted;
  runs.front().rows.insert(runs.front().rows.end(), rows.begin(), rows.begin() + 3);
  EXPECT_EQ(roofline_figure(read_roofline(runs, RooflineFlop::kUseful)).panels.size(), 24U)
      << "roofs alone where nothing was counted";
}

TEST(Roofline, OfSeveralDevicesStandSideBySideEachUnderItsOwnRoofs) {
  auto runs = recorded();
  runs.push_back(runs.front());
  runs.back().header.device = "another device";
  runs.back().rows.front().value = 1000;
  RecordedRun elsewhere = recorded().front();  // its ceilings alone are no roofline
  elsewhere.header.device = "a third";
  std::erase_if(elsewhere.rows, [](const ResultRow& row) { return row.stage != kDeviceStage; });
  runs.push_back(elsewhere);
  const auto both = read_rooflines(runs, RooflineFlop::kUseful);
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(both[0].ceilings.device, "fake device");
  EXPECT_EQ(both[0].ceilings.hbm_bytes_per_s(), 100.0);
  EXPECT_EQ(both[1].ceilings.device, "another device");
  EXPECT_EQ(both[1].ceilings.hbm_bytes_per_s(), 1000.0);
  EXPECT_EQ(both[1].points.size(), 8U);
  std::erase_if(runs[1].rows, [](const ResultRow& row) { return row.stage == kDeviceStage; });
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              (void)read_rooflines(runs, RooflineFlop::kUseful);
            }).find("another device"),
            std::string::npos);
  EXPECT_THROW((void)read_rooflines({}, RooflineFlop::kUseful), InvalidArgument);
}

TEST(Roofline, ShowsHostileNames) {
  auto runs = recorded();
  for (ResultRow& row : runs.front().rows) {
    row.workload = row.stage == kDeviceStage ? row.workload : "x\x1b[2J`touch owned`\nforged";
  }
  const std::string text = roofline_text(read_roofline(runs, RooflineFlop::kUseful));
  EXPECT_NE(text.find("x\\x1b[2J`touch owned`\\nforged"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST(Roofline, RefusesRowsThatGiveNone) {
  EXPECT_NE(test::error_text<InvalidArgument>([] {
              (void)read_roofline({}, RooflineFlop::kUseful);
            }).find("ceilings"),
            std::string::npos);
  auto runs = recorded();
  std::erase_if(runs.front().rows, [](const ResultRow& row) { return row.metric == "time_s"; });
  EXPECT_THROW((void)read_roofline(runs, RooflineFlop::kUseful), InvalidArgument);
  runs = recorded();
  RecordedRun other = runs.front();
  std::erase_if(other.rows, [](const ResultRow& row) { return row.stage == kDeviceStage; });
  other.header.device = "another device";
  runs.push_back(other);
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              (void)read_roofline(runs, RooflineFlop::kUseful);
            }).find("another device"),
            std::string::npos);
}

}  // namespace
}  // namespace moescope
