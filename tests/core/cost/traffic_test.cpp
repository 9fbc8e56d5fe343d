// Analytic bytes and FLOP: every term by hand on a tiny layer, then properties that hold for any routing.
#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using test::RoutingSkew;

// Grid 3 x 3, d = 8, bf16: a row of W, V, X or Y is 16 bytes, X is 32.
// Token 0 selects column 1 (experts 1 4 7), token 1 two cells of row 0 (experts 0 1): M = 5, E_active = 4.
// token_offsets 3 * 8 = 24, expert_ids 5 * 4 = 20, gates 20.
// staircase: row strip 0 {token 1}, column strip 1 {token 0}; they hold 5 distinct experts, 1 of them
// inactive. expert_centric, B = 3: {0 1 4} with both tokens, {7} with token 0.
class TinyLayer : public testing::Test {
 protected:
  LayerShape shape_ = test::make_shape(2, 8, 3, 3, 3, 4);
  Routing routing_ = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});

  Schedule schedule(ScheduleKind kind, bool deterministic = true) const {
    return build_schedule(routing_, {.kind = kind, .group_size = 3, .deterministic = deterministic});
  }
  AnalyticCost cost(ScheduleKind kind, bool deterministic = true) const {
    return analytic_cost(shape_, routing_, schedule(kind, deterministic));
  }
};

/// "read 32 X" for every term of a stage at a level.
std::vector<std::string> terms(const AnalyticCost& cost, Stage stage, MemoryLevel level) {
  std::vector<std::string> lines;
  for (const TrafficTerm& term : cost.traffic) {
    if (term.stage != stage || term.level != level) continue;
    lines.push_back(fmt::format("{} {} {}", to_string(term.access), term.bytes, term.what));
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

using Lines = std::vector<std::string>;

/// The line of the schedule's own arrays, in its place of the sorted list.
Lines with_schedule_arrays(Lines lines, std::string_view access, const Schedule& schedule) {
  lines.push_back(fmt::format("{} {} schedule arrays", access, schedule.bytes()));
  std::sort(lines.begin(), lines.end());
  return lines;
}

TEST_F(TinyLayer, RouterReadsXAndItsWeightsAndWritesLogitsThenCsr) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric);
  for (const MemoryLevel level : {MemoryLevel::kHbm, MemoryLevel::kL2}) {
    EXPECT_EQ(terms(c, Stage::kRouterProject, level),
              (Lines{"read 32 X", "read 48 Wc", "read 48 Wr", "write 48 row and column logits"}));
    EXPECT_EQ(terms(c, Stage::kRouterSelect, level),
              (Lines{"read 48 row and column logits", "write 20 expert_ids", "write 20 gates",
                     "write 24 token_offsets"}));
  }
  EXPECT_EQ(c.useful_flop(Stage::kRouterProject), 2 * 2 * 8 * 6);
  EXPECT_EQ(c.executed_flop(Stage::kRouterProject), 2 * 2 * 8 * 6);
}

TEST_F(TinyLayer, ScheduleReadsTheCsrAndWritesItsArrays) {
  for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kStaircase}) {
    for (const MemoryLevel level : {MemoryLevel::kHbm, MemoryLevel::kL2}) {
      EXPECT_EQ(
          terms(cost(kind), Stage::kSchedule, level),
          with_schedule_arrays({"read 20 expert_ids", "read 24 token_offsets"}, "write", schedule(kind)));
    }
  }
}

TEST_F(TinyLayer, TokenCentricReadsARowOfWAndVForEveryPair) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric);
  EXPECT_EQ(terms(c, Stage::kExperts, MemoryLevel::kL2),
            (Lines{"read 20 expert_ids", "read 20 gates", "read 24 token_offsets", "read 32 X",
                   "read 80 V row of every pair", "read 80 W row of every pair", "write 32 Y"}));
  EXPECT_EQ(terms(c, Stage::kExperts, MemoryLevel::kHbm),
            (Lines{"read 20 expert_ids", "read 20 gates", "read 24 token_offsets", "read 32 X",
                   "read 64 V rows of active experts", "read 64 W rows of active experts", "write 32 Y"}));
  EXPECT_EQ(c.useful_flop(Stage::kExperts), 4 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExperts), 4 * 8 * 5);
}

