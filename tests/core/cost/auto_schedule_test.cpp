// The cost model behind `auto`: what it predicts by hand, and that its choice moves with the machine and the
// routing.
#include <gtest/gtest.h>

#include <limits>

#include "core/base/error.hpp"
#include "core/cost/auto_schedule.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using test::RoutingSkew;

MachineRates even_rates() {
  MachineRates rates{.source = "test", .size = {.cache_bytes = 1e6}, .candidates = {}, .selection = {}};
  for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                                  ScheduleKind::kStaircase, ScheduleKind::kDenseMasked}) {
    rates.candidates.push_back({.schedule = {.kind = kind},
                                .memory_bytes_per_s = 1e9,
                                .cache_bytes_per_s = 1e9,
                                .flop_per_s = 1e9,
                                .executes_masked = kind == ScheduleKind::kDenseMasked});
  }
  return rates;
}

/// Sets one of the numbers for all schedules, or for those that run masked products or not.
void set_bytes_per_s(MachineRates& rates, double rate) {
  for (ScheduleRates& of_kind : rates.candidates) {
    of_kind.memory_bytes_per_s = of_kind.cache_bytes_per_s = rate;
  }
}
void set_flop_per_s(MachineRates& rates, double pairs, double matrix) {
  for (ScheduleRates& of_kind : rates.candidates) {
    of_kind.flop_per_s = of_kind.executes_masked ? matrix : pairs;
  }
}
MachineRates only(MachineRates rates, std::initializer_list<std::size_t> candidates) {
  std::vector<ScheduleRates> kept;
  for (const std::size_t i : candidates) kept.push_back(rates.candidates.at(i));
  rates.candidates = kept;
  return rates;
}

ScheduleKind choice_for(const RoutingCase& c, const MachineRates& rates) {
  return choose_schedule(c.shape, test::make_routing(c, 1), {}, rates).schedule.kind;
}

const RoutingCase kReused{test::make_shape(512, 64, 24, 24, 64),
                          RoutingSkew::kGaussian};  // 57 pairs per expert
const RoutingCase kSparse{test::make_shape(8, 64, 24, 24, 8),
                          RoutingSkew::kGaussian};  // 64 pairs, 576 experts

TEST(ChooseSchedule, PredictsTheLargestOfTheThreeTimesAndWhatIsFixed) {
  // The layer of core_traffic_test: token_centric, 5 pairs, d = 8, bf16. Compulsory 64 + 64 + 32 + 32 + 64 =
  // 256 bytes, requested 80 + 80 + 32 + 32 + 64 = 288, 4 * 8 * 5 = 160 flop.
  const Routing routing = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});
  MachineRates rates = only(even_rates(), {0});
  rates.candidates[0].fixed_s = 0.5;
  rates.candidates[0].memory_bytes_per_s = 256;
  rates.candidates[0].cache_bytes_per_s = 144;
  rates.candidates[0].flop_per_s = 320;
  const ScheduleChoice choice = choose_schedule(test::make_shape(2, 8, 3, 3, 3), routing, {}, rates);
  ASSERT_EQ(choice.candidates.size(), 1U);
  EXPECT_DOUBLE_EQ(choice.candidates[0].memory_s, 1.0);
  EXPECT_DOUBLE_EQ(choice.candidates[0].cache_s, 2.0);
  EXPECT_DOUBLE_EQ(choice.candidates[0].flop_s, 0.5);
  EXPECT_DOUBLE_EQ(choice.candidates[0].predicted_s, 2.5);
  EXPECT_EQ(choice.candidates[0].reason,
            "token_centric: 2.5 s, bound by requested bytes (fixed 0.5 s, memory 256 bytes 1 s, requested "
            "288 bytes 2 s, "
            "useful 160 flop 0.5 s)");
  EXPECT_EQ(choice.reason, "token_centric, predicted 2.5 s (rates: test)");
  rates.candidates[0].sharpness = 1;
  EXPECT_DOUBLE_EQ(
      choose_schedule(test::make_shape(2, 8, 3, 3, 3), routing, {}, rates).candidates[0].predicted_s,
      0.5 + 1 + 2 + 0.5);
  rates.candidates[0].sharpness = 4;  // 1 + 16 + 1/16 to the power of 1/4
  EXPECT_NEAR(choose_schedule(test::make_shape(2, 8, 3, 3, 3), routing, {}, rates).candidates[0].predicted_s,
              0.5 + 2.03243, 1e-5);
  EXPECT_EQ(choice.explanation(), choice.reason + "\n  " + choice.candidates[0].reason);
}

