// Analytic bytes and FLOP of the backward: terms by hand on a tiny layer, then what holds for any routing.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/layer/training.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using Lines = std::vector<std::string>;

// As in traffic_test.cpp: grid 3 x 3, d = 8, bf16, a row is 16 bytes, X 32; M = 5, E_active = 4, and a shared
// MLP of width 4. dX in fp32 is 64 bytes, logits 48. staircase: row strip 0 {token 1}, column strip 1
// {token 0}: 6 products, 5 distinct experts.
class TinyBackward : public testing::Test {
 protected:
  LayerShape shape_ = test::make_shape(2, 8, 3, 3, 3, 4);
  Routing routing_ = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});

  AnalyticCost cost(ScheduleKind kind, SaveMode save = SaveMode::kLogProbs, bool fixed = false) const {
    TrainingOptions training;
    training.save = save;
    return cost(kind, training, fixed);
  }
  AnalyticCost cost(ScheduleKind kind, const TrainingOptions& training, bool fixed = false) const {
    const Schedule schedule = build_schedule(routing_, {.kind = kind, .group_size = 3});
    return backward_cost(shape_, routing_, schedule, fixed, training);
  }
};

Lines backward_terms(const AnalyticCost& cost, Stage stage, MemoryLevel level) {
  Lines lines;
  for (const TrafficTerm& term : cost.traffic) {
    if (term.stage == stage && term.level == level && term.what != "schedule arrays") {
      lines.push_back(fmt::format("{} {} {}", to_string(term.access), term.bytes, term.what));
    }
  }
  std::ranges::sort(lines);
  return lines;
}

TEST_F(TinyBackward, TokenCentricGathersARowOfEitherMatrixForEveryPair) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric);
  EXPECT_EQ(backward_terms(c, Stage::kExpertsDgrad, MemoryLevel::kL2),
            (Lines{"read 20 expert_ids", "read 20 gates", "read 24 token_offsets", "read 32 X rows",
                   "read 32 dY rows", "read 64 sums of dX", "read 80 V rows", "read 80 W rows",
                   "write 20 gates' gradients", "write 20 p and q", "write 64 sums of dX"}));
  EXPECT_EQ(
      backward_terms(c, Stage::kExpertsDgrad, MemoryLevel::kHbm),
      (Lines{"read 20 expert_ids", "read 20 gates", "read 24 token_offsets", "read 32 X", "read 32 dY",
             "read 64 V rows of active experts", "read 64 W rows of active experts", "read 64 sums of dX",
             "write 20 gates' gradients", "write 20 p and q", "write 64 sums of dX"}));
  EXPECT_EQ(backward_terms(c, Stage::kExpertsWgrad, MemoryLevel::kL2),
            (Lines{"read 160 X and dY rows", "read 20 expert_ids", "read 20 p and q", "read 24 token_offsets",
                   "write 128 dW and dV of active experts", "write 160 zeros of other experts"}));
  EXPECT_EQ(c.useful_flop(Stage::kExpertsDgrad), 4 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExpertsDgrad), 6 * 8 * 5);  // z again
  EXPECT_EQ(c.useful_flop(Stage::kExpertsWgrad), 4 * 8 * 5);
}

TEST_F(TinyBackward, StaircaseStoresByRowsAndAddsByColumns) {
  const AnalyticCost c = cost(ScheduleKind::kStaircase);
  EXPECT_EQ(backward_terms(c, Stage::kExpertsWgrad, MemoryLevel::kL2),
            (Lines{"read 20 expert_ids", "read 24 p and q", "read 64 X and dY rows",
                   "read 96 dW and dV that columns add to", "write 128 zeros of other experts",
                   "write 192 dW and dV of every item"}));
  EXPECT_EQ(c.executed_flop(Stage::kExpertsWgrad), 4 * 8 * 6);
  EXPECT_EQ(c.executed_flop(Stage::kExpertsDgrad), 6 * 8 * 6);
}

TEST_F(TinyBackward, TouchedRowsAloneTakeTheZerosAwayWhereRowsAreGathered) {
  TrainingOptions training;
  training.form = GradientForm::kTouched;
  EXPECT_EQ(backward_terms(cost(ScheduleKind::kTokenCentric, training), Stage::kExpertsWgrad, MemoryLevel::kHbm),
            (Lines{"read 20 expert_ids", "read 20 p and q", "read 24 token_offsets", "read 64 X and dY",
                   "write 128 dW and dV of active experts"}));
  // Strips and products write whole tiles as ever.
  for (const ScheduleKind kind : {ScheduleKind::kStaircase, ScheduleKind::kDenseMasked}) {
    EXPECT_EQ(cost(kind, training).bytes(Stage::kLayer, MemoryLevel::kHbm),
              cost(kind).bytes(Stage::kLayer, MemoryLevel::kHbm));
  }
  EXPECT_EQ(backward_floor_bytes(shape_, routing_, {}) - backward_floor_bytes(shape_, routing_, training),
            2 * 5 * 16);
}

