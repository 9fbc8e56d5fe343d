// Names, builders and invariants of schedules; the staircase's cover has its own test.
#include <gtest/gtest.h>
#include <omp.h>

#include <functional>
#include <set>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "tests/support/routings.hpp"

namespace moescope {

namespace {

using test::RoutingCase;
using test::RoutingSkew;

constexpr std::array kBuildable = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                                   ScheduleKind::kStaircase, ScheduleKind::kDenseMasked,
                                   ScheduleKind::kSparseLibrary};

bool equal(const Schedule& a, const Schedule& b) {
  return a.kind == b.kind && a.items == b.items && a.experts == b.experts && a.tokens == b.tokens &&
         a.pair_offsets == b.pair_offsets && a.sorted_pair_ids == b.sorted_pair_ids;
}

/// The message of whatever error `action` throws.
template <class ErrorType>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

/// Sets the number of OpenMP threads for a scope.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

TEST(ScheduleKind, ParsesWhatItPrints) {
  for (const ScheduleKind kind : kBuildable) EXPECT_EQ(parse_schedule_kind(to_string(kind)), kind);
  EXPECT_EQ(parse_schedule_kind("auto"), ScheduleKind::kAuto);
  EXPECT_TRUE(parse_schedule("staircase").deterministic);
  EXPECT_EQ(to_string(parse_schedule("staircase")), "staircase");
  EXPECT_FALSE(parse_schedule("staircase:atomics").deterministic);
  EXPECT_EQ(to_string(parse_schedule("staircase:atomics")), "staircase:atomics");
  EXPECT_EQ(parse_schedule("staircase").strip_rule, StripRule::kMinimalCover);
  for (const char* name : {"staircase:rows", "staircase:rows:atomics"}) {
    EXPECT_EQ(parse_schedule(name).strip_rule, StripRule::kRowsOnly);
    EXPECT_EQ(to_string(parse_schedule(name)), name);
  }
  EXPECT_THROW(parse_schedule("staircase:atomics:rows"), InvalidArgument);
  EXPECT_EQ(to_string(parse_schedule("dense_masked")), "dense_masked");
  EXPECT_THROW(parse_schedule("dense_masked:atomics"), InvalidArgument);
  EXPECT_EQ(message_of<InvalidArgument>([] { parse_schedule_kind("stairs"); }),
            "schedule = stairs: must be one of token_centric, expert_centric, staircase, dense_masked, "
            "sparse_library, auto");
}

TEST(ScheduleKind, FusesScoresAndCombineWhereOneKernelDoesBoth) {
  EXPECT_TRUE(is_fused(ScheduleKind::kTokenCentric));
  EXPECT_TRUE(is_fused(ScheduleKind::kExpertCentric));
  EXPECT_TRUE(is_fused(ScheduleKind::kStaircase));
  EXPECT_FALSE(is_fused(ScheduleKind::kDenseMasked));
  EXPECT_FALSE(is_fused(ScheduleKind::kSparseLibrary));
}

class EveryScheduleBuilder : public testing::TestWithParam<RoutingCase> {};

TEST_P(EveryScheduleBuilder, KeepsEveryPairOnceInAnItemThatHasItsExpert) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    const Routing routing = test::make_routing(GetParam(), seed);
    routing.validate();
    for (const ScheduleKind kind : kBuildable) {
      for (const std::int64_t group_size : {1, 7, 64}) {
        const ScheduleOptions options{.kind = kind, .group_size = group_size};
        const Schedule schedule = build_schedule(routing, options);
        ASSERT_NO_THROW(validate(schedule, routing)) << to_string(kind) << " B " << group_size;
        // Written out once more without validate(): each pair is seen once, in an item that lists its expert.
        std::vector<int> seen(routing.expert_ids.size(), 0);
        for (const WorkItem& item : schedule.items) {
          const std::vector<std::int32_t> listed = item_experts(schedule, item, routing);
          const std::set<std::int32_t> experts(listed.begin(), listed.end());
          for (std::int64_t t = item.token_begin; t < item.token_end; ++t) {
            for (std::int64_t at = schedule.pair_offsets[t]; at < schedule.pair_offsets[t + 1]; ++at) {
              const std::int64_t pair = schedule.sorted_pair_ids[at];
              ++seen[pair];
              ASSERT_TRUE(item.kind == WorkItemKind::kToken || experts.contains(routing.expert_ids[pair]));
            }
          }
        }
        ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), routing.num_pairs());
      }
    }
  }
}

