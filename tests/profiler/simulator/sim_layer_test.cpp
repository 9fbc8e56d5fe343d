#include "profiler/simulator/sim_layer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.hpp"
#include "profiler/simulator/sim_validation.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::h100;

TEST(SimTime, IsALittleMoreThanTheLongestOfWhatGoesOnAtOnceAndSaysWhich) {
  const DeviceSpec device = h100();
  LaunchReplay launch;
  launch.hbm_read_bytes = device.hbm_read_bytes_per_s * 1e-3;
  launch.l2_read_bytes = device.l2_bytes_per_s * 4e-4;
  launch.makespan_s = 5e-4;
  const LaunchTime time = launch_time(launch, device);
  const double together = std::pow(1 + std::pow(0.4, 4) + std::pow(0.5, 4), 0.25) * 1e-3;
  EXPECT_NEAR(time.busy_s, together, 1e-9);
  EXPECT_NEAR(time.bound_s, together + device.launch_s, 1e-9);
  EXPECT_EQ(time.bound(), "hbm");
  launch.l2_reduce_bytes = device.l2_reduce_bytes_per_s * 1e-3;
  EXPECT_EQ(launch_time(launch, device).bound(), "l2");
  launch.makespan_s = 2e-3;
  EXPECT_EQ(launch_time(launch, device).bound(), "blocks");
  LaunchReplay chain;  // every load misses
  chain.dependent_steps = 100;
  chain.l2_read_bytes = 32;
  EXPECT_NEAR(launch_time(chain, device).latency_s, 100 * device.hbm_latency_s, 1e-12);
  chain.l2_hit_bytes = 32;
  EXPECT_NEAR(launch_time(chain, device).latency_s, 100 * device.l2_latency_s, 1e-12);
  EXPECT_EQ(launch_time(chain, device).bound(), "latency");
  EXPECT_EQ(launch_time({}, device).bound(), "launch");
  chain.makespan_s = 100 * device.l2_latency_s;  // as much work as waiting
  EXPECT_NEAR(launch_time(chain, device).bound_s, std::sqrt(2.0) * chain.makespan_s + device.launch_s, 1e-10);
}

TEST(SimTime, StoresOfPartsOfSectorsTakeTheRateOfReductions) {
  const DeviceSpec device = h100();
  LaunchReplay launch;
  launch.l2_write_bytes = 1e9;
  EXPECT_DOUBLE_EQ(launch_time(launch, device).l2_s, 1e9 / device.l2_bytes_per_s);
  launch.l2_partial_bytes = 4e8;
  EXPECT_DOUBLE_EQ(launch_time(launch, device).l2_s,
                   6e8 / device.l2_bytes_per_s + 4e8 / device.l2_reduce_bytes_per_s);
}

/// A stage that starts while the one before ends costs a layer less than by itself, but never less than
/// nothing; the first stage has none before it.
TEST(SimTime, StagesThatStartEarlyCostALayerLess) {
  const auto fill = [](std::int64_t, WorkUnit& unit) {
    unit.clear();
    unit.dependent_steps = 10;
  };
  std::vector<KernelLaunch> launches = {{Stage::kRouterProject, "logits", 1, 1, fill},
                                        {Stage::kRouterSelect, "select", 1, 1, fill},
                                        {Stage::kExperts, kTokenPairs, 1, 1, fill, 0, Overlap::kNone}};
  Calibration calibration = read_calibration(test::source_path("data/devices/h100-sxm/calibration.json"));
  calibration.fits.clear();
  const double start_s = calibration.constants->values.dependent_start_s;
  const auto layer_s = [&] { return simulate_layer(launches, h100(), calibration, {}).stages.back().time_s; };
  const double apart_s = layer_s();
  launches[1].dependent = true;
  EXPECT_NEAR(layer_s(), apart_s - start_s, 1e-12);
  launches[0].dependent = launches[2].dependent = true;
  EXPECT_NEAR(layer_s(), apart_s - 2 * start_s, 1e-12);
  calibration.constants->values.dependent_start_s = 1;
  EXPECT_NEAR(layer_s(), apart_s / 3, 1e-12);
}