TEST_F(TinyLayer, ExpertCentricReadsGroupsOnceAndScattersRowsOfDistinctTokens) {
  const AnalyticCost c = cost(ScheduleKind::kExpertCentric);
  // 3 (group, token) entries: 48 bytes of X, 96 of fp32 Y; P: 2 x 3 + 1 x 1 = 7 entries of 2 bytes.
  EXPECT_EQ(
      terms(c, Stage::kExperts, MemoryLevel::kL2),
      with_schedule_arrays(
          {"read 14 P of every group", "read 20 expert_ids", "read 20 gates", "read 48 X rows of every item",
           "read 64 V rows of every item", "read 64 W rows of every item", "read 64 Y accumulator rounded",
           "read 96 Y accumulator rows added to", "write 14 P of every group", "write 32 Y",
           "write 64 Y accumulator cleared", "write 96 Y accumulator rows added to"},
          "read", schedule(ScheduleKind::kExpertCentric)));
  EXPECT_EQ(terms(c, Stage::kExperts, MemoryLevel::kHbm),
            with_schedule_arrays(
                {"read 20 expert_ids", "read 20 gates", "read 32 X", "read 64 V rows of active experts",
                 "read 64 W rows of active experts", "write 32 Y"},
                "read", schedule(ScheduleKind::kExpertCentric)));
  EXPECT_EQ(c.useful_flop(Stage::kExperts), 4 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExperts), 4 * 8 * 7);
}

TEST_F(TinyLayer, StaircaseReadsWholeStripsAndKeepsPartialRowsWhenDeterministic) {
  const AnalyticCost c = cost(ScheduleKind::kStaircase);
  // 2 strips of 3 experts, one token each.
  EXPECT_EQ(terms(c, Stage::kExperts, MemoryLevel::kL2),
            with_schedule_arrays({"read 20 expert_ids", "read 20 gates", "read 32 X rows of every item",
                                  "read 64 partial Y rows", "read 96 V rows of every item",
                                  "read 96 W rows of every item", "write 32 Y", "write 64 partial Y rows"},
                                 "read", schedule(ScheduleKind::kStaircase)));
  EXPECT_EQ(terms(c, Stage::kExperts, MemoryLevel::kHbm),
            with_schedule_arrays({"read 16 V rows of inactive experts in strips",
                                  "read 16 W rows of inactive experts in strips", "read 20 expert_ids",
                                  "read 20 gates", "read 32 X", "read 64 V rows of active experts",
                                  "read 64 W rows of active experts", "write 32 Y"},
                                 "read", schedule(ScheduleKind::kStaircase)));
  EXPECT_EQ(c.useful_flop(Stage::kExperts), 4 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExperts), 4 * 8 * 6);
}

TEST_F(TinyLayer, StaircaseAddsIntoYWhenItNeedNotRepeatBits) {
  EXPECT_EQ(
      terms(cost(ScheduleKind::kStaircase, false), Stage::kExperts, MemoryLevel::kL2),
      with_schedule_arrays({"read 20 expert_ids", "read 20 gates", "read 32 X rows of every item",
                            "read 64 Y accumulator rounded", "read 64 Y accumulator rows added to",
                            "read 96 V rows of every item", "read 96 W rows of every item", "write 32 Y",
                            "write 64 Y accumulator cleared", "write 64 Y accumulator rows added to"},
                           "read", schedule(ScheduleKind::kStaircase, false)));
}

TEST_F(TinyLayer, DenseMaskedReadsEverythingAndPassesWholeMatrices) {
  const AnalyticCost c = cost(ScheduleKind::kDenseMasked);
  // 9 experts of 16 bytes; S 2 x 9 in fp32, read at the 5 pairs; P 2 x 9 in bf16.
  EXPECT_EQ(terms(c, Stage::kExpertScores, MemoryLevel::kL2),
            (Lines{"read 144 W", "read 20 S of pairs", "read 20 expert_ids", "read 20 gates",
                   "read 24 token_offsets", "read 32 X", "write 36 P", "write 72 S"}));
  EXPECT_EQ(terms(c, Stage::kExpertCombine, MemoryLevel::kL2),
            (Lines{"read 144 V", "read 36 P", "write 32 Y"}));
  EXPECT_EQ(terms(c, Stage::kExpertScores, MemoryLevel::kHbm),
            (Lines{"read 20 S of pairs", "read 20 expert_ids", "read 20 gates", "read 24 token_offsets",
                   "read 32 X", "read 64 W rows of active experts", "read 80 W rows of inactive experts",
                   "write 36 P", "write 72 S"}));
  EXPECT_EQ(terms(c, Stage::kExpertCombine, MemoryLevel::kHbm),
            (Lines{"read 36 P", "read 64 V rows of active experts", "read 80 V rows of inactive experts",
                   "write 32 Y"}));
  EXPECT_EQ(c.useful_flop(Stage::kExpertScores), 2 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExpertScores), 2 * 8 * 2 * 9);
  EXPECT_EQ(c.useful_flop(Stage::kExpertCombine), 2 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExpertCombine), 2 * 8 * 2 * 9);
}