TEST(ChooseSchedule, CountsRowsThatTheCacheCannotKeepAsReadAgain) {
  // The same layer: experts 0, 1, 4, 7 hold 1, 2, 1, 1 of 5 pairs; sum p^2 = 7/25, so 25/7 effective experts.
  // Rows of 16 bytes: 2 * 25/7 * 16 = 114.3 bytes. A cache of half of that misses half of the 288 - 256
  // bytes.
  const Routing routing = test::routing_of(3, 3, {{1, 4, 7}, {0, 1}});
  MachineRates rates = only(even_rates(), {0});
  rates.candidates[0].memory_bytes_per_s = 1;
  rates.candidates[0].reuse_is_near = false;
  rates.size.cache_bytes = 0.5 * 2 * 25.0 / 7 * 16;
  const LayerShape shape = test::make_shape(2, 8, 3, 3, 3);
  EXPECT_DOUBLE_EQ(choose_schedule(shape, routing, {}, rates).candidates[0].memory_s, 272);
  rates.size.cache_bytes *= 4;
  EXPECT_DOUBLE_EQ(choose_schedule(shape, routing, {}, rates).candidates[0].memory_s, 256);
  rates.size.cache_bytes = 1e-9;
  EXPECT_NEAR(choose_schedule(shape, routing, {}, rates).candidates[0].memory_s, 288, 1e-6);
  rates.candidates[0].reuse_is_near = true;
  EXPECT_DOUBLE_EQ(choose_schedule(shape, routing, {}, rates).candidates[0].memory_s, 256);
}

TEST(ChooseSchedule, CountsWhatFollowsOneOnTheOtherWhereAMachineHasMultiprocessors) {
  // 300 tokens of the same 4 experts on a grid of 1 x 4: one strip, 3 tiles of 128 tokens of one segment
  // of 64.
  std::vector<std::vector<std::int32_t>> ids(300, {0, 1, 2, 3});
  const Routing routing = test::routing_of(1, 4, ids);
  const LayerShape shape = test::make_shape(300, 8, 1, 4, 4);
  MachineRates rates = only(even_rates(), {2});
  ScheduleRates& staircase = rates.candidates[0];
  staircase.memory_bytes_per_s = staircase.cache_bytes_per_s = staircase.flop_per_s = 1e15;
  staircase.step_s = 1;
  const auto predicted = [&] { return choose_schedule(shape, routing, {}, rates).candidates[0].predicted_s; };
  EXPECT_LT(predicted(), 1e-6) << "no multiprocessors, no chains";
  rates.size.num_sms = 2;  // 3 units: 2 waves
  EXPECT_NEAR(predicted(), 2, 1e-6);
  staircase.chain_bytes_per_s = 2 * 2 * 64 * 16;  // W and V of both units in a second
  EXPECT_NEAR(predicted(), 3, 1e-6);
  rates.size.num_sms = 3;
  EXPECT_NEAR(predicted(), 1.5, 1e-6);
  EXPECT_NE(choose_schedule(shape, routing, {}, rates).explanation().find(", chains 1.5 s)"),
            std::string::npos);

  // Pair by pair: 300 tokens fill 3 multiprocessors, so that each worker has all 4 pairs of a token; 38
  // blocks of 8 workers in 7 waves of 6.
  rates = only(even_rates(), {0});
  rates.size.num_sms = 3;
  rates.candidates[0].memory_bytes_per_s = rates.candidates[0].cache_bytes_per_s =
      rates.candidates[0].flop_per_s = 1e15;
  rates.candidates[0].step_s = 1;
  EXPECT_NEAR(predicted(), 7 * 4, 1e-6);
  rates.candidates[0].step_s = 0;
  rates.candidates[0].pair_s = 0.5;
  EXPECT_NEAR(predicted(), 600, 1e-3);
}