TEST(SimTime, StagesAddUpToTheLayerAndRowsAreModelled) {
  const auto fill = [](std::int64_t index, WorkUnit& unit) {
    unit.clear();
    unit.bursts.push_back({static_cast<std::uint64_t>(index) << 16, 1 << 16, 1, 0, AccessKind::kReadCached});
  };
  const std::vector<KernelLaunch> launches = {{Stage::kRouterProject, "a", 3, 1, fill},
                                              {Stage::kExperts, "b", 40, 1, fill},
                                              {Stage::kExperts, "c", 2, 1, fill}};
  Calibration calibration;
  calibration.fits.push_back({"b", "experts", 1e-5, 2, 3});
  const LayerModel model = simulate_layer(launches, h100(), calibration, {});
  ASSERT_EQ(model.stages.size(), 3U);
  const StageModel& experts = *model.find(Stage::kExperts);
  EXPECT_TRUE(experts.calibrated);
  EXPECT_DOUBLE_EQ(experts.time_s, 1e-5 + 2 * experts.bound_s);
  EXPECT_EQ(experts.sums.hbm_read_bytes, 37 << 16);  // three units are there from the stage before
  const StageModel& layer = *model.find(Stage::kLayer);
  EXPECT_FALSE(layer.calibrated);
  EXPECT_DOUBLE_EQ(layer.time_s, experts.time_s + model.stages[0].time_s);
  EXPECT_EQ(layer.sums.l1_read_bytes, 45 << 16);
  Point point = layer_point(LayerShape{}, "sim: x", "gaussian:1", 0);
  point.set_schedule({.kind = ScheduleKind::kTokenCentric});
  point.l2_state = "cold";
  const auto rows = model_rows(point, model);
  EXPECT_GE(rows.size(), 24U);
  for (const ResultRow& row : rows) {
    row.validate();
    EXPECT_EQ(row.source, Source::kModelled);
  }
}

/// A backward's sort runs beside the data gradients: what it leaves idle of the device costs the layer
/// nothing, but no more than these take.
TEST(SimTime, SortsHideBesideTheDataGradientsAsFarAsTheyLeaveTheDeviceIdle) {
  const auto waits = [](double steps) {
    return [steps](std::int64_t, WorkUnit& unit) {
      unit.clear();
      unit.dependent_steps = steps;
    };
  };
  const auto hidden_s = [&](double dgrad_steps, Overlap overlap) {
    const std::vector<KernelLaunch> launches = {{Stage::kExpertsDgrad, "dgrad", 1, 1, waits(dgrad_steps)},
                                                {Stage::kExpertsWgrad, "sort", 1, 1, waits(50), 0, overlap},
                                                {Stage::kExpertsWgrad, "wgrad", 1, 1, waits(50)}};
    const LayerModel model = simulate_layer(launches, h100(), {}, {});
    EXPECT_NEAR(model.stages[0].time_s + model.stages[1].time_s - model.hidden_s, model.stages[2].time_s,
                1e-12);
    return model.hidden_s;
  };
  const double sort_s = h100().launch_s + 50 * h100().l2_latency_s;
  EXPECT_NEAR(hidden_s(1000, Overlap::kDgrad), sort_s, 1e-12) << "it waits all the time";
  EXPECT_NEAR(hidden_s(5, Overlap::kDgrad), h100().launch_s + 5 * h100().l2_latency_s, 1e-12);
  EXPECT_EQ(hidden_s(1000, Overlap::kSharedMlp), 0);
}

