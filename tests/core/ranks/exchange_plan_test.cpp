#include "core/ranks/exchange_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/ranks/placement_use.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/placements.hpp"

namespace moescope {
namespace {

using test::error_text;
using test::make_routing;

ExchangePlan make_plan(const std::string& text, const RankGroup& group, const Routing& routing,
                       Exchange exchange = Exchange::kDispatch) {
  const PlacementSpec spec = test::fitting(PlacementSpec::parse(text), routing, group.ranks);
  const ExpertPlacement placement =
      make_placement(spec, group, routing.grid_rows, routing.grid_cols, &routing);
  ExchangePlan plan = plan_exchange(exchange, placement, routing, homes_of(placement, routing));
  validate(plan, placement, routing);
  return plan;
}

/// Every pair once, where its expert is, from where its token is; and counts as a plain count of sets says.
TEST(ExchangePlan, LosesAndDoublesNoPair) {
  for (const test::RoutingCase& c : test::routing_cases()) {
    const Routing routing = make_routing(c, 11);
    for (const std::string& text : test::all_placements(c.shape.grid_rows + c.shape.grid_cols)) {
      for (const std::int64_t ranks : {1, 2, 3, 4, 7, 8, 64}) {
        const ExchangePlan plan = make_plan(text, {ranks, 1}, routing);  // validates
        std::set<std::int64_t> seen(plan.pair_ids.begin(), plan.pair_ids.end());
        ASSERT_EQ(std::ssize(seen), routing.num_pairs()) << c << text << ranks;
        ASSERT_EQ(std::ssize(plan.pair_ids), routing.num_pairs()) << c << text << ranks;
      }
    }
  }
}

TEST(ExchangePlan, CountsAsPlainSetsDo) {
  const Routing routing = make_routing({test::make_shape(61, 8, 12, 10, 9), test::RoutingSkew::kPopular}, 2);
  const RankGroup group{6, 3};
  for (const std::string& text : test::all_placements()) {
    const PlacementSpec spec = PlacementSpec::parse(text);
    const ExpertPlacement placement = make_placement(spec, group, 12, 10, &routing);
    const std::vector<std::int32_t> home = homes_of(placement, routing);
    const std::vector<std::int32_t> rank_of = assign_pairs(placement, routing, home);
    for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
      const ExchangePlan plan = plan_exchange(exchange, placement, routing, home);
      const ExchangeSizes sizes{.row = 1000, .back = 100, .head = 10, .pair = 1};
      const LinkBytes bytes = link_bytes(plan, sizes);
      std::map<std::pair<int, int>, std::set<std::int64_t>> rows;
      std::map<std::pair<int, int>, std::int64_t> pairs;
      for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
        for (std::int64_t p = routing.token_offsets[t]; p < routing.token_offsets[t + 1]; ++p) {
          rows[{home[t], rank_of[p]}].insert(t);
          ++pairs[{home[t], rank_of[p]}];
        }
      }
      std::int64_t total = 0;
      std::int64_t between = 0;
      for (int from = 0; from < 6; ++from) {
        for (int to = 0; to < 6; ++to) {
          const std::int64_t at_home = std::ranges::count(home, from);
          const std::int64_t sent = exchange == Exchange::kGather ? at_home : std::ssize(rows[{from, to}]);
          const std::int64_t out = from == to ? 0 : sent * 1010 + pairs[{from, to}];
          const std::int64_t back = from == to ? 0 : sent * 100;
          EXPECT_EQ(bytes.dispatch[from * 6 + to], out) << text;
          EXPECT_EQ(bytes.combine[to * 6 + from], back) << text;
          EXPECT_EQ(plan.pairs(from, to), (pairs[{from, to}])) << text;
          EXPECT_EQ(plan.jobs(from, to), std::ssize(rows[{from, to}])) << text;
          total += out + back;
          between += from / 2 == to / 2 ? 0 : out + back;
        }
      }
      EXPECT_EQ(bytes.total(), total);
      EXPECT_EQ(bytes.between_nodes(), between);
      EXPECT_LE(bytes.busiest_rank(), total);
      EXPECT_GE(bytes.busiest_rank() * 6, total);  // what is sent, the busiest sends or receives its share of
    }
  }
}

TEST(ExchangePlan, IsTheSameTwice) {
  const Routing routing =
      make_routing({test::make_shape(50, 8, 16, 16, 12), test::RoutingSkew::kGaussian}, 8);
  for (const std::string& text : test::all_placements()) {
    const ExchangePlan a = make_plan(text, {7, 1}, routing);
    const ExchangePlan b = make_plan(text, {7, 1}, routing);
    EXPECT_EQ(a.job_tokens, b.job_tokens) << text;
    EXPECT_EQ(a.pair_ids, b.pair_ids) << text;
  }
}

TEST(ExchangePlan, KeepsPairsAtHomeWhereItCan) {
  // Expert 0 lies on both ranks; expert 1 on rank 0, 2 on rank 1.
  ExpertPlacement placement;
  placement.group = {2, 1};
  placement.grid_rows = 1;
  placement.grid_cols = 3;
  placement.holder_offsets = {0, 2, 3, 4};
  placement.holders = {0, 1, 0, 1};
  placement.validate();
  const Routing routing = test::routing_of(1, 3, {{0, 1}, {0, 2}, {0, 1}, {0, 2}});
  const std::vector<std::int32_t> home = {0, 0, 1, 1};
  EXPECT_EQ(assign_pairs(placement, routing, home), (std::vector<std::int32_t>{0, 0, 0, 1, 1, 0, 1, 1}));
}