TEST(ChooseSchedule, AddsTheSelectionInTheFormThatASchedulesTakes) {
  MachineRates rates = even_rates();
  rates.size.num_sms = 132;
  SelectionRates& selection = rates.selection.emplace();
  selection.pairs_of_few = {1, 0, 0, 0, 0, 0, 0};
  selection.pairs_of_many = {0, 0, 0, 0, 1, 0, 0};
  selection.strips_of_few = {0, 2, 0, 0, 0, 0, 0};
  selection.strips_of_many = {0, 0, 0, 1, 0, 0, 0};
  const auto selected = [&](const RoutingCase& c) {
    const ScheduleChoice choice = choose_schedule(c.shape, test::make_routing(c, 1), {}, rates);
    return std::pair(choice.candidates[0].select_s, choice.candidates[2].select_s);
  };
  EXPECT_EQ(selected(kSparse), std::pair(1.0, 48.0)) << "8 tokens, the side is 24";
  EXPECT_EQ(selected({test::make_shape(1024, 64, 24, 24, 3), RoutingSkew::kGaussian}),
            std::pair(1024.0, 72.0));
}

TEST(ChooseSchedule, LeavesAFastScheduleWhoseLaunchesCostMore) {
  MachineRates rates = even_rates();
  set_flop_per_s(rates, 1e15, 1e9);
  ASSERT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
  rates.candidates[2].fixed_s = 1;
  EXPECT_NE(choice_for(kReused, rates), ScheduleKind::kStaircase);
}

TEST(ChooseSchedule, TakesStripsWhenExpertsAreReusedAndBytesBind) {
  MachineRates rates = even_rates();
  set_flop_per_s(rates, 1e15, 1e9);  // on so small a grid dense_masked loses by its FLOP, not by its bytes
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
}

TEST(ChooseSchedule, TakesTokensWhenFewPairsShareAnExpert) {
  MachineRates rates = even_rates();
  set_flop_per_s(rates, 1e15, 1e15);
  EXPECT_EQ(choice_for(kSparse, rates), ScheduleKind::kTokenCentric);
}

TEST(ChooseSchedule, LeavesMatrixItemsWhenTheirWasteCostsMoreThanTheBytesSaved) {
  MachineRates rates = even_rates();
  set_bytes_per_s(rates, 1e15);
  // strips compute unselected products, and at the same rate as pairs
  rates.candidates[1].executes_masked = rates.candidates[2].executes_masked = true;
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kTokenCentric);
  set_flop_per_s(rates, 1e9, 1e11);
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
}

TEST(ChooseSchedule, TakesDenseWhenEveryTokenUsesEveryExpert) {
  MachineRates rates = even_rates();
  set_bytes_per_s(rates, 1e15);
  set_flop_per_s(rates, 1e9, 1e11);
  EXPECT_EQ(choice_for({test::make_shape(64, 64, 8, 8, 64), RoutingSkew::kUniform}, rates),
            ScheduleKind::kDenseMasked);
}

TEST(ChooseSchedule, BreaksTiesByTheOrderOfCandidates) {
  MachineRates rates = even_rates();
  set_bytes_per_s(rates, 1e15);  // pairs bind: all but dense_masked are equal
  EXPECT_EQ(choice_for(kReused, only(rates, {1, 0})), ScheduleKind::kExpertCentric);
  EXPECT_EQ(choice_for(kReused, only(rates, {0, 1})), ScheduleKind::kTokenCentric);
}

TEST(ChooseSchedule, KeepsCandidatesInOrderAndNamesTheNextBest) {
  const MachineRates rates = even_rates();
  const ScheduleChoice choice = choose_schedule(kReused.shape, test::make_routing(kReused, 1), {}, rates);
  ASSERT_EQ(choice.candidates.size(), rates.candidates.size());
  double best_s = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < rates.candidates.size(); ++i) {
    EXPECT_EQ(choice.candidates[i].schedule, rates.candidates[i].schedule);
    best_s = std::min(best_s, choice.candidates[i].predicted_s);
  }
  for (const ScheduleCandidate& candidate : choice.candidates) {
    if (candidate.schedule == choice.schedule) {
      EXPECT_EQ(candidate.predicted_s, best_s);
    }
  }
  EXPECT_NE(choice.reason.find("; next "), std::string::npos) << choice.reason;
}