/// A layer whose shared MLP is all launches hides it behind what runs ahead of the experts; one that keeps
/// the device busy hides nothing.
TEST(SimTime, SharedMlpHidesAsFarAsItLeavesTheDeviceIdle) {
  const auto reads = [](std::uint32_t bytes) {
    return [bytes](std::int64_t index, WorkUnit& unit) {
      unit.clear();
      unit.bursts.push_back({static_cast<std::uint64_t>(index) << 20, bytes, 1, 0, AccessKind::kRead});
    };
  };
  for (const bool busy : {false, true}) {
    const std::vector<KernelLaunch> launches = {
        {Stage::kRouterSelect, "select", 132, 1, reads(1 << 20)},
        {Stage::kSharedMlp, "gate and up", busy ? 4000 : 1, 1, reads(busy ? 1 << 20 : 32)},
        {Stage::kExperts, kTokenPairs, 132, 1, reads(1 << 20), 0, Overlap::kNone}};
    const LayerModel model = simulate_layer(launches, h100(), {}, {});
    const StageModel& mlp = *model.find(Stage::kSharedMlp);
    const StageModel& layer = *model.find(Stage::kLayer);
    EXPECT_DOUBLE_EQ(layer.time_s, layer.bound_s - model.hidden_s);
    EXPECT_LE(model.hidden_s, mlp.time_s);
    if (busy) {
      EXPECT_LT(model.hidden_s, 0.02 * mlp.time_s);
    } else {
      EXPECT_GT(model.hidden_s, 0.95 * mlp.time_s);
    }
  }
  // It begins behind the router's product, so that hides nothing of it.
  const LayerModel no_selection = simulate_layer(
      std::vector<KernelLaunch>{{Stage::kRouterProject, "logits", 132, 1, reads(1 << 20)},
                                {Stage::kSharedMlp, "gate and up", 1, 1, reads(32)},
                                {Stage::kExperts, kTokenPairs, 132, 1, reads(1 << 20), 0, Overlap::kNone}},
      h100(), {}, {});
  EXPECT_EQ(no_selection.hidden_s, 0);
}

TEST(SimCalibration, TheOneThatComesAlongIsForTheH100AndNamesKernelsThatStreamsHave) {
  const Calibration calibration =
      read_calibration(test::source_path("data/devices/h100-sxm/calibration.json"));
  EXPECT_EQ(carried_over(calibration, h100().name), "");
  for (const char* word : {"draw 0", "validation.jsonl", "moescope validate"}) {
    EXPECT_NE(calibration.source.find(word), std::string::npos) << word;
  }
  for (const auto& [kernel, stage] :
       {std::pair{kTokenPairs, Stage::kExperts}, {kClearSums, Stage::kExperts}}) {
    EXPECT_NE(calibration.find(kernel, stage), nullptr) << kernel;
  }
  ASSERT_TRUE(calibration.constants);
  for (const auto& [key, source] : calibration.constants->sources) {
    EXPECT_NE(source.find("H100"), std::string::npos) << key;
  }
}

TEST(SimCalibration, RecoversALineAndNeverGoesBelowZero) {
  std::vector<FitPoint> points;
  for (const double bound : {1e-5, 1e-4, 1e-3}) {
    points.push_back({bound, 2e-5 + 1.25 * bound});
  }
  const StageFit fit = fit_stage("s", "t", points);
  EXPECT_NEAR(fit.fixed_s, 2e-5, 1e-12);
  EXPECT_NEAR(fit.stretch, 1.25, 1e-9);
  const StageFit one = fit_stage("s", "t", std::vector<FitPoint>{{1e-3, 3e-3}});
  EXPECT_EQ(one.fixed_s, 0);
  EXPECT_DOUBLE_EQ(one.stretch, 3);
  // A line that would begin below zero goes through it.
  const StageFit steep = fit_stage("s", "t", std::vector<FitPoint>{{1e-3, 1e-3}, {2e-3, 4e-3}});
  EXPECT_EQ(steep.fixed_s, 0);
  EXPECT_GT(steep.stretch, 1);
  // Times that fall as the bound rises: nearly constant.
  const StageFit falling = fit_stage("s", "t", std::vector<FitPoint>{{1e-3, 4e-3}, {2e-3, 3e-3}});
  EXPECT_GT(falling.stretch, 0);
  EXPECT_GT(falling.fixed_s, 0);
  EXPECT_THROW(fit_stage("s", "t", {}), InternalError);
}