TEST_F(TinyBackward, AddedGradientsAreReadAndLeaveOtherRowsAlone) {
  TrainingOptions training;
  training.form = GradientForm::kAdded;
  EXPECT_EQ(backward_terms(cost(ScheduleKind::kTokenCentric, training), Stage::kExpertsWgrad, MemoryLevel::kL2),
            (Lines{"read 128 dW and dV that are added to", "read 160 X and dY rows", "read 20 expert_ids",
                   "read 20 p and q", "read 24 token_offsets", "write 128 dW and dV of active experts"}));
  EXPECT_EQ(backward_terms(cost(ScheduleKind::kStaircase, training), Stage::kExpertsWgrad, MemoryLevel::kL2),
            (Lines{"read 192 dW and dV of every item", "read 20 expert_ids", "read 24 p and q",
                   "read 64 X and dY rows", "write 192 dW and dV of every item"}));
  EXPECT_EQ(backward_floor_bytes(shape_, routing_, training) - backward_floor_bytes(shape_, routing_, {}),
            (4 * 4 - 2 * 9) * 16);
}

TEST_F(TinyBackward, TheOptimizersStepIsOfTouchedRowsOrOfAll) {
  TrainingOptions training;
  for (const auto& [form, rows] :
       {std::pair(OptimizerForm::kTouched, 4), std::pair(OptimizerForm::kDense, 9)}) {
    training.optimizer = form;
    const AnalyticCost c = cost(ScheduleKind::kTokenCentric, training);
    const auto step = optimizer_cost(shape_, rows, training).bytes(Stage::kExpertsOptimizer, MemoryLevel::kHbm);
    EXPECT_EQ(c.bytes(Stage::kExpertsOptimizer, MemoryLevel::kHbm), step);
    EXPECT_EQ(c.bytes(Stage::kLayer, MemoryLevel::kHbm),
              cost(ScheduleKind::kTokenCentric).bytes(Stage::kLayer, MemoryLevel::kHbm) + step);
  }
}

TEST_F(TinyBackward, RouterAndSharedMlpByHand) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric);
  EXPECT_EQ(backward_terms(c, Stage::kRouterSelectBackward, MemoryLevel::kHbm),
            (Lines{"read 20 expert_ids", "read 20 gates", "read 20 gates' gradients", "read 24 token_offsets",
                   "write 48 logits' gradients"}));
  EXPECT_EQ(backward_terms(c, Stage::kRouterProjectBackward, MemoryLevel::kHbm),
            (Lines{"read 32 X", "read 48 logits' gradients", "read 64 sums of dX", "read 96 Wr and Wc",
                   "write 32 dX", "write 96 dWr and dWc"}));
  EXPECT_EQ(c.useful_flop(Stage::kRouterProjectBackward), 4 * 2 * 8 * 6);
  EXPECT_EQ(backward_terms(c, Stage::kSharedMlpBackward, MemoryLevel::kHbm),
            (Lines{"read 192 gate, up and down weights", "read 32 X", "read 32 dY",
                   "write 192 gradients of gate, up and down", "write 64 sums of dX"}));
  EXPECT_EQ(c.useful_flop(Stage::kSharedMlpBackward), 12 * 2 * 8 * 4);
  EXPECT_EQ(c.executed_flop(Stage::kSharedMlpBackward), 16 * 2 * 8 * 4);
}

TEST_F(TinyBackward, SavedScoresTakeAProductAndTheReadOfXAway) {
  const AnalyticCost again = cost(ScheduleKind::kStaircase);
  const AnalyticCost saved = cost(ScheduleKind::kStaircase, SaveMode::kScores);
  EXPECT_EQ(saved.executed_flop(Stage::kExpertsDgrad), 4 * 8 * 6);
  const auto difference = again.bytes(Stage::kExpertsDgrad, MemoryLevel::kHbm) -
                          saved.bytes(Stage::kExpertsDgrad, MemoryLevel::kHbm);
  EXPECT_EQ(difference, 32 - 12);  // X against z of two tiles
}

