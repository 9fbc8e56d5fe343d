#include "profiler/cluster/rank_timeline.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace moescope {
namespace {

/// Two ranks, one chunk; the second is slower.
RankTimes two_ranks() {
  return {.router_s = {10, 12},
          .experts_s = {{30, 40}},
          .shared_s = {5, 5},
          .sum_s = {1, 1},
          .pairs_s = 2,
          .rows_s = {20},
          .returns_s = {7}};
}

TEST(RankTimeline, WithoutOverlapEverythingIsAddedUp) {
  // Router 12, pairs 2, rows 20, experts 40, return 7, sum 1, shared 5.
  EXPECT_DOUBLE_EQ(play(two_ranks(), Exchange::kGather, false).layer_s, 87);
  RankTimes dispatch = two_ranks();
  dispatch.pairs_s = 0;
  EXPECT_DOUBLE_EQ(play(dispatch, Exchange::kDispatch, false).layer_s, 85);
}

TEST(RankTimeline, AGatherTravelsBehindTheRouterAndReturnsBehindTheSharedMlp) {
  // Rows until 20, pairs until 22, experts until 62, then return (7) beside shared (5), sum 1.
  const RankTimeline timeline = play(two_ranks(), Exchange::kGather, true);
  EXPECT_DOUBLE_EQ(timeline.layer_s, 70);
  EXPECT_DOUBLE_EQ(timeline.rank_s[0], 70);
  RankTimes slow_router = two_ranks();
  slow_router.router_s = {25, 25};  // rows are there at 20, pairs at 27
  EXPECT_DOUBLE_EQ(play(slow_router, Exchange::kGather, true).layer_s, 75);
}

TEST(RankTimeline, ADispatchWaitsForTheRouter) {
  RankTimes times = two_ranks();
  times.pairs_s = 0;  // they travel with the rows
  EXPECT_DOUBLE_EQ(play(times, Exchange::kDispatch, true).layer_s, 12 + 20 + 40 + 7 + 1);
}

TEST(RankTimeline, ChunksTravelWhileOthersAreComputed) {
  RankTimes times = two_ranks();
  times.pairs_s = 0;
  times.experts_s = {{20, 20}, {20, 20}};
  times.rows_s = {10, 10};
  times.returns_s = {4, 4};
  times.shared_s = {0, 0};
  times.sum_s = {0, 0};
  // Router 12, first rows until 22, experts until 42 and 62, the second return until 66.
  const RankTimeline timeline = play(times, Exchange::kDispatch, true);
  EXPECT_DOUBLE_EQ(timeline.layer_s, 66);
  EXPECT_TRUE(std::ranges::is_sorted(timeline.events, {}, &RankEvent::begin_s));
  const auto returns = std::ranges::count(timeline.events, Stage::kTokenCombine, &RankEvent::stage);
  EXPECT_EQ(returns, 2);
}

TEST(RankTimeline, PairsGoBeforeRowsThatHaveNotBegun) {
  RankTimes times = two_ranks();
  times.router_s = {5, 5};
  times.rows_s = {10, 10};
  times.experts_s = {{20, 20}, {20, 20}};
  times.returns_s = {0, 0};
  times.shared_s = {0, 0};
  times.sum_s = {0, 0};
  // First rows until 10, pairs until 12, second rows until 22; experts 12 to 52.
  EXPECT_DOUBLE_EQ(play(times, Exchange::kGather, true).layer_s, 52);
}

TEST(RankTimeline, ExchangesThatTakeNoTimeLeaveTheStages) {
  EXPECT_DOUBLE_EQ(play(without_exchanges(two_ranks()), Exchange::kGather, true).layer_s, 12 + 40 + 5 + 1);
}

}  // namespace
}  // namespace moescope