TEST(SimCalibration, ReadsWhatItWritesAndNamesWhatIsWrong) {
  Calibration calibration;
  calibration.device = "H100";
  calibration.source = "rows";
  calibration.fits.push_back({"strips", "experts", 1e-6, 1.5, 4});
  const Calibration again = parse_calibration(calibration_json(calibration), "x");
  ASSERT_NE(again.find("strips", Stage::kExperts), nullptr);
  EXPECT_DOUBLE_EQ(again.fits[0].stretch, 1.5);
  EXPECT_EQ(again.find("strips", Stage::kSchedule), nullptr);
  EXPECT_EQ(carried_over(again, "H100"), "");
  EXPECT_NE(carried_over(again, "A100").find("1 kernels (strips) are carried over from H100"),
            std::string::npos);
  EXPECT_FALSE(again.stream_constants().known());  // a file without constants
  calibration.fits[0].stretch = -1;
  EXPECT_EQ(test::error_text<FileError>([&] { parse_calibration(calibration_json(calibration), "x"); }),
            "x: fits[0].stretch: -1.0: must be in (0, 1000)");
  const auto error = [](const std::string& fits) {
    const std::string text = R"({"device": "d", "source": "s", "fits": )" + fits + "}";
    return test::error_text<FileError>([&] { parse_calibration(text, "x"); });
  };
  const std::string fit = R"({"kernel": "k", "stage": "experts", "fixed_s": 0, "stretch": 1, "points": 1})";
  EXPECT_EQ(error("[" + fit + "]"), "(no error)");
  EXPECT_EQ(error("null"), "x: fits: null: must be a list");
  EXPECT_EQ(error(R"([{"kernel": "k", "stage": "experts", "fixed_s": 0, "stretch": null, "points": 1}])"),
            "x: fits[0].stretch: null: must be a number");
  EXPECT_EQ(error(R"([{"kernel": "k", "stage": "experts", "fixed_s": 0, "stretch": 1, "points": "many"}])"),
            "x: fits[0].points: \"many\": must be a whole number");
  EXPECT_EQ(error(R"([{"kernel": "k"}])"), "x: fits[0].stage: missing");
  EXPECT_EQ(error("[" + fit + "," + fit + "]").find("x: fits[1]: "), 0U);
  EXPECT_EQ(error(R"([{"kernel": "k", "kernel": "l"}])"), "x: fits[0]: key 'kernel' stands there twice");
  EXPECT_EQ(error(std::string(100000, '[')).find("x: fits[0][0]"), 0U);
  const Calibration own = read_calibration(test::source_path("data/devices/h100-sxm/calibration.json"));
  const std::string text = calibration_json(own);
  const Calibration twice = parse_calibration(text, "x");
  ASSERT_TRUE(own.constants && twice.constants);
  EXPECT_TRUE(own.stream_constants().known());
  EXPECT_EQ(twice.constants->values, own.constants->values);
  EXPECT_EQ(twice.constants->sources, own.constants->sources);
  for (const auto& [from, to, message] :
       {std::tuple{"\"list_steps\"", "\"list_step\"", "x: constants.list_steps: missing"},
        {"\"value\": 0.5,", "\"value\": 1.5,",
         "x: constants.tile_row_reread_fraction.value: 1.5: must be in [0, 1]"},
        {"\"value\": 22000,", "\"value\": 2.5,",
         "x: constants.product_code_bytes.value: 2.5: must be a whole number"},
        {"\"constants\": {", "\"constants\": {\"a\": 1,",
         "x: constants.a: 1: is not a constant of the streams"}}) {
    std::string changed = text;
    ASSERT_NE(changed.find(from), std::string::npos) << from;
    changed.replace(changed.find(from), std::string_view(from).size(), to);
    EXPECT_EQ(test::error_text<FileError>([&] { parse_calibration(changed, "x"); }), message);
  }
  EXPECT_THROW(parse_calibration("{", "x"), FileError);
}

std::vector<Prediction> some_predictions() {
  std::vector<Prediction> predictions;
  for (int workload = 0; workload < 10; ++workload) {
    for (const char* stage : {"experts", "router_select"}) {
      const double bound = 1e-3 * (workload + 1);
      predictions.push_back({"omnimoe", "L1", std::to_string(workload), 0, "staircase", stage, "kernel",
                             "time_s", bound, bound, 2 * bound});
    }
  }
  return predictions;
}

TEST(SimValidation, DrawsAThirdOfThePointsWhateverTheOrderOfRows) {
  auto predictions = some_predictions();
  draw_held_out(predictions, HoldOut::kPoints, 3);
  auto reversed = some_predictions();
  std::ranges::reverse(reversed);
  draw_held_out(reversed, HoldOut::kPoints, 3);
  std::ranges::reverse(reversed);
  std::int64_t held = 0;
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    held += predictions[i].held_out ? 1 : 0;
    EXPECT_EQ(predictions[i].held_out, reversed[i].held_out);
    EXPECT_EQ(predictions[i].held_out, predictions[i ^ 1U].held_out);  // a point's stages go together
  }
  EXPECT_EQ(held, 8);
  auto other = some_predictions();
  draw_held_out(other, HoldOut::kPoints, 4);
  EXPECT_FALSE(std::ranges::equal(predictions, other, {}, &Prediction::held_out, &Prediction::held_out));
}