TEST(ChooseSchedule, TakesRowsAloneWhereTheySaveMoreWeightsThanTheyAddTokens) {
  MachineRates rates = even_rates();
  rates.candidates.clear();
  for (const char* name : {"staircase", "staircase:rows"}) {
    rates.candidates.push_back({.schedule = parse_schedule(name),
                                .memory_bytes_per_s = 1e9,
                                .cache_bytes_per_s = 1e9,
                                .flop_per_s = 1e15,
                                .executes_masked = true});
  }
  // By rows alone W and V are read once instead of twice, but a token is in more strips.
  const auto choose = [&](const RoutingCase& c, const ScheduleOptions& options) {
    return choose_schedule(c.shape, test::make_routing(c, 1), options, rates);
  };
  const ScheduleOptions asked{.kind = ScheduleKind::kAuto, .group_size = 7, .deterministic = false};
  ScheduleOptions rows = parse_schedule("staircase:rows:atomics");
  rows.group_size = 7;
  const ScheduleChoice few = choose({test::make_shape(24, 64, 24, 24, 64), RoutingSkew::kGaussian}, asked);
  EXPECT_EQ(few.schedule, rows) << few.explanation();
  EXPECT_TRUE(few.reason.starts_with("staircase:rows:atomics, predicted ")) << few.reason;
  EXPECT_NE(few.reason.find("; next staircase:atomics at "), std::string::npos) << few.reason;
  EXPECT_TRUE(few.candidates[1].reason.starts_with("staircase:rows:atomics: ")) << few.candidates[1].reason;
  const ScheduleChoice many = choose({test::make_shape(2048, 64, 24, 24, 64), RoutingSkew::kGaussian}, {});
  EXPECT_EQ(many.schedule, parse_schedule("staircase")) << many.explanation();
}

TEST(ChooseSchedule, OffersACandidateOnlyOnGridsThatItsRatesHoldFor) {
  MachineRates rates = even_rates();
  set_flop_per_s(rates, 1e15, 1e9);
  ASSERT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
  rates.candidates[2].max_grid_cols = 24;
  EXPECT_EQ(choice_for(kReused, rates), ScheduleKind::kStaircase);
  rates.candidates[2].max_grid_cols = 23;
  const ScheduleChoice other = choose_schedule(kReused.shape, test::make_routing(kReused, 1), {}, rates);
  EXPECT_NE(other.schedule.kind, ScheduleKind::kStaircase);
  EXPECT_EQ(other.candidates.size(), rates.candidates.size() - 1);
  for (ScheduleRates& each : rates.candidates) each.max_grid_cols = 23;
  EXPECT_THROW((void)choice_for(kReused, rates), InvalidArgument);
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
  rates.candidates[2].cache_bytes_per_s = 0;
  EXPECT_EQ(message(rates), "staircase.cache_bytes_per_s = 0: must be positive and finite");
  rates = even_rates();
  rates.candidates[0].flop_per_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message(rates), "token_centric.flop_per_s = nan: must be positive and finite");
  rates = even_rates();
  rates.candidates[0].fixed_s = -1;
  EXPECT_EQ(message(rates), "token_centric.fixed_s = -1: must be finite and not negative");
  rates.candidates[0].schedule = parse_schedule("staircase:rows");
  EXPECT_EQ(message(rates), "staircase:rows.fixed_s = -1: must be finite and not negative");
  rates = even_rates();
  rates.size.cache_bytes = 0;
  EXPECT_EQ(message(rates), "cache_bytes = 0: must be positive and finite");
  rates = even_rates();
  rates.candidates.clear();
  EXPECT_EQ(message(rates), "candidates = (none): must name at least one schedule");
  rates = even_rates();
  rates.candidates[0].schedule.kind = ScheduleKind::kAuto;
  EXPECT_EQ(message(rates), "candidates = auto: must be schedules that can run");
}

}  // namespace
}  // namespace moescope
