// Which road a layer takes, what it says of itself, and what it holds: arithmetic, no GPU needed.
#include "kernels/layer/expert_path.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/layer/layer_plan.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr std::int64_t kHopper = 90;

LayerDesign design(const char* schedule, Dtype dtype = Dtype::kBF16, bool fixed_routing = false,
                   std::int64_t compute_capability = kHopper) {
  LayerShape shape = test::make_shape(600, 256, 64, 48, 32, 128);
  shape.dtype = dtype;
  return {shape, parse_schedule(schedule), fixed_routing, test::large_gpu(compute_capability)};
}

bool strips_built() {
  return experts_staircase_supported(design("staircase").shape, test::large_gpu(kHopper));
}

std::string kernels_of(const LayerDesign& of) {
  std::string all;
  const auto path = make_expert_path(of);
  for (const Stage stage : layer_stages(*path)) {
    if (stage != Stage::kRouterProject && stage != Stage::kSharedMlp) {
      all += (all.empty() ? "" : ", ") + path->kernels(stage);
    }
  }
  return all;
}

TEST(ExpertPath, EachScheduleTakesItsRoad) {
  EXPECT_EQ(kernels_of(design("token_centric")), "router_select, experts_token_centric");
  EXPECT_EQ(kernels_of(design("expert_centric")), "router_select, schedule, experts_tiles + round_output");
  EXPECT_EQ(kernels_of(design("dense_masked")), "router_select, experts_dense_masked + round_output");
  EXPECT_EQ(kernels_of(design("sparse_library")), "router_select, experts_sparse_library + round_output");
  EXPECT_EQ(kernels_of(design("token_centric", Dtype::kBF16, true)), "experts_token_centric");
}

TEST(ExpertPath, StaircaseIsOnStripsOnlyWhereTheKernelAndTheScoresAreThere) {
  const char* const apart = "router_select, schedule, expert_scores_tiles, expert_combine + round_output";
  for (const LayerDesign& pairs :
       {design("staircase", Dtype::kF32), design("staircase", Dtype::kBF16, false, 80),
        design("staircase", Dtype::kBF16, false, 100)}) {
    EXPECT_EQ(kernels_of(pairs), apart);
    EXPECT_TRUE(make_expert_path(pairs)->deterministic());
  }
  EXPECT_EQ(kernels_of(design("staircase", Dtype::kBF16, true)),
            "schedule, expert_scores_tiles, expert_combine + round_output");
  EXPECT_EQ(kernels_of(design("staircase:atomics", Dtype::kF32)),
            "router_select, schedule, experts_tiles + round_output");
  EXPECT_FALSE(make_expert_path(design("staircase:atomics", Dtype::kF32))->deterministic());
  if (!strips_built()) {
    GTEST_SKIP() << "this build has no code for strips";
  }
  EXPECT_EQ(
      kernels_of(design("staircase")),
      "router_select_strips, schedule_strips, staircase_prepare + experts_staircase<fixed-point sums> + "
      "round_output");
  EXPECT_EQ(kernels_of(design("staircase:rows:atomics")),
            "router_select_strips, schedule_strips, staircase_prepare + experts_staircase<fp16 sums> + "
            "round_output");
}

TEST(ExpertPath, RowsAloneHaveNoOtherRoadThanStrips) {
  std::string why;
  for (const LayerDesign& none :
       {design("staircase:rows", Dtype::kF32), design("staircase:rows", Dtype::kBF16, true),
        design("staircase:rows", Dtype::kBF16, false, 80)}) {
    EXPECT_FALSE(has_expert_path(none, why));
    EXPECT_NE(why.find("bf16"), std::string::npos) << why;
    EXPECT_THROW((void)make_expert_path(none), InvalidArgument);
  }
  EXPECT_EQ(has_expert_path(design("staircase:rows"), why), strips_built());
  LayerDesign tiled = design("staircase");
  tiled.options.tile_tokens = kStripTileTokens + 1;
  EXPECT_THROW((void)make_expert_path(tiled), InvalidArgument);
  LayerDesign automatic = design("staircase");
  automatic.options.kind = ScheduleKind::kAuto;
  EXPECT_THROW((void)make_expert_path(automatic), InternalError);
}

TEST(ExpertPath, StagesOfALayerStandInTheOrderTheyDependOnEachOther) {
  using enum Stage;
  EXPECT_EQ(layer_stages(*make_token_centric_path(design("token_centric"))),
            (std::vector{kRouterProject, kRouterSelect, kSharedMlp, kExperts}));
  EXPECT_EQ(
      layer_stages(*make_tiles_path(design("staircase"))),
      (std::vector{kRouterProject, kRouterSelect, kSchedule, kSharedMlp, kExpertScores, kExpertCombine}));
  EXPECT_EQ(layer_stages(*make_strips_path(design("staircase"))),
            (std::vector{kRouterProject, kRouterSelect, kSchedule, kSharedMlp, kExperts}));
  EXPECT_EQ(layer_stages(*make_dense_masked_path(design("dense_masked", Dtype::kF32, true))),
            (std::vector{kSharedMlp, kExperts}));
}

TEST(ExpertPath, OnlyStripsListNoPairs) {
  EXPECT_EQ(make_strips_path(design("staircase"))->memory().routing, 0);
  EXPECT_TRUE(make_strips_path(design("staircase"))->reads_logits());
  for (const auto& path :
       {make_tiles_path(design("staircase")), make_token_centric_path(design("token_centric")),
        make_dense_masked_path(design("dense_masked")), make_sparse_library_path(design("sparse_library"))}) {
    EXPECT_EQ(path->memory().routing, 600 * 32 * 8);
    EXPECT_FALSE(path->reads_logits());
  }
}

TEST(LayerMemory, TokenCentricAndStaircaseOnStripsNeedLessThan64MiBBesideTheLayer) {
  const LayerShape shape = test::make_shape(4096, 1024, 320, 320, 512, 1024);
  const auto of = [&](const char* schedule) {
    return LayerDesign{shape, parse_schedule(schedule), false, test::large_gpu()};
  };
  for (const auto& path : {make_token_centric_path(of("token_centric")), make_strips_path(of("staircase")),
                           make_strips_path(of("staircase:atomics"))}) {
    const LayerMemoryPlan plan = plan_layer_memory(*path);
    EXPECT_LT(plan.stages.back().workspace_bytes, std::int64_t{64} << 20)
        << to_string(path->design().options);
    for (const StageMemory& stage : plan.stages) {
      EXPECT_LE(stage.workspace_bytes, plan.stages.back().workspace_bytes) << to_string(stage.stage);
    }
  }
}

TEST(LayerMemory, RefusesShapesThatTheKernelsCannotIndex) {
  LayerShape shape = test::make_shape(1 << 20, 8, 64, 64, 2048);
  EXPECT_NO_THROW(require_gpu_shape(shape, ScheduleKind::kTokenCentric));
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              require_gpu_shape(shape, ScheduleKind::kStaircase);
            }).find("num_tokens * top_k = 2147483648"),
            std::string::npos);
  shape.hidden_size = 12;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { require_gpu_shape(shape, ScheduleKind::kTokenCentric); }),
            "hidden_size = 12: must be a multiple of 8 on the GPU");
}

}  // namespace
}  // namespace moescope