TEST_F(TinyBackward, MinimalStateRunsTheRouterAgain) {
  const AnalyticCost minimal = cost(ScheduleKind::kStaircase, SaveMode::kMinimal);
  const AnalyticCost kept = cost(ScheduleKind::kStaircase);
  EXPECT_EQ(minimal.useful_flop(Stage::kRouterProject), 2 * 2 * 8 * 6);
  EXPECT_EQ(kept.useful_flop(Stage::kRouterProject), 0);
  EXPECT_GT(minimal.bytes(Stage::kRouterSelect, MemoryLevel::kHbm), 0);
}

TEST_F(TinyBackward, AGivenRoutingEndsWithTheExperts) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric, SaveMode::kMinimal, true);
  for (const Stage stage :
       {Stage::kRouterProject, Stage::kRouterSelectBackward, Stage::kRouterProjectBackward}) {
    EXPECT_EQ(c.bytes(stage, MemoryLevel::kL2), 0);
  }
  const Lines lines = backward_terms(c, Stage::kExpertsDgrad, MemoryLevel::kHbm);
  EXPECT_NE(std::ranges::find(lines, "write 32 dX"), lines.end());
}

TEST_F(TinyBackward, BalanceLossIsTwoProductsOnTheGridsFactors) {
  const Schedule schedule = build_schedule(routing_, {});
  TrainingOptions training;
  training.losses = {.balance = 1, .z = 1};
  const AnalyticCost c = backward_cost(shape_, routing_, schedule, false, training);
  EXPECT_EQ(c.useful_flop(Stage::kRouterSelectBackward), 4 * 2 * 9);
}

TEST_F(TinyBackward, RefusesAutoAndAForeignRouting) {
  Schedule schedule = build_schedule(routing_, {});
  schedule.kind = ScheduleKind::kAuto;
  EXPECT_THROW(backward_cost(shape_, routing_, schedule, false, {}), InternalError);
  shape_.num_tokens = 3;
  EXPECT_THROW(backward_cost(shape_, routing_, build_schedule(routing_, {}), false, {}), InvalidArgument);
}

// fp32 weights and two moments read and written, bf16 gradient read, bf16 weights written: 28 bytes a
// parameter, and the last step of every row.
TEST_F(TinyBackward, OptimizerMovesTwentyEightBytesAParameter) {
  for (const std::int64_t rows : {0, 4, 9}) {
    const AnalyticCost c = optimizer_cost(shape_, rows, {});
    EXPECT_EQ(c.bytes(Stage::kExpertsOptimizer, MemoryLevel::kHbm), 2 * rows * (8 * 28 + 8));
    EXPECT_EQ(c.bytes(Stage::kLayer, MemoryLevel::kL2), c.bytes(Stage::kLayer, MemoryLevel::kHbm));
  }
  EXPECT_THROW(optimizer_cost(shape_, 10, {}), InvalidArgument);
}

class BackwardOfRouting : public testing::TestWithParam<RoutingCase> {};

TEST_P(BackwardOfRouting, NeedsFourProductsAndNoLessThanTheFloor) {
  const LayerShape& shape = GetParam().shape;
  const Routing routing = test::make_routing(GetParam(), 9);
  const std::int64_t product = 2 * routing.num_pairs() * shape.hidden_size;
  for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                                  ScheduleKind::kStaircase, ScheduleKind::kDenseMasked}) {
    const AnalyticCost c = backward_cost(shape, routing, build_schedule(routing, {.kind = kind}), false, {});
    EXPECT_EQ(c.useful_flop(Stage::kExpertsDgrad) + c.useful_flop(Stage::kExpertsWgrad), 4 * product);
    EXPECT_GE(c.executed_flop(Stage::kExpertsDgrad), 3 * product) << to_string(kind);
    const auto experts =
        c.bytes(Stage::kExpertsDgrad, MemoryLevel::kHbm) + c.bytes(Stage::kExpertsWgrad, MemoryLevel::kHbm);
    EXPECT_GE(experts, backward_floor_bytes(shape, routing, {})) << to_string(kind);
    std::int64_t sum = 0;
    for (const Stage stage : kStages) {
      if (stage == Stage::kLayer) continue;
      EXPECT_TRUE(c.bytes(stage, MemoryLevel::kL2) == 0 || direction_of(stage) == Direction::kBackward);
      sum += c.bytes(stage, MemoryLevel::kL2);
    }
    EXPECT_EQ(c.bytes(Stage::kLayer, MemoryLevel::kL2), sum);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, BackwardOfRouting, testing::ValuesIn(test::routing_cases()),
                         [](const auto& test_info) { return test_info.param.name(); });

}  // namespace
}  // namespace moescope
