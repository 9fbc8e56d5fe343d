// The strip cover of one token and the staircase schedule.
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/strip_cover.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using test::RoutingSkew;

using Ids = std::vector<std::int32_t>;

/// min over k, straight from the definition.
std::int64_t brute_force_cover_size(const Ids& ids, std::int64_t grid_cols) {
  std::map<std::int64_t, std::set<std::int64_t>> cols_of_row;
  for (const std::int32_t id : ids) cols_of_row[id / grid_cols].insert(id % grid_cols);
  auto best = static_cast<std::int64_t>(cols_of_row.size());
  for (std::size_t k = 1; k <= static_cast<std::size_t>(grid_cols); ++k) {
    std::int64_t rows = 0;
    std::set<std::int64_t> cols;
    for (const auto& [row, of_row] : cols_of_row) {
      if (of_row.size() > k) {
        ++rows;
      } else {
        cols.insert(of_row.begin(), of_row.end());
      }
    }
    best = std::min(best, rows + static_cast<std::int64_t>(cols.size()));
  }
  return best;
}

/// The smallest set of rows and columns that covers every cell: all subsets of rows, the rest by columns.
std::int64_t smallest_vertex_cover(const Ids& ids, std::int64_t grid_rows, std::int64_t grid_cols) {
  std::int64_t best = grid_rows + grid_cols;
  for (std::uint32_t rows = 0; rows < (1U << grid_rows); ++rows) {
    std::set<std::int64_t> cols;
    for (const std::int32_t id : ids) {
      if ((rows >> (id / grid_cols) & 1U) == 0) cols.insert(id % grid_cols);
    }
    best = std::min<std::int64_t>(best, std::popcount(rows) + static_cast<std::int64_t>(cols.size()));
  }
  return best;
}

bool covers(const StripCover& cover, const Ids& ids, std::int64_t grid_cols) {
  return std::all_of(ids.begin(), ids.end(), [&](std::int32_t id) {
    return std::binary_search(cover.rows.begin(), cover.rows.end(),
                              static_cast<std::int32_t>(id / grid_cols)) ||
           std::binary_search(cover.cols.begin(), cover.cols.end(),
                              static_cast<std::int32_t>(id % grid_cols));
  });
}

struct Grid {
  std::int64_t rows, cols;
};

TEST(StripCover, CoversEveryStaircaseWithAtMostTwoSqrtKStrips) {
  for (const Grid grid : {Grid{16, 16}, Grid{40, 6}, Grid{5, 33}, Grid{1, 20}, Grid{20, 1}, Grid{32, 32}}) {
    const std::int64_t num_experts = grid.rows * grid.cols;
    for (const std::int64_t top_k :
         {std::int64_t{1}, num_experts / 9 + 1, num_experts / 3 + 1, num_experts - 1, num_experts}) {
      if (top_k < 1) continue;
      for (const RoutingSkew skew : {RoutingSkew::kGaussian, RoutingSkew::kPopular, RoutingSkew::kTies}) {
        const RoutingCase c{test::make_shape(25, 8, grid.rows, grid.cols, top_k), skew};
        const Routing routing = test::make_routing(c, 7);
        for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
          const Ids ids(routing.ids_of(token).begin(), routing.ids_of(token).end());
          const StripCover cover = minimal_strip_cover(ids, grid.rows, grid.cols);
          EXPECT_LE(cover.strips() * cover.strips(), 4 * top_k) << c << " token " << token;
          EXPECT_EQ(cover.strips(), brute_force_cover_size(ids, grid.cols)) << c << " token " << token;
          EXPECT_TRUE(covers(cover, ids, grid.cols)) << c << " token " << token;
        }
      }
    }
  }
}

TEST(StripCover, IsTheSmallestVertexCoverOfAStaircase) {
  for (const Grid grid : {Grid{8, 8}, Grid{10, 4}, Grid{4, 10}}) {
    for (std::int64_t top_k = 1; top_k <= grid.rows * grid.cols; top_k += 3) {
      const RoutingCase c{test::make_shape(12, 8, grid.rows, grid.cols, top_k), RoutingSkew::kGaussian};
      const Routing routing = test::make_routing(c, static_cast<std::uint64_t>(top_k));
      for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
        const Ids ids(routing.ids_of(token).begin(), routing.ids_of(token).end());
        EXPECT_EQ(minimal_strip_cover(ids, grid.rows, grid.cols).strips(),
                  smallest_vertex_cover(ids, grid.rows, grid.cols))
            << c << " token " << token;
      }
    }
  }
}