TEST_F(TinyLayer, SparseLibraryPassesScoresOfPairsThroughMemory) {
  const AnalyticCost c = cost(ScheduleKind::kSparseLibrary);
  EXPECT_EQ(
      terms(c, Stage::kExpertScores, MemoryLevel::kL2),
      (Lines{"read 20 expert_ids", "read 20 gates", "read 20 scores before sigma", "read 24 token_offsets",
             "read 32 X", "read 80 W row of every pair", "write 20 scores", "write 20 scores before sigma"}));
  EXPECT_EQ(terms(c, Stage::kExpertCombine, MemoryLevel::kL2),
            (Lines{"read 20 expert_ids", "read 20 scores", "read 24 token_offsets",
                   "read 80 V row of every pair", "write 32 Y"}));
  EXPECT_EQ(terms(c, Stage::kExpertScores, MemoryLevel::kHbm),
            (Lines{"read 20 expert_ids", "read 20 gates", "read 24 token_offsets", "read 32 X",
                   "read 64 W rows of active experts", "write 20 scores"}));
  EXPECT_EQ(terms(c, Stage::kExpertCombine, MemoryLevel::kHbm),
            (Lines{"read 20 expert_ids", "read 20 scores", "read 24 token_offsets",
                   "read 64 V rows of active experts", "write 32 Y"}));
  EXPECT_EQ(c.executed_flop(Stage::kExpertScores), 2 * 8 * 5);
  EXPECT_EQ(c.executed_flop(Stage::kExpertCombine), 2 * 8 * 5);
}

TEST_F(TinyLayer, SharedMlpReadsThreeMatricesAndItsHiddenStaysInTheCache) {
  const AnalyticCost c = cost(ScheduleKind::kTokenCentric);
  // h = 4: a weight matrix is 4 x 16 = 64 bytes; [L, h] in bf16 is 16.
  EXPECT_EQ(terms(c, Stage::kSharedMlp, MemoryLevel::kHbm),
            (Lines{"read 32 X", "read 32 routed Y to add to", "read 64 down weights", "read 64 gate weights",
                   "read 64 up weights", "write 32 Y"}));
  EXPECT_EQ(terms(c, Stage::kSharedMlp, MemoryLevel::kL2),
            (Lines{"read 16 hidden activations", "read 32 X", "read 32 gate and up activations",
                   "read 32 routed Y to add to", "read 64 down weights", "read 64 gate weights",
                   "read 64 up weights", "write 16 hidden activations", "write 32 Y",
                   "write 32 gate and up activations"}));
  EXPECT_EQ(c.useful_flop(Stage::kSharedMlp), 6 * 2 * 8 * 4);
}

TEST_F(TinyLayer, WithoutSharedMlpHasNoSuchStage) {
  shape_.shared_size = 0;
  EXPECT_TRUE(terms(cost(ScheduleKind::kTokenCentric), Stage::kSharedMlp, MemoryLevel::kL2).empty());
  EXPECT_EQ(cost(ScheduleKind::kTokenCentric).useful_flop(Stage::kSharedMlp), 0);
}

TEST_F(TinyLayer, StoresTwiceTheWeightBytesInFp32) {
  const std::int64_t bf16 = expert_floor_bytes(shape_, routing_);
  EXPECT_EQ(bf16, (4 + 4 + 2 + 2) * 16);
  shape_.dtype = Dtype::kF32;
  EXPECT_EQ(expert_floor_bytes(shape_, routing_), 2 * bf16);
}

TEST_F(TinyLayer, RefusesARoutingOfAnotherShape) {
  const Schedule s = schedule(ScheduleKind::kTokenCentric);
  const auto message = [&] {
    try {
      analytic_cost(shape_, routing_, s);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  shape_.num_tokens = 5;
  EXPECT_EQ(message(), "num_tokens = 5: must be 2 as in the routing");
  shape_.num_tokens = 2;
  shape_.grid_cols = 4;
  EXPECT_EQ(message(), "grid_cols = 4: must be 3 as in the routing");
}

TEST_F(TinyLayer, RefusesTermsThatDoNotFit64Bits) {
  shape_.hidden_size = std::int64_t{1} << 30;
  shape_.shared_size = std::int64_t{1} << 30;
  try {
    cost(ScheduleKind::kTokenCentric);
    FAIL() << "6 L d h is about 2^64";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("must stay below 2^57"), std::string::npos) << error.what();
  }
}

/// Bytes of W and V that the expert stages read at a level.
std::int64_t weight_bytes(const AnalyticCost& cost, MemoryLevel level) {
  std::int64_t sum = 0;
  for (const TrafficTerm& term : cost.traffic) {
    const bool expert_stage = term.stage == Stage::kExperts || term.stage == Stage::kExpertScores ||
                              term.stage == Stage::kExpertCombine;
    const bool weights = term.what.starts_with('W') || term.what.starts_with('V');
    if (expert_stage && weights && term.level == level) sum += term.bytes;
  }
  return sum;
}

class CostOfRouting : public testing::TestWithParam<RoutingCase> {
 protected:
  static constexpr std::array kKinds = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                                        ScheduleKind::kStaircase, ScheduleKind::kDenseMasked,
                                        ScheduleKind::kSparseLibrary};
};

