// The cost model behind `auto`: what it predicts by hand, and that its choice moves with the machine and the
// routing.
#include <gtest/gtest.h>

#include <limits>

#include "core/auto_schedule.hpp"
#include "core/error.hpp"
#include "support/routings.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using test::RoutingSkew;

MachineRates even_rates() {
  return {.source = "test",
          .memory_bytes_per_s = 1e9,
          .cache_bytes_per_s = 1e9,
          .pair_flop_per_s = 1e9,
          .matrix_flop_per_s = 1e9,
          .items_are_matrices = false,
          .candidates = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric, ScheduleKind::kStaircase,
                         ScheduleKind::kDenseMasked}};
}

ScheduleKind choice_for(const RoutingCase& c, const MachineRates& rates) {
  return choose_schedule(c.shape, test::make_routing(c, 1), {}, rates).kind;
}

const RoutingCase kReused{test::make_shape(512, 64, 24, 24, 64),
                          RoutingSkew::kGaussian};  // 57 pairs per expert
const RoutingCase kSparse{test::make_shape(8, 64, 24, 24, 8),
                          RoutingSkew::kGaussian};  // 64 pairs, 576 experts

TEST(ChooseSchedule, PredictsTheLargestOfTheThreeTimes) {
  // The layer of core_traffic_test: token_centric, 5 pairs, d = 8, bf16. Compulsory 64 + 64 + 32 + 32 + 64 =
  // 256 bytes, requested 80 + 80 + 32 + 32 + 64 = 288, 4 * 8 * 5 = 160 flop.
  const Routing routing = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});
  MachineRates rates = even_rates();
  rates.candidates = {ScheduleKind::kTokenCentric};
  rates.memory_bytes_per_s = 256;
  rates.cache_bytes_per_s = 144;
  rates.pair_flop_per_s = 320;
  const ScheduleChoice choice = choose_schedule(test::make_shape(2, 8, 3, 3, 3), routing, {}, rates);
  ASSERT_EQ(choice.candidates.size(), 1U);
  EXPECT_DOUBLE_EQ(choice.candidates[0].memory_s, 1.0);
  EXPECT_DOUBLE_EQ(choice.candidates[0].cache_s, 2.0);
  EXPECT_DOUBLE_EQ(choice.candidates[0].flop_s, 0.5);
  EXPECT_DOUBLE_EQ(choice.candidates[0].predicted_s, 2.0);
  EXPECT_EQ(
      choice.candidates[0].reason,
      "token_centric: 2 s, bound by requested bytes (compulsory 256 bytes 1 s, requested 288 bytes 2 s, pair "
      "160 flop 0.5 s)");
  EXPECT_EQ(choice.reason, "token_centric, predicted 2 s (rates: test)");
}

TEST(ChooseSchedule, TakesStripsWhenExpertsAreReusedAndBytesBind) {
  MachineRates rates = even_rates();
  rates.pair_flop_per_s = 1e15;  // on so small a grid dense_masked loses by its FLOP, not by its bytes
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
}

TEST(ChooseSchedule, TakesTokensWhenFewPairsShareAnExpert) {
  MachineRates rates = even_rates();
  rates.pair_flop_per_s = rates.matrix_flop_per_s = 1e15;
  EXPECT_EQ(choice_for(kSparse, rates), ScheduleKind::kTokenCentric);
}

TEST(ChooseSchedule, LeavesMatrixItemsWhenTheirWasteCostsMoreThanTheBytesSaved) {
  MachineRates rates = even_rates();
  rates.cache_bytes_per_s = rates.memory_bytes_per_s = 1e15;
  rates.items_are_matrices = true;  // strips compute unselected products, and at the same rate as pairs
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kTokenCentric);
  rates.matrix_flop_per_s = 100 * rates.pair_flop_per_s;
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
}

TEST(ChooseSchedule, TakesDenseWhenEveryTokenUsesEveryExpert) {
  MachineRates rates = even_rates();
  rates.cache_bytes_per_s = rates.memory_bytes_per_s = 1e15;
  rates.matrix_flop_per_s = 100 * rates.pair_flop_per_s;
  EXPECT_EQ(choice_for({test::make_shape(64, 64, 8, 8, 64), RoutingSkew::kUniform}, rates),
            ScheduleKind::kDenseMasked);
}

TEST(ChooseSchedule, BreaksTiesByTheOrderOfCandidates) {
  MachineRates rates = even_rates();
  rates.cache_bytes_per_s = rates.memory_bytes_per_s = 1e15;  // pairs bind: all but dense_masked are equal
  rates.candidates = {ScheduleKind::kExpertCentric, ScheduleKind::kTokenCentric};
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kExpertCentric);
  rates.candidates = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric};
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kTokenCentric);
}

TEST(ChooseSchedule, KeepsCandidatesInOrderAndNamesTheNextBest) {
  const MachineRates rates = even_rates();
  const ScheduleChoice choice = choose_schedule(kReused.shape, test::make_routing(kReused, 1), {}, rates);
  ASSERT_EQ(choice.candidates.size(), rates.candidates.size());
  double best_s = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < rates.candidates.size(); ++i) {
    EXPECT_EQ(choice.candidates[i].kind, rates.candidates[i]);
    best_s = std::min(best_s, choice.candidates[i].predicted_s);
  }
  for (const ScheduleCandidate& candidate : choice.candidates) {
    if (candidate.kind == choice.kind) {
      EXPECT_EQ(candidate.predicted_s, best_s);
    }
  }
  EXPECT_NE(choice.reason.find("; next "), std::string::npos) << choice.reason;
}

TEST(ChooseSchedule, RefusesRatesThatCannotBe) {
  const auto message = [](const MachineRates& rates) {
    try {
      rates.validate();
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  MachineRates rates = even_rates();
  rates.cache_bytes_per_s = 0;
  EXPECT_EQ(message(rates), "cache_bytes_per_s = 0: must be positive and finite");
  rates = even_rates();
  rates.matrix_flop_per_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message(rates), "matrix_flop_per_s = nan: must be positive and finite");
  rates = even_rates();
  rates.candidates.clear();
  EXPECT_EQ(message(rates), "candidates = (none): must name at least one schedule");
  rates.candidates = {ScheduleKind::kAuto};
  EXPECT_EQ(message(rates), "candidates = auto: must be schedules that can run");
}

}  // namespace
}  // namespace moescope