TEST(StripCover, IsTheSmallestOfArbitrarySetsToo) {
  const Philox random(11, 0);
  std::int64_t better_than_by_length = 0;
  for (const Grid grid : {Grid{11, 13}, Grid{8, 9}, Grid{9, 4}, Grid{3, 12}, Grid{1, 7}, Grid{7, 1}}) {
    const std::int64_t num_experts = grid.rows * grid.cols;
    for (std::uint64_t draw = 0; draw < 300; ++draw) {
      const auto top_k = 1 + static_cast<std::int64_t>(draw) % std::min<std::int64_t>(num_experts, 40);
      const Ids ids = test::random_ids(random, draw, 0, num_experts, top_k);
      const StripCover cover = minimal_strip_cover(ids, grid.rows, grid.cols);
      EXPECT_EQ(cover.strips(), smallest_vertex_cover(ids, grid.rows, grid.cols)) << "draw " << draw;
      EXPECT_TRUE(covers(cover, ids, grid.cols)) << "draw " << draw;
      EXPECT_TRUE(std::is_sorted(cover.rows.begin(), cover.rows.end()));
      EXPECT_TRUE(std::is_sorted(cover.cols.begin(), cover.cols.end()));
      better_than_by_length += cover.strips() < brute_force_cover_size(ids, grid.cols) ? 1 : 0;
    }
  }
  EXPECT_GT(better_than_by_length, 10);  // else the draws tell nothing of it
}

TEST(StripCover, OfATokenDoesNotDependOnTheTokensBefore) {
  const Philox random(12, 0);
  SmallestCover reused(20, 30, 600);
  ThresholdCover by_length(30, 600);
  for (std::uint64_t draw = 0; draw < 60; ++draw) {
    const Ids ids = test::random_ids(random, draw, 0, 600, 1 + static_cast<std::int64_t>(draw * 10));
    EXPECT_EQ(reused.size(ids), minimal_strip_cover(ids, 20, 30).strips()) << "draw " << draw;
    EXPECT_EQ(by_length.find(ids).strips, brute_force_cover_size(ids, 30)) << "draw " << draw;
  }
}

TEST(StripCover, MayTakeRowsAndColumnsThatNoLengthTellsApart) {
  // Rows 0 and 1 select two columns each, but row 0 takes its own two while row 1's are others' too.
  const Ids ids{0, 1, 6, 7, 10, 15};  // row 0: columns 0, 1; row 1: 2, 3; row 2: 2; row 3: 3
  EXPECT_EQ(brute_force_cover_size(ids, 4), 4);
  const StripCover cover = minimal_strip_cover(ids, 4, 4);
  EXPECT_EQ(cover.rows, Ids{0});
  EXPECT_EQ(cover.cols, (Ids{2, 3}));
}

TEST(StripCover, PrefersRowsWhenCoversAreEquallySmall) {
  // One cell: a row or a column would do. A 2x2 block: two rows or two columns.
  const StripCover one = minimal_strip_cover(Ids{5}, 4, 4);
  EXPECT_EQ(one.rows, Ids{1});
  EXPECT_TRUE(one.cols.empty());
  const StripCover block = minimal_strip_cover(Ids{0, 1, 4, 5}, 4, 4);
  EXPECT_EQ(block.rows, (Ids{0, 1}));
  EXPECT_TRUE(block.cols.empty());
}

TEST(StripCover, TakesLongRowsAndTheColumnUnderThem) {
  // Rows 0 and 2 are long; rows 1 and 3 select column 2 alone.
  const StripCover cover = minimal_strip_cover(Ids{0, 1, 2, 6, 9, 10, 11, 14}, 4, 4);
  EXPECT_EQ(cover.rows, (Ids{0, 2}));
  EXPECT_EQ(cover.cols, Ids{2});
}

TEST(StripCover, OfNothingIsEmpty) { EXPECT_EQ(minimal_strip_cover(Ids{}, 3, 3).strips(), 0); }

