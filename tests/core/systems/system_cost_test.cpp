// Analytic bytes and FLOP of the baselines, counted by hand on tiny layers.
#include "core/systems/system_cost.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

/// Every row selects the experts 0..k-1.
Routing lowest_ids(const SystemShape& shape) {
  const LayerShape row = shape.row_shape();
  Routing routing;
  routing.num_tokens = shape.num_queries();
  routing.grid_rows = row.grid_rows;
  routing.grid_cols = row.grid_cols;
  routing.token_offsets.push_back(0);
  for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
    for (std::int64_t k = 0; k < shape.top_k_per_query(); ++k) {
      routing.expert_ids.push_back(static_cast<std::int32_t>(k));
      routing.gates.push_back(1);
    }
    routing.token_offsets.push_back(routing.num_pairs());
  }
  return routing;
}

TEST(SystemCost, GShardCountsActiveExpertsAndPairs) {
  // L 5, d 8, N 6, f 12, K 2, fp32: experts 0 and 1 are active, 10 pairs.
  const SystemShape shape = test::system_shape(System::kGShard, 5, 8, 6, 2);
  const AnalyticCost cost = analytic_cost(shape, lowest_ids(shape));
  EXPECT_EQ(cost.useful_flop(Stage::kRouterProject), 2 * 5 * 8 * 6);
  EXPECT_EQ(cost.useful_flop(Stage::kExperts), 6 * 10 * 12 * 8 + 2 * 10 * 8);
  const std::int64_t weights = 3 * 2 * 12 * 8 * 4;
  const std::int64_t permutation = 2 * 10 * 4 + 7 * 8;
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kRead),
            permutation + 10 * 4 + weights + 5 * 8 * 4);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kWrite), 5 * 8 * 4);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kRead),
            permutation + 10 * 4 + weights + 10 * 8 * 4 + 10 * 12 * 4 + 10 * 8 * 4);
  EXPECT_EQ(expert_floor_bytes(shape, lowest_ids(shape)), weights + 2 * 5 * 8 * 4);
  EXPECT_EQ(cost.bytes(Stage::kSharedMlp, MemoryLevel::kHbm), 0);
}

TEST(SystemCost, FfnExpertsInOtherOrdersOfWork) {
  // The same layer. By token every pair reads its expert; masked all 6 experts run for all 5 tokens.
  const SystemShape shape = test::system_shape(System::kGShard, 5, 8, 6, 2);
  const Routing routing = lowest_ids(shape);
  const std::int64_t expert = 3 * 12 * 8 * 4;
  const std::int64_t ends = 2 * 10 * 4 + 5 * 8 * 4;
  const std::int64_t row_flop = 6 * 12 * 8 + 2 * 8;
  const AnalyticCost token = analytic_cost(shape, routing, ScheduleKind::kTokenCentric);
  EXPECT_EQ(token.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kRead), ends + 2 * expert);
  EXPECT_EQ(token.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kRead), ends + 10 * expert);
  EXPECT_EQ(token.executed_flop(Stage::kExperts), 10 * row_flop);
  EXPECT_EQ(token.bytes(Stage::kSchedule, MemoryLevel::kL2), 0);
  const AnalyticCost masked = analytic_cost(shape, routing, ScheduleKind::kDenseMasked);
  EXPECT_EQ(masked.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kRead), ends + 6 * expert);
  EXPECT_EQ(masked.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kRead), ends + 6 * expert + 30 * 12 * 4);
  EXPECT_EQ(masked.useful_flop(Stage::kExperts), 10 * row_flop);
  EXPECT_EQ(masked.executed_flop(Stage::kExperts), 30 * row_flop);
  EXPECT_EQ(
      test::error_text<InvalidArgument>([&] { analytic_cost(shape, routing, ScheduleKind::kStaircase); }),
      "schedule = staircase: is none of gshard");
}