TEST_P(CostOfRouting, IsNeverBelowTheFloorAndRequestsNoLessThanCompulsory) {
  const LayerShape& shape = GetParam().shape;
  const Routing routing = test::make_routing(GetParam(), 9);
  const std::int64_t floor = expert_floor_bytes(shape, routing);
  for (const ScheduleKind kind : kKinds) {
    for (const bool deterministic : {false, true}) {
      const Schedule schedule =
          build_schedule(routing, {.kind = kind, .group_size = 6, .deterministic = deterministic});
      const AnalyticCost cost = analytic_cost(shape, routing, schedule);
      const auto expert_bytes = [&](MemoryLevel level) {
        return cost.bytes(Stage::kExperts, level) + cost.bytes(Stage::kExpertScores, level) +
               cost.bytes(Stage::kExpertCombine, level);
      };
      EXPECT_GE(expert_bytes(MemoryLevel::kHbm), floor) << to_string(kind);
      EXPECT_GE(expert_bytes(MemoryLevel::kL2), expert_bytes(MemoryLevel::kHbm)) << to_string(kind);
      EXPECT_GE(weight_bytes(cost, MemoryLevel::kL2), weight_bytes(cost, MemoryLevel::kHbm))
          << to_string(kind);
      EXPECT_GE(cost.executed_flop(Stage::kLayer), cost.useful_flop(Stage::kLayer)) << to_string(kind);
      // The stages that a schedule reports are those of is_fused().
      EXPECT_EQ(cost.bytes(Stage::kExperts, MemoryLevel::kHbm) > 0, is_fused(kind)) << to_string(kind);
      EXPECT_EQ(cost.bytes(Stage::kExpertScores, MemoryLevel::kHbm) > 0, !is_fused(kind)) << to_string(kind);
      // Both weight matrices: exactly the active rows, unless the schedule loads whole strips or everything.
      const std::int64_t xy = 2 * shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype);
      if (kind != ScheduleKind::kStaircase && kind != ScheduleKind::kDenseMasked) {
        EXPECT_EQ(weight_bytes(cost, MemoryLevel::kHbm), floor - xy) << to_string(kind);
      } else {
        EXPECT_GE(weight_bytes(cost, MemoryLevel::kHbm), floor - xy) << to_string(kind);
      }
    }
  }
}

TEST_P(CostOfRouting, SumsTheStagesIntoTheLayer) {
  const Routing routing = test::make_routing(GetParam(), 9);
  const AnalyticCost cost = analytic_cost(GetParam().shape, routing, build_staircase(routing, {}));
  std::int64_t bytes = 0;
  std::int64_t flop = 0;
  for (const Stage stage : kStages) {
    if (stage == Stage::kLayer) continue;
    bytes += cost.bytes(stage, MemoryLevel::kL2);
    flop += cost.executed_flop(stage);
  }
  EXPECT_EQ(cost.bytes(Stage::kLayer, MemoryLevel::kL2), bytes);
  EXPECT_EQ(cost.executed_flop(Stage::kLayer), flop);
}

INSTANTIATE_TEST_SUITE_P(Cases, CostOfRouting, testing::ValuesIn(test::routing_cases()),
                         [](const auto& test_info) { return test_info.param.name(); });

TEST(CostOfReuse, StaircaseRequestsFewerWeightBytesThanTokenCentricWhenExpertsAreReused) {
  // 512 tokens of K = 64 on a 24 x 24 grid: about 57 pairs per expert; all strips together are 2 N rows.
  const RoutingCase c{test::make_shape(512, 64, 24, 24, 64), RoutingSkew::kGaussian};
  const Routing routing = test::make_routing(c, 2);
  const auto requested = [&](ScheduleKind kind) {
    return weight_bytes(analytic_cost(c.shape, routing, build_schedule(routing, {.kind = kind})),
                        MemoryLevel::kL2);
  };
  EXPECT_EQ(requested(ScheduleKind::kTokenCentric), 2 * 512 * 64 * 64 * 2);
  EXPECT_LE(requested(ScheduleKind::kStaircase), 2 * 2 * 576 * 64 * 2);
}

}  // namespace
}  // namespace moescope