TEST_P(EveryScheduleBuilder, GivesTheSameScheduleTwice) {
  const Routing routing = test::make_routing(GetParam(), 4);
  for (const ScheduleKind kind : kBuildable) {
    EXPECT_TRUE(equal(build_schedule(routing, {.kind = kind}), build_schedule(routing, {.kind = kind})));
  }
}

class LargerScheduleBuilder : public testing::TestWithParam<RoutingSkew> {};

TEST_P(LargerScheduleBuilder, DoesNotDependOnTheNumberOfThreads) {
  // 28800 pairs: enough that seven threads each get some under every schedule.
  const Routing routing = test::make_routing({test::make_shape(450, 8, 24, 30, 64), GetParam()}, 4);
  for (const ScheduleKind kind : kBuildable) {
    const ScheduleOptions options{.kind = kind, .group_size = 5};
    const Schedule first = [&] {
      const ThreadScope scope(1);
      return build_schedule(routing, options);
    }();
    EXPECT_NO_THROW(validate(first, routing)) << to_string(kind);
    for (const int threads : {2, 4, 7}) {
      const ThreadScope scope(threads);
      EXPECT_TRUE(equal(first, build_schedule(routing, options))) << to_string(kind) << " " << threads;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Skews, LargerScheduleBuilder, testing::ValuesIn(test::kRoutingSkews),
                         [](const auto& test_info) { return test::to_string(test_info.param); });

INSTANTIATE_TEST_SUITE_P(Cases, EveryScheduleBuilder, testing::ValuesIn(test::routing_cases()),
                         [](const auto& test_info) { return test_info.param.name(); });

TEST(TokenCentric, FollowsTheCsr) {
  const Routing routing = test::routing_of(3, 3, {{1, 4}, {0, 4, 8}});
  const Schedule schedule = build_token_centric(routing, {});
  EXPECT_EQ(schedule.items.size(), 2U);
  EXPECT_EQ(schedule.pair_offsets, routing.token_offsets);
  EXPECT_EQ(schedule.sorted_pair_ids, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
}

TEST(ExpertCentric, SortsTasksByGroupThenToken) {
  // Active experts 1 2 5 7 8 in groups of two: {1 2} {5 7} {8}. Pairs by CSR index:
  // token 0: 0:(1) 1:(7); token 1: 2:(2) 3:(5) 4:(8); token 2: 5:(1) 6:(2).
  const Routing routing = test::routing_of(3, 3, {{1, 7}, {2, 5, 8}, {1, 2}});
  const Schedule schedule = build_expert_centric(routing, {.group_size = 2});
  EXPECT_EQ(schedule.experts, (std::vector<std::int32_t>{1, 2, 5, 7, 8}));
  ASSERT_EQ(schedule.items.size(), 3U);
  EXPECT_EQ(schedule.items[2].expert_begin, 4);
  EXPECT_EQ(schedule.items[2].expert_end, 5);
  EXPECT_EQ(schedule.tokens, (std::vector<std::int32_t>{0, 1, 2, 0, 1, 1}));
  EXPECT_EQ(schedule.pair_offsets, (std::vector<std::int64_t>{0, 1, 2, 4, 5, 6, 7}));
  EXPECT_EQ(schedule.sorted_pair_ids, (std::vector<std::int64_t>{0, 2, 5, 6, 1, 3, 4}));
}

TEST(ExpertCentric, HasOneGroupPerActiveExpertWhenGroupsHoldOne) {
  const RoutingCase c{test::make_shape(40, 8, 12, 12, 6), RoutingSkew::kUniform};
  const Routing routing = test::make_routing(c, 1);
  const Schedule schedule = build_expert_centric(routing, {.group_size = 1});
  const std::set<std::int32_t> active(routing.expert_ids.begin(), routing.expert_ids.end());
  EXPECT_EQ(schedule.items.size(), active.size());
}

TEST(ScheduleBuilder, RefusesAGroupSizeBelowOne) {
  const Routing routing = test::routing_of(3, 3, {{1, 4}});
  for (const ScheduleKind kind : {ScheduleKind::kExpertCentric, ScheduleKind::kStaircase}) {
    EXPECT_EQ(message_of<InvalidArgument>([&] { build_schedule(routing, {.kind = kind, .group_size = 0}); }),
              "group_size = 0: must be at least 1");
  }
}

TEST(ScheduleBuilder, RefusesTilesThatTheKernelsDoNotTake) {
  const Routing routing = test::routing_of(3, 3, {{1, 4}});
  for (const std::int64_t tile : {-1, 0, 129}) {
    EXPECT_EQ(message_of<InvalidArgument>(
                  [&] { build_schedule(routing, {.kind = ScheduleKind::kStaircase, .tile_tokens = tile}); }),
              fmt::format("tile_tokens = {}: must be 1 to 128", tile));
  }
}

TEST(ScheduleBuilder, RefusesAutoBecauseItMustBeResolvedFirst) {
  const Routing routing = test::routing_of(3, 3, {{1, 4}});
  EXPECT_NE(message_of<InternalError>([&] {
              build_schedule(routing, {.kind = ScheduleKind::kAuto});
            }).find("'auto', which choose_schedule resolves first"),
            std::string::npos);
}

TEST(ScheduleBuilder, AcceptsTokensWithoutPairs) {
  const Routing routing = test::routing_of(3, 3, {{}, {1, 4, 8}, {}});
  for (const ScheduleKind kind : kBuildable) {
    EXPECT_NO_THROW(validate(build_schedule(routing, {.kind = kind}), routing)) << to_string(kind);
  }
}

TEST(Schedule, CountsTheBytesOfItsArrays) {
  const Routing routing = test::routing_of(3, 3, {{1, 4}, {0, 4, 8}});
  // 2 items, 2 tokens of 4 bytes, 3 offsets and 5 pairs of 8 bytes.
  EXPECT_EQ(build_token_centric(routing, {}).bytes(),
            static_cast<std::int64_t>(2 * sizeof(WorkItem) + 8 + 24 + 40));
}

TEST(ItemExperts, AreArithmeticForStripsAndListsForGroups) {
  const Routing routing = test::routing_of(2, 3, {{0, 1, 4}});
  Schedule schedule;
  schedule.experts = {1, 4, 5};
  const auto experts_of = [&](const WorkItem& item) { return item_experts(schedule, item, routing); };
  EXPECT_EQ(experts_of({.kind = WorkItemKind::kRowStrip, .strip = 1}), (std::vector<std::int32_t>{3, 4, 5}));
  EXPECT_EQ(experts_of({.kind = WorkItemKind::kColStrip, .strip = 2}), (std::vector<std::int32_t>{2, 5}));
  EXPECT_EQ(experts_of({.kind = WorkItemKind::kGroup, .expert_begin = 1, .expert_end = 3}),
            (std::vector<std::int32_t>{4, 5}));
  EXPECT_EQ(experts_of({.kind = WorkItemKind::kAllExperts}).size(), 6U);
  EXPECT_TRUE(experts_of({.kind = WorkItemKind::kToken}).empty());
}

// --- validate(): one change to a good schedule, and the message it must give
// -----------------------------------

struct Mutation {
  std::string name;
  ScheduleKind kind;
  std::function<void(Schedule&)> change;
  std::string message;
};

/// Grid 4 x 4. Token 0: rows 0 and 2 whole but for one, column 2 below them. Token 1: row 0. Token 2: one
/// expert.
Routing mutation_routing() { return test::routing_of(4, 4, {{0, 1, 2, 6, 9, 10, 11, 14}, {0, 1, 2}, {14}}); }
// staircase items: row 0 {0, 1}, row 2 {0}, row 3 {2}, column 2 {0}
//   tokens       0 1 0 2 0
//   pair_offsets 0 3 6 9 10 12
//   sorted_pairs 0 1 2 | 8 9 10 | 4 5 6 | 11 | 3 7
// expert_centric, B = 4: active 0 1 2 6 | 9 10 11 14
//   tokens       0 1 | 0 2
//   pair_offsets 0 4 7 11 12
//   sorted_pairs 0 1 2 3 | 8 9 10 | 4 5 6 7 | 11

std::vector<Mutation> mutations() {
  using enum ScheduleKind;
  return {
      {"OptionsOfAnotherKind", kStaircase, [](Schedule& s) { s.options.kind = kTokenCentric; },
       "kind is staircase but options.kind is token_centric"},
      {"DroppedPair", kStaircase, [](Schedule& s) { s.sorted_pair_ids.pop_back(); },
       "sorted_pair_ids has 11 entries, the routing has 12 pairs"},
      {"DroppedOffset", kStaircase, [](Schedule& s) { s.pair_offsets.pop_back(); },
       "pair_offsets has 5 entries, must be one more than tokens, 5"},
      {"NoOffsets", kStaircase, [](Schedule& s) { s.pair_offsets.clear(); },
       "pair_offsets has 0 entries, must be one more than tokens, 5"},
      {"FirstOffset", kStaircase, [](Schedule& s) { s.pair_offsets[0] = 1; },
       "pair_offsets[0] = 1, must be 0"},
      {"OffsetsNotMonotone", kStaircase, [](Schedule& s) { s.pair_offsets[2] = 2; },
       "pair_offsets[2] = 2 is below pair_offsets[1] = 3"},
      {"LastOffset", kStaircase, [](Schedule& s) { s.pair_offsets[5] = 11; },
       "pair_offsets ends at 11, must end at the number of pairs, 12"},
      {"TokenOutOfRange", kStaircase, [](Schedule& s) { s.tokens[1] = 3; }, "tokens[1] = 3 is not in [0, 3)"},
      {"TokenNegative", kStaircase, [](Schedule& s) { s.tokens[1] = -1; }, "tokens[1] = -1 is not in [0, 3)"},
      {"TokenRangeGap", kStaircase, [](Schedule& s) { s.items[1].token_begin = 3; },
       "items[1] has tokens [3, 3), must begin at 2 and end by 5"},
      {"TokenRangePastTheEnd", kStaircase, [](Schedule& s) { s.items[3].token_end = 6; },
       "items[3] has tokens [4, 6), must begin at 4 and end by 5"},
      {"TokenRangeTooShort", kStaircase, [](Schedule& s) { s.items.pop_back(); },
       "1 of 5 tokens are in no item"},
      {"TokensUnsorted", kStaircase, [](Schedule& s) { std::swap(s.tokens[0], s.tokens[1]); },
       "tokens[1] = 0 does not ascend within items[0]"},
      {"TokenTwiceInAnItem", kStaircase, [](Schedule& s) { s.tokens[1] = 0; },
       "tokens[1] = 0 does not ascend within items[0]"},
      {"ForeignItemKind", kExpertCentric, [](Schedule& s) { s.items[0].kind = WorkItemKind::kToken; },
       "items[0] is of kind 'token', which expert_centric has not"},
      {"UnresolvedAuto", kStaircase, [](Schedule& s) { s.kind = s.options.kind = kAuto; },
       "items[0] is of kind 'row strip', which auto has not"},
      {"StripOutOfRange", kStaircase, [](Schedule& s) { s.items[3].strip = 4; },
       "items[3].strip = 4 does not fit a 'column strip' of a 4 x 4 grid"},
      {"StripMissing", kStaircase, [](Schedule& s) { s.items[0].strip = -1; },
       "items[0].strip = -1 does not fit a 'row strip' of a 4 x 4 grid"},
      {"StripOfAGroup", kExpertCentric, [](Schedule& s) { s.items[1].strip = 0; },
       "items[1].strip = 0 does not fit a 'group' of a 4 x 4 grid"},
      {"EmptyItem", kStaircase,
       [](Schedule& s) {
         s.items.insert(s.items.begin() + 1,
                        {.kind = WorkItemKind::kRowStrip, .strip = 1, .token_begin = 2, .token_end = 2});
       },
       "items[1] has no tokens"},
      {"StripsNotAscending", kStaircase, [](Schedule& s) { s.items[1].strip = 0; },
       "items[1] (row strip 0) must not follow row strip 0"},
      {"ColumnsBeforeRows", kStaircase, [](Schedule& s) { s.items[0].kind = WorkItemKind::kColStrip; },
       "items[1] (row strip 2) must not follow column strip 0"},
      {"TokenWithoutItem", kTokenCentric,
       [](Schedule& s) {
         s.items.pop_back();
         s.tokens.pop_back();
         s.pair_offsets = {0, 8, 12};
       },
       "token_centric has 2 items with 2 tokens, the batch has 3 tokens"},
      {"TokensOutOfOrder", kTokenCentric, [](Schedule& s) { std::swap(s.tokens[0], s.tokens[1]); },
       "tokens[0] = 1, must be 0 in token_centric"},
      {"TwoDenseItems", kDenseMasked,
       [](Schedule& s) {
         s.items.push_back(s.items[0]);
         s.items[0].token_end = s.items[1].token_begin = 1;
       },
       "dense_masked has 2 items with 3 tokens, the batch has 3 tokens"},
      {"StripThatListsExperts", kStaircase, [](Schedule& s) { s.items[0].expert_end = 1; },
       "items[0] is of kind 'row strip' and lists experts [0, 1)"},
      {"GroupTooLong", kExpertCentric,
       [](Schedule& s) {
         s.items[0].expert_end = 5;
         s.items[1].expert_begin = 5;
       },
       "items[0] has experts [0, 5), must be [0, 4) with group_size 4"},
      {"GroupNotFull", kExpertCentric,
       [](Schedule& s) {
         s.items[0].expert_end = 3;
         s.items[1].expert_begin = 3;
       },
       "items[0] has experts [0, 3), must be [0, 4) with group_size 4"},
      {"ExpertInNoGroup", kExpertCentric, [](Schedule& s) { s.experts.push_back(15); },
       "1 of 9 listed experts are in no group"},
      {"ExpertOutOfRange", kExpertCentric, [](Schedule& s) { s.experts[7] = 16; },
       "experts[7] = 16 is not in [0, 16)"},
      {"ExpertsUnsorted", kExpertCentric, [](Schedule& s) { std::swap(s.experts[0], s.experts[1]); },
       "experts[1] = 0 does not ascend"},
      {"ExpertWithoutPairs", kExpertCentric,
       [](Schedule& s) {
         s.experts.push_back(15);
         s.options.group_size = 5;
         s.experts = {0, 1, 2, 3, 6, 9, 10, 11, 14};
         s.items[0].expert_end = s.items[1].expert_begin = 5;
         s.items[1].expert_end = 9;
       },
       "experts[3] = 3 has no pair in its group"},
      {"TokenWithoutPairsInAStrip", kStaircase, [](Schedule& s) { s.pair_offsets[1] = 0; },
       "token 0 has no pair in items[0]"},
      {"SwappedPairsOfTwoTokens", kStaircase,
       [](Schedule& s) { std::swap(s.sorted_pair_ids[0], s.sorted_pair_ids[3]); },
       "sorted_pair_ids[0] = 8 is not a pair of token 0"},
      {"SwappedPairsOfOneToken", kStaircase,
       [](Schedule& s) { std::swap(s.sorted_pair_ids[0], s.sorted_pair_ids[1]); },
       "sorted_pair_ids[1] = 0 does not ascend within token 0"},
      {"PairOutOfRange", kTokenCentric, [](Schedule& s) { s.sorted_pair_ids[11] = 12; },
       "sorted_pair_ids[11] = 12 is not a pair of token 2"},
      {"PairTwiceInAToken", kTokenCentric, [](Schedule& s) { s.sorted_pair_ids[1] = 0; },
       "sorted_pair_ids[1] = 0 does not ascend within token 0"},
      {"WrongRow", kStaircase, [](Schedule& s) { s.items[1].strip = 1; },
       "pair 4 of expert 9 is in items[1], a row strip without that expert"},
      {"WrongColumn", kStaircase, [](Schedule& s) { s.items[3].strip = 3; },
       "pair 3 of expert 6 is in items[3], a column strip without that expert"},
      {"PairInAnotherGroup", kExpertCentric, [](Schedule& s) { s.sorted_pair_ids[3] = 4; },
       "pair 4 of expert 9 is in items[0], a group without that expert"},
      {"PairTwiceInARowAndAColumn", kStaircase,
       [](Schedule& s) { s.sorted_pair_ids[10] = 2; },  // expert 2 is column 2 of row 0, which has it already
       "pair 2 appears twice"},
      {"ColumnTakesAPairOfAChosenRow", kStaircase,
       [](Schedule& s) {
         s.pair_offsets = {0, 2, 5, 8, 9, 12};
         s.sorted_pair_ids = {0, 1, 8, 9, 10, 4, 5, 6, 11, 2, 3, 7};
       },
       "row strip 0 takes 2 of the 3 pairs that token 0 has in it"},
  };
}

class MutatedSchedule : public testing::TestWithParam<Mutation> {};

TEST_P(MutatedSchedule, NamesTheViolation) {
  const Mutation& mutation = GetParam();
  const Routing routing = mutation_routing();
  Schedule schedule = build_schedule(routing, {.kind = mutation.kind, .group_size = 4});
  ASSERT_NO_THROW(validate(schedule, routing));
  mutation.change(schedule);
  EXPECT_EQ(message_of<InternalError>([&] { validate(schedule, routing); }),
            "internal error (please report): schedule: " + mutation.message);
}

INSTANTIATE_TEST_SUITE_P(Mutations, MutatedSchedule, testing::ValuesIn(mutations()),
                         [](const auto& test_info) { return test_info.param.name; });

/// Five cells on the diagonal of a 5 x 5 grid: no staircase. The first `rows` cells as row strips, the rest
/// in a group.
Schedule diagonal_schedule(std::int32_t rows) {
  Schedule schedule;
  schedule.kind = schedule.options.kind = ScheduleKind::kStaircase;
  schedule.tokens.assign(static_cast<std::size_t>(rows), 0);
  schedule.sorted_pair_ids = {0, 1, 2, 3, 4};
  for (std::int32_t row = 0; row < rows; ++row) {
    schedule.items.push_back(
        {.kind = WorkItemKind::kRowStrip, .strip = row, .token_begin = row, .token_end = row + 1});
    schedule.pair_offsets.push_back(row);
  }
  schedule.pair_offsets.push_back(rows);
  if (rows == 5) return schedule;
  for (std::int32_t row = rows; row < 5; ++row) schedule.experts.push_back(6 * row);
  schedule.items.push_back(
      {.kind = WorkItemKind::kGroup, .expert_end = 5 - rows, .token_begin = rows, .token_end = rows + 1});
  schedule.tokens.push_back(0);
  schedule.pair_offsets.push_back(5);
  return schedule;
}

TEST(ValidateSchedule, RefusesMoreStripsThanTwoSqrtK) {
  const Routing routing = test::routing_of(5, 5, {{0, 6, 12, 18, 24}});
  EXPECT_EQ(
      message_of<InternalError>([&] { validate(diagonal_schedule(5), routing); }),
      "internal error (please report): schedule: token 0 has 5 strips for 5 pairs, more than 2 sqrt(K)");
}

TEST(ValidateSchedule, RefusesATokenPartlyInGroups) {
  const Routing routing = test::routing_of(5, 5, {{0, 6, 12, 18, 24}});
  EXPECT_NO_THROW(validate(diagonal_schedule(0), routing));
  EXPECT_EQ(message_of<InternalError>([&] { validate(diagonal_schedule(1), routing); }),
            "internal error (please report): schedule: token 0 has 4 of its 5 pairs in groups, must be all "
            "or none");
}

}  // namespace
}  // namespace moescope