TEST(StripCover, RefusesIdsOutsideTheGridOrOutOfOrder) {
  const auto message = [](const Ids& ids) {
    try {
      minimal_strip_cover(ids, 3, 3);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message({0, 9}), "expert_ids[1] = 9: must lie in [0, 9) and ascend");
  EXPECT_EQ(message({-1}), "expert_ids[0] = -1: must lie in [0, 9) and ascend");
  EXPECT_EQ(message({4, 4}), "expert_ids[1] = 4: must lie in [0, 9) and ascend");
}

TEST(StaircaseSchedule, CountsAPairInBothARowAndAColumnInTheRowOnly) {
  // Token 0: rows 0, 2 and column 2 as above; pairs 2 and 5 are column 2 cells of chosen rows.
  const Routing routing = test::routing_of(4, 4, {{0, 1, 2, 6, 9, 10, 11, 14}});
  const Schedule schedule = build_staircase(routing, {});
  ASSERT_EQ(schedule.items.size(), 3U);
  EXPECT_EQ(schedule.items[0].kind, WorkItemKind::kRowStrip);
  EXPECT_EQ(schedule.items[0].strip, 0);
  EXPECT_EQ(schedule.items[1].kind, WorkItemKind::kRowStrip);
  EXPECT_EQ(schedule.items[1].strip, 2);
  EXPECT_EQ(schedule.items[2].kind, WorkItemKind::kColStrip);
  EXPECT_EQ(schedule.items[2].strip, 2);
  EXPECT_EQ(schedule.tokens, (Ids{0, 0, 0}));
  EXPECT_EQ(schedule.pair_offsets, (std::vector<std::int64_t>{0, 3, 6, 8}));
  EXPECT_EQ(schedule.sorted_pair_ids, (std::vector<std::int64_t>{0, 1, 2, 4, 5, 6, 3, 7}));
  EXPECT_TRUE(schedule.experts.empty());
}

TEST(StaircaseSchedule, SendsATokenWithoutAStaircaseToGroups) {
  // Token 0 is a diagonal of 8 cells: its cover, 8, is more than 2 sqrt(8). Token 1 is one row.
  const Routing routing = test::routing_of(8, 8, {{0, 9, 18, 27, 36, 45, 54, 63}, {16, 17, 18}});
  const Schedule schedule = build_staircase(routing, {.group_size = 3});
  ASSERT_EQ(schedule.items.size(), 4U);
  EXPECT_EQ(schedule.items[0].kind, WorkItemKind::kRowStrip);
  EXPECT_EQ(schedule.items[0].strip, 2);
  for (std::size_t i = 1; i < 4; ++i) EXPECT_EQ(schedule.items[i].kind, WorkItemKind::kGroup);
  EXPECT_EQ(schedule.experts, (Ids{0, 9, 18, 27, 36, 45, 54, 63}));
  EXPECT_EQ(schedule.items[3].expert_begin, 6);
  EXPECT_EQ(schedule.items[3].expert_end, 8);
  EXPECT_EQ(schedule.tokens, (Ids{1, 0, 0, 0}));
}

TEST(StaircaseSchedule, UsesStripsAloneForRoutingOfTheGrid) {
  for (const RoutingCase& c : test::routing_cases()) {
    if (!test::is_staircase_skew(c.skew)) continue;
    const Schedule schedule = build_staircase(test::make_routing(c, 3), {});
    EXPECT_TRUE(schedule.experts.empty()) << c;
    for (const WorkItem& item : schedule.items) EXPECT_NE(item.kind, WorkItemKind::kGroup) << c;
  }
}

TEST(StaircaseSchedule, GivesEachTokenItsMinimalCover) {
  const RoutingCase c{test::make_shape(60, 8, 20, 20, 50), RoutingSkew::kGaussian};
  const Routing routing = test::make_routing(c, 5);
  const Schedule schedule = build_staircase(routing, {});
  std::vector<StripCover> covers_of(static_cast<std::size_t>(routing.num_tokens));
  for (const WorkItem& item : schedule.items) {
    for (std::int64_t t = item.token_begin; t < item.token_end; ++t) {
      StripCover& cover = covers_of[schedule.tokens[t]];
      (item.kind == WorkItemKind::kRowStrip ? cover.rows : cover.cols).push_back(item.strip);
    }
  }
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const StripCover expected = minimal_strip_cover(routing.ids_of(token), 20, 20);
    EXPECT_EQ(covers_of[token].rows, expected.rows) << "token " << token;
    EXPECT_EQ(covers_of[token].cols, expected.cols) << "token " << token;
  }
}

TEST(StaircaseSchedule, OfRowsAloneTakesEveryRowInUseOnce) {
  for (const RoutingSkew skew : {RoutingSkew::kGaussian, RoutingSkew::kUniform}) {
    const Routing routing = test::make_routing({test::make_shape(60, 8, 20, 30, 50), skew}, 5);
    const Schedule schedule = build_staircase(routing, {.strip_rule = StripRule::kRowsOnly});
    validate(schedule, routing);
    std::vector<std::set<std::int32_t>> rows_of(static_cast<std::size_t>(routing.num_tokens));
    for (const WorkItem& item : schedule.items) {
      ASSERT_EQ(item.kind, WorkItemKind::kRowStrip);
      for (std::int64_t t = item.token_begin; t < item.token_end; ++t) {
        EXPECT_TRUE(rows_of[schedule.tokens[t]].insert(item.strip).second);
      }
    }
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      std::set<std::int32_t> expected;
      for (const std::int32_t id : routing.ids_of(token)) expected.insert(id / 30);
      EXPECT_EQ(rows_of[token], expected) << "token " << token;
    }
  }
}

}  // namespace
}  // namespace moescope
