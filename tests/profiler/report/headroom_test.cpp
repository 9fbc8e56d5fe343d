#include "profiler/report/headroom.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

/// 1 TB/s, 100 Tflop/s of products, 10 Tflop/s of multiply-adds.
DeviceCeilings ceilings() {
  const auto ceiling = [](std::string_view metric, double rate) {
    Ceiling one;
    one.metric = metric;
    one.rate = rate;
    return one;
  };
  return {.device = "device",
          .ceilings = {ceiling(ceiling::kHbmCopy, 0.9e12), ceiling(ceiling::kHbmRead, 1e12),
                       ceiling(ceiling::kBf16Matrix, 100e12), ceiling(ceiling::kFp32, 10e12)}};
}

class Rows {
 public:
  Rows() { run_.header.device = "device"; }

  Rows& add(const char* schedule, Stage stage, const char* metric, double value, const char* reason = "") {
    ResultRow row;
    row.system = "omnimoe";
    row.backend = "cuda";
    row.num_tokens = 64;
    row.hidden_size = row.grid_rows = row.grid_cols = 16;
    row.top_k = 4;
    row.dtype = "bf16";
    row.gates = gates_;
    row.workload = "gaussian:1";
    row.schedule = schedule;
    row.stage = to_string(stage);
    row.source = std::string_view(metric) == "time_s" ? Source::kMeasured : Source::kAnalytic;
    row.metric = metric;
    row.value = value;
    row.reason = reason;
    run_.rows.push_back(row);
    return *this;
  }
  Rows& schedule(const char* name, double layer_us, double experts_us, double flop, bool deterministic,
                 double error, const char* reason = "") {
    add(name, Stage::kLayer, "time_s", layer_us * 1e-6, reason);
    add(name, Stage::kExperts, "time_s", experts_us * 1e-6);
    add(name, Stage::kExperts, "executed_flop", flop);
    add(name, Stage::kLayer, "deterministic", deterministic ? 1 : 0);
    add(name, Stage::kLayer, "relative_error", error);
    add(name, Stage::kRouterProject, "hbm_read_bytes", 9e6);
    add(name, Stage::kRouterProject, "hbm_write_bytes", 1e6);
    return add(name, Stage::kRouterProject, "executed_flop", 4e9);
  }
  Rows& gates(const char* text) {
    gates_ = text;
    return *this;
  }
  const RecordedRun& run() const { return run_; }

 private:
  RecordedRun run_;
  std::string gates_ = "softmax";
};

/// Experts: 30 MB at 1 TB/s take 30 us; 2 Gflop of products 20 us, token_centric's 0.25 Gflop 25 us.
/// Projection: 10 MB take 10 us, 4 Gflop 40 us.
Rows one_layer() {
  Rows rows;
  rows.add("none", Stage::kExperts, "floor_bytes", 30e6)
      .schedule("token_centric", 300, 200, 0.25e9, true, 1e-3)
      .schedule("staircase", 150, 90, 2e9, true, 2e-3)
      .schedule("staircase:atomics", 140, 80, 2e9, false, 3e-3)
      .schedule("dense_masked", 120, 60, 8e9, false, 2.5e-3)
      .schedule("auto", 300, 200, 0.25e9, true, 1e-3, "auto ran token_centric");
  return rows;
}

TEST(Headroom, AddsTheStagesFloorsAndTakesTheFastest) {
  const Rows rows = one_layer();
  const auto layers = recorded_layers({&rows.run(), 1});
  const auto all = headroom(layers, ceilings(), HeadroomStage::kLayer);
  ASSERT_EQ(all.size(), 1U);
  EXPECT_NEAR(all[0].floor_s, 70e-6, 1e-12);
  EXPECT_EQ(all[0].floor_by, "router_project flop");
  EXPECT_EQ(all[0].fastest.name, "dense_masked");
  EXPECT_NEAR(all[0].over_floor(), 120.0 / 70, 1e-9);
  EXPECT_EQ(all[0].repeatable.value().name, "staircase");
  EXPECT_EQ(all[0].chosen.value().name, "token_centric");
  EXPECT_NEAR(all[0].auto_loss().value(), 2, 1e-9);
  EXPECT_EQ(all[0].strips.value().name, "staircase:atomics");
  EXPECT_EQ(all[0].worst_error, 3e-3);
  EXPECT_EQ(all[0].worst_error_of, "staircase:atomics");
}

TEST(Headroom, OfTheExpertsAlone) {
  const Rows rows = one_layer();
  const auto layers = recorded_layers({&rows.run(), 1});
  const auto all = headroom(layers, ceilings(), HeadroomStage::kExperts);
  ASSERT_EQ(all.size(), 1U);
  EXPECT_NEAR(all[0].floor_s, 30e-6, 1e-12);
  EXPECT_EQ(all[0].floor_by, "experts hbm");
  EXPECT_NEAR(all[0].over_floor(), 2, 1e-9);
}

TEST(Headroom, SaysWhatHoldsOverAllLayers) {
  Rows rows = one_layer();
  rows.gates("probability")
      .add("none", Stage::kExperts, "floor_bytes", 30e6)
      .schedule("token_centric", 250, 200, 0.25e9, true, 1e-3)
      .schedule("auto", 250, 200, 0.25e9, true, 1e-3, "auto ran token_centric");
  const auto layers = recorded_layers({&rows.run(), 1});
  const auto all = headroom(layers, ceilings(), HeadroomStage::kLayer);
  ASSERT_EQ(all.size(), 2U);
  const std::string text = headroom_text(all);
  EXPECT_NE(text.find("2 layers: 1.500x in the mean, 2.00x at worst"), std::string::npos) << text;
  EXPECT_NE(text.find("it ran token_centric, staircase was faster"), std::string::npos) << text;
  EXPECT_NE(text.find("at 1 of 2 layers"), std::string::npos) << text;  // 120 / 70 and 250 / 70
  EXPECT_NE(text.find("1 layers: slower than 1.1x of it at 1; 1.17x at worst"), std::string::npos) << text;
  EXPECT_NE(text.find("3.00e-03 (staircase:atomics"), std::string::npos) << text;
  const std::string table = headroom_table(all).csv();
  EXPECT_LT(table.find("probability"), table.find("dense_masked")) << "the furthest first\n" << table;
}

TEST(Headroom, NeedsCeilingsAndLeavesOutWhatHasNoFloor) {
  const Rows rows = one_layer();
  const auto layers = recorded_layers({&rows.run(), 1});
  DeviceCeilings partial = ceilings();
  partial.ceilings.pop_back();
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              (void)headroom(layers, partial, HeadroomStage::kLayer);
            }).find("rows = device: has no fp32_flop_per_s among its rows"),
            0U);
  DeviceCeilings other = ceilings();
  other.device = "another";
  EXPECT_TRUE(headroom(layers, other, HeadroomStage::kLayer).empty());
  Rows timed;
  timed.add("staircase", Stage::kLayer, "time_s", 1e-4);
  const auto without = recorded_layers({&timed.run(), 1});
  EXPECT_TRUE(headroom(without, ceilings(), HeadroomStage::kLayer).empty());
}

}  // namespace
}  // namespace moescope