TEST(ExchangePlan, SharesCopiesThatAreElsewhere) {
  ExpertPlacement placement;
  placement.group = {3, 1};
  placement.grid_rows = 1;
  placement.grid_cols = 1;
  placement.holder_offsets = {0, 2};
  placement.holders = {1, 2};
  placement.validate();
  const Routing routing = test::routing_of(1, 1, {{0}, {0}, {0}, {0}});
  EXPECT_EQ(assign_pairs(placement, routing, std::vector<std::int32_t>(4, 0)),
            (std::vector<std::int32_t>{1, 2, 1, 2}));
}

TEST(ExchangePlan, RefusesHomesThatAreNone) {
  const Routing routing = test::routing_of(1, 2, {{0}, {1}});
  const ExpertPlacement placement = make_placement(PlacementSpec::parse("linear"), {2, 1}, 1, 2, nullptr);
  EXPECT_EQ(error_text<InvalidArgument>([&] { plan_exchange(Exchange::kGather, placement, routing, {0}); }),
            "home.size = 1: must be 2, one for each token");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              plan_exchange(Exchange::kGather, placement, routing, {0, 2});
            }),
            "home[1] = 2: must be a rank below 2");
  EXPECT_EQ(error_text<InvalidArgument>([&] { parse_exchange("all-to-all"); }),
            "exchange = all-to-all: must be gather or dispatch");
}

TEST(ExchangePlan, ValidateFindsWhatWasSpoiled) {
  const Routing routing = make_routing({test::make_shape(9, 8, 4, 4, 3), test::RoutingSkew::kUniform}, 4);
  const ExpertPlacement placement = make_placement(PlacementSpec::parse("linear"), {3, 1}, 4, 4, nullptr);
  const ExchangePlan good =
      plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
  EXPECT_NO_THROW(validate(good, placement, routing));
  const auto spoiled = [&](auto&& spoil) {
    ExchangePlan bad = good;
    spoil(bad);
    EXPECT_THROW(validate(bad, placement, routing), InternalError);
  };
  spoiled([](ExchangePlan& p) { p.pair_ids[1] = p.pair_ids[0]; });
  spoiled([](ExchangePlan& p) { std::swap(p.pair_ids.front(), p.pair_ids.back()); });
  spoiled([](ExchangePlan& p) { p.home[0] = 2; });
  spoiled([](ExchangePlan& p) { p.job_tokens.front() = 8; });
  spoiled([](ExchangePlan& p) { p.job_offsets[1] = 0; });
  spoiled([](ExchangePlan& p) { p.pair_ids.pop_back(); });
  ExpertPlacement other = placement;
  std::ranges::reverse(other.holders);
  EXPECT_THROW(validate(good, other, routing), InternalError);
}

TEST(PlacementUse, CountsByHand) {
  // Ranks 0: experts 0, 1; 1: experts 2, 3. Tokens 0 and 1 at home on 0, 2 and 3 on 1.
  const Routing routing = test::routing_of(1, 4, {{0, 1}, {0, 2}, {0, 1}, {0, 3}});
  const ExpertPlacement placement = make_placement(PlacementSpec::parse("linear"), {2, 2}, 1, 4, nullptr);
  const ExchangePlan plan =
      plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
  const PlacementUse use = placement_use(plan, placement, routing);
  EXPECT_DOUBLE_EQ(use.ranks_per_token, 6.0 / 4);
  EXPECT_DOUBLE_EQ(use.remote_ranks_per_token, 3.0 / 4);
  EXPECT_DOUBLE_EQ(use.remote_nodes_per_token, 3.0 / 4);
  EXPECT_EQ(use.pairs, (std::vector<std::int64_t>{6, 2}));
  EXPECT_EQ(use.tokens, (std::vector<std::int64_t>{4, 2}));
  EXPECT_DOUBLE_EQ(use.load_max_over_mean, 1.5);
  EXPECT_EQ(use.hottest_rank, 0);
  EXPECT_DOUBLE_EQ(use.hottest_share, 1);
}

/// A token's experts in hot strips cost no rank, and no strip more than 2 sqrt(K) ranks (RANKS of strips).
TEST(PlacementUse, StripsTouchFewRanks) {
  const Routing routing =
      make_routing({test::make_shape(40, 8, 48, 48, 36), test::RoutingSkew::kGaussian}, 9);
  const auto ranks_per_token = [&](const char* text, std::int64_t ranks) {
    const ExpertPlacement placement =
        make_placement(PlacementSpec::parse(text), {ranks, 1}, 48, 48, &routing);
    const ExchangePlan plan =
        plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
    return placement_use(plan, placement, routing).ranks_per_token;
  };
  EXPECT_LE(ranks_per_token("strips", 48), 12);
  EXPECT_GT(ranks_per_token("round_robin", 47), 20);
  EXPECT_LT(ranks_per_token("strips+hot:24", 48), ranks_per_token("strips", 48));
  EXPECT_DOUBLE_EQ(ranks_per_token("strips+hot:96", 48), 0);  // everything is everywhere
}

}  // namespace
}  // namespace moescope