TEST(SimValidation, HoldsOutWholeShapesWhenAsked) {
  for (const std::uint64_t seed : {0U, 1U, 2U, 3U}) {
    std::vector<Prediction> predictions;
    for (int shape = 0; shape < 5; ++shape) {
      for (const char* schedule : {"staircase", "token_centric"}) {
        predictions.push_back({"omnimoe", std::to_string(shape), "gaussian:1", 0, schedule, "experts",
                               "kernel", "time_s", 1, 1, 2});
      }
    }
    draw_held_out(predictions, HoldOut::kShapes, seed);
    std::int64_t held = 0;
    for (std::size_t i = 0; i < predictions.size(); ++i) {
      held += predictions[i].held_out ? 1 : 0;
      EXPECT_EQ(predictions[i].held_out, predictions[i ^ 1U].held_out);  // both schedules of a shape
    }
    EXPECT_EQ(held, 4);  // two shapes: a third of 10 points, rounded up
  }
  auto one_shape = some_predictions();
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { draw_held_out(one_shape, HoldOut::kShapes, 0); }),
            "hold_out = shapes: needs rows of 3 shapes, there are 1");
  EXPECT_EQ(parse_hold_out("shapes"), HoldOut::kShapes);
  EXPECT_THROW(parse_hold_out("rows"), InvalidArgument);
}

TEST(SimValidation, FitsOnTheOthersAndReportsBothParts) {
  auto predictions = some_predictions();
  draw_held_out(predictions, HoldOut::kPoints, 3);
  const Calibration calibration =
      fit_calibration(predictions, "a GPU", "here",
                      SourcedConstants{{.sort_issue_per_pair = 3}, {{"sort_issue_per_pair", "rows"}}});
  ASSERT_EQ(calibration.fits.size(), 2U);
  EXPECT_EQ(calibration.stream_constants().sort_issue_per_pair, 3);  // carried over
  EXPECT_EQ(calibration.fits[0].points, 6);
  Table before = make_error_table();
  add_error_rows(before, predictions, "time_s", [](const Prediction&) { return "all"; });
  EXPECT_NE(before.text().find("50.0 %"), std::string::npos);
  for (Prediction& one : predictions) {
    one.predicted = calibration.fits[one.stage == "experts" ? 0 : 1].time_s(one.bound_s);
    EXPECT_NEAR(one.error(), 0, 1e-9);
  }
  predictions[5].predicted = 1;
  const auto worst = outliers(predictions, "time_s", 2);
  ASSERT_EQ(worst.size(), 2U);
  EXPECT_NE(worst[0].find(predictions[5].point() + " router_select"), std::string::npos);
  EXPECT_EQ(validation_figure(predictions, "t").panels.size(), 1U);
}

TEST(SimValidation, SummarisesErrors) {
  std::vector<Prediction> predictions;
  for (const double error : {0.5, 0.1, 0.2, 0.4, 0.3, 0.6, 0.7, 0.8, 0.9}) {
    predictions.push_back(
        {"omnimoe", "L1", "w", 0, "staircase", "experts", "kernel", "time_s", 1 + error, 1, 1, true});
  }
  predictions.push_back(
      {"omnimoe", "L1", "w", 0, "staircase", "experts", "kernel", "time_s", 0, 1, 91, true});
  const ErrorSummary summary = summarise_errors(predictions);
  EXPECT_EQ(summary.count, 10);
  EXPECT_DOUBLE_EQ(summary.median, 0.55);
  EXPECT_DOUBLE_EQ(summary.p90, 0.9);
  EXPECT_DOUBLE_EQ(summary.worst, 1.0);
  EXPECT_DOUBLE_EQ(summary.weighted, (4.5 + 91) / 100);
  EXPECT_EQ(summarise_errors({}).count, 0);
  EXPECT_EQ(target_text(predictions),
            "held out: time_s median 55.0 % (target missed: 10.0 %), time_s 90th percentile 90.0 % (target "
            "missed: 20.0 %)");
}

}  // namespace
}  // namespace moescope