TEST(SystemCost, ProductKeysCountQueriesOfEveryHead) {
  // L 3, d 8, N 16 (n 4), K 4 over 2 heads, k 6, fp32: experts 0 and 1 are active, 12 pairs.
  const SystemShape peer = test::system_shape(System::kPeer, 3, 8, 16, 4, 2);
  const AnalyticCost cost = analytic_cost(peer, lowest_ids(peer));
  EXPECT_EQ(cost.useful_flop(Stage::kRouterProject), 2 * 3 * 24 * 8 + 2 * (3 * 2) * 2 * 4 * 6);
  EXPECT_EQ(cost.bytes(Stage::kRouterSelect, MemoryLevel::kHbm, Access::kRead), 6 * 2 * 4 * 4);
  EXPECT_EQ(cost.bytes(Stage::kRouterSelect, MemoryLevel::kHbm, Access::kWrite), 7 * 8 + 12 * 8);
  EXPECT_EQ(cost.useful_flop(Stage::kExperts), 4 * 12 * 8);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kRead),
            12 * 8 + 3 * 8 * 4 + 2 * 2 * 8 * 4);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kRead),
            12 * 8 + 3 * 8 * 4 + 2 * 12 * 8 * 4);
  const SystemShape pkm = test::system_shape(System::kPkm, 3, 8, 16, 4, 2);
  const AnalyticCost values = analytic_cost(pkm, lowest_ids(pkm));
  EXPECT_EQ(values.useful_flop(Stage::kExpertCombine), 2 * 12 * 8);
  EXPECT_EQ(values.bytes(Stage::kExpertCombine, MemoryLevel::kHbm, Access::kRead), 12 * 8 + 2 * 8 * 4);
  EXPECT_EQ(expert_floor_bytes(pkm, lowest_ids(pkm)), 2 * 8 * 4 + 3 * 8 * 4);
}

TEST(SystemCost, ProductKeysMaskedTakeAllExpertsForEveryToken) {
  // L 3, d 8, N 16, K 4 over 2 heads, fp32: experts 0 and 1 are active, 12 pairs.
  const SystemShape peer = test::system_shape(System::kPeer, 3, 8, 16, 4, 2);
  const AnalyticCost cost = analytic_cost(peer, lowest_ids(peer), ScheduleKind::kDenseMasked);
  EXPECT_EQ(cost.useful_flop(Stage::kExperts), 4 * 12 * 8);
  EXPECT_EQ(cost.executed_flop(Stage::kExperts), 4 * 3 * 16 * 8);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kHbm, Access::kRead),
            12 * 8 + 3 * 8 * 4 + 2 * 16 * 8 * 4);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kRead),
            12 * 8 + 3 * 8 * 4 + 2 * 16 * 8 * 4 + 12 * 4 + 3 * 16 * 4);
  EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kL2, Access::kWrite), 3 * 8 * 4 + 2 * 3 * 16 * 4);
  const SystemShape pkm = test::system_shape(System::kPkm, 3, 8, 16, 4, 2);
  const AnalyticCost values = analytic_cost(pkm, lowest_ids(pkm), ScheduleKind::kDenseMasked);
  EXPECT_EQ(values.executed_flop(Stage::kExpertCombine), 2 * 3 * 16 * 8);
  EXPECT_EQ(values.bytes(Stage::kExpertCombine, MemoryLevel::kHbm, Access::kRead), 12 * 8 + 16 * 8 * 4);
  EXPECT_EQ(values.bytes(Stage::kExpertCombine, MemoryLevel::kL2, Access::kRead),
            12 * 8 + 16 * 8 * 4 + 3 * 16 * 4);
  EXPECT_EQ(values.bytes(Stage::kRouterProject, MemoryLevel::kL2),
            analytic_cost(pkm, lowest_ids(pkm)).bytes(Stage::kRouterProject, MemoryLevel::kL2));
  const SystemShape gshard = test::system_shape(System::kGShard, 5, 8, 6, 2);
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { (void)analytic_cost(gshard, lowest_ids(gshard), ScheduleKind::kStaircase); }),
            "schedule = staircase: is none of gshard");
}

TEST(SystemCost, TheDenseBranchAddsOnlyWhereThereIsARoutedOne) {
  const SystemShape dense = test::system_shape(System::kDenseMlp, 5, 8, 0, 0);  // width 20
  const AnalyticCost cost = analytic_cost(dense, lowest_ids(dense));
  EXPECT_EQ(cost.useful_flop(Stage::kLayer), 6 * 5 * 8 * 20);
  EXPECT_EQ(cost.bytes(Stage::kLayer, MemoryLevel::kHbm, Access::kRead), 5 * 8 * 4 + 3 * 20 * 8 * 4);
  EXPECT_EQ(expert_floor_bytes(dense, lowest_ids(dense)), 0);
  const SystemShape deepseek = test::system_shape(System::kDeepSeekMoe, 5, 8, 6, 2);
  EXPECT_EQ(analytic_cost(deepseek, lowest_ids(deepseek))
                .bytes(Stage::kSharedMlp, MemoryLevel::kHbm, Access::kRead),
            2 * 5 * 8 * 4 + 3 * 20 * 8 * 4);
}

TEST(SystemCost, ARoutingOfAnotherLayerIsRefused) {
  const SystemShape shape = test::system_shape(System::kPeer, 3, 8, 16, 4, 2);
  Routing routing = lowest_ids(shape);
  routing.grid_rows = 2;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { analytic_cost(shape, routing); }),
            "routing = 6 rows, grid 2 x 4: must have 6 rows, grid 4 x 4 for peer_L3_d8_N16_K4");
}

}  // namespace
}  // namespace moescope
