// The memory plan by hand; reference/backend/training_test.cpp holds it against what the mirror allocates.
#include "core/cost/memory_plan.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

constexpr TrainingLayout kStrips = {.strips = true, .operands = Dtype::kBF16};

// As in backward_traffic_test.cpp: 2 tokens, d = 8, grid 3 x 3, M = 5, bf16; two strips of one token and
// three experts.
class TinyPlan : public testing::Test {
 protected:
  LayerShape shape_ = test::make_shape(2, 8, 3, 3, 3, 4);
  Routing routing_ = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});
  Schedule schedule_ = build_schedule(routing_, {});

  MemoryPlan plan(SaveMode save, const TrainingLayout& layout, bool fixed = false) const {
    TrainingOptions training;
    training.save = save;
    return training_memory_plan(shape_, routing_, schedule_, fixed, false, training, layout);
  }
  std::int64_t saved(SaveMode save, const TrainingLayout& layout, bool fixed = false) const {
    return plan(save, layout, fixed).bytes(MemoryPart::kSaved);
  }
};

TEST_F(TinyPlan, OnStripsNothingOfThePairsIsSavedButTheirScores) {
  const std::int64_t lists = 2 * 4 + 3 * 8;  // two entries, two strips
  EXPECT_EQ(saved(SaveMode::kMinimal, kStrips), 12 * 2);
  EXPECT_EQ(saved(SaveMode::kLogProbs, kStrips), 12 * 2 + 2 * 6 * 4 + lists);
  EXPECT_EQ(saved(SaveMode::kScores, kStrips), 12 * 2 + 2 * 6 * 4 + lists + 6 * 2);
}

TEST_F(TinyPlan, OnListsThePairsAreSaved) {
  const std::int64_t routing = 5 * 8 + 3 * 8;
  EXPECT_EQ(saved(SaveMode::kMinimal, kMirrorLayout), 0);
  EXPECT_EQ(saved(SaveMode::kLogProbs, kMirrorLayout), 2 * 6 * 4 + routing + schedule_.bytes());
  EXPECT_EQ(saved(SaveMode::kScores, kMirrorLayout), 2 * 6 * 4 + routing + schedule_.bytes() + 5 * 4);
  EXPECT_EQ(saved(SaveMode::kMinimal, kMirrorLayout, true), schedule_.bytes());  // the routing is an input
}

TEST_F(TinyPlan, GradientsAreAsLargeAsTheirParameters) {
  MemoryPlan bf16 = plan(SaveMode::kLogProbs, kStrips);
  const std::int64_t rows = 2 * 9 + 6 + 3 * 4;  // W, V; Wr, Wc; gate, up, down
  EXPECT_EQ(bf16.bytes(MemoryPart::kGradient), 2 * 8 * 2 + rows * 8 * 2 + 4 * 4);
  TrainingOptions training;
  training.gradients = Dtype::kF32;
  const auto fp32 = training_memory_plan(shape_, routing_, schedule_, false, true, training, kStrips);
  EXPECT_EQ(fp32.bytes(MemoryPart::kGradient), 2 * 8 * 2 + rows * 8 * 4 + 4 * 4 + 6 * 4);
}

TEST_F(TinyPlan, PeakIsTheWorstStageBesideWhatIsSaved) {
  const MemoryPlan p = plan(SaveMode::kScores, kStrips);
  const std::int64_t sums = 2 * 8 * 4;
  const std::int64_t p_and_q = 2 * 6 * 2;
  const std::int64_t h = 6 * 2;
  EXPECT_EQ(p.working_bytes(Stage::kSharedMlpBackward), sums + 2 * 4 * (3 * 4 + 2));
  EXPECT_EQ(p.working_bytes(Stage::kExpertsDgrad), sums + p_and_q + h);
  EXPECT_EQ(p.working_bytes(Stage::kExpertsWgrad), sums + p_and_q + h);
  EXPECT_EQ(p.working_bytes(Stage::kRouterSelectBackward), sums + h + 2 * 6 * 4);
  EXPECT_EQ(p.working_bytes(Stage::kRouterProjectBackward), sums + 2 * 6 * 4 + 2 * 6 * (4 + 2));
  EXPECT_EQ(p.peak_bytes(), p.bytes(MemoryPart::kSaved) + sums + 2 * 6 * 4 + 2 * 6 * 6);
}

TEST_F(TinyPlan, StagesThatRunAgainAreNamed) {
  EXPECT_EQ(backward_stages(shape_, false, SaveMode::kMinimal),
            (std::vector<Stage>{Stage::kSharedMlpBackward, Stage::kRouterProject, Stage::kRouterSelect,
                                Stage::kSchedule, Stage::kExpertsDgrad, Stage::kExpertsWgrad,
                                Stage::kRouterSelectBackward, Stage::kRouterProjectBackward}));
  shape_.shared_size = 0;
  EXPECT_EQ(backward_stages(shape_, true, SaveMode::kMinimal),
            (std::vector<Stage>{Stage::kExpertsDgrad, Stage::kExpertsWgrad}));
}

TEST_F(TinyPlan, AnOptimizerHasItsStateAndItsWeights) {
  TrainingOptions training;
  const MemoryPlan without = training_memory_plan(shape_, routing_, schedule_, false, false, training, kStrips);
  training.optimizer = OptimizerForm::kTouched;
  const MemoryPlan with = training_memory_plan(shape_, routing_, schedule_, false, false, training, kStrips);
  EXPECT_EQ(with.stages.back(), Stage::kExpertsOptimizer);
  const std::int64_t elements = 2 * shape_.num_experts() * shape_.hidden_size;
  EXPECT_EQ(optimizer_state_bytes(shape_), elements * 12 + 2 * shape_.num_experts() * 4);
  EXPECT_EQ(with.bytes(MemoryPart::kInput) - without.bytes(MemoryPart::kInput), optimizer_state_bytes(shape_));
  EXPECT_EQ(with.bytes(MemoryPart::kGradient) - without.bytes(MemoryPart::kGradient),
            elements * dtype_bytes(shape_.dtype));
  EXPECT_EQ(with.peak_bytes(), without.peak_bytes());
}

TEST_F(TinyPlan, RefusesARoutingOfAnotherShape) {
  shape_.grid_cols = 4;
  EXPECT_THROW(plan(SaveMode::kScores, kStrips), InvalidArgument);
}

TEST(SaveMode, NamesAreRead) {
  for (const SaveMode mode : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
    EXPECT_EQ(parse_save_mode(to_string(mode)), mode);
  }
  EXPECT_THROW(parse_save_mode("all"), InvalidArgument);
}

}  // namespace
}  // namespace moescope
