#include "core/ranks/placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/placements.hpp"

namespace moescope {
namespace {

using test::all_placements;
using test::error_text;
using test::make_routing;

TEST(PlacementSpec, ReadsWhatItPrints) {
  for (const std::string& text : all_placements()) {
    EXPECT_EQ(PlacementSpec::parse(text).text(), text);
  }
  EXPECT_EQ(PlacementSpec::parse("eplb:0,4").text(), "eplb:0,4");
}

TEST(PlacementSpec, RefusesWhatItDoesNotKnow) {
  for (const char* text : {"", "Linear", "strips+hot", "strips+hot:", "strips+hot:0", "strips+hot:-1",
                           "strips:4", "eplb:", "eplb:0", "eplb:8,", "eplb:8,1", "eplb:8,2,3", "lpt:2",
                           "clustered+tokens:1", "strips+hot:99999999999", "eplb:08"}) {
    EXPECT_EQ(error_text<InvalidArgument>([&] { PlacementSpec::parse(text); }),
              std::string("placement = ") + text +
                  ": must be linear, round_robin, rows, columns, blocks, strips, strips+hot:H, lpt, eplb, "
                  "eplb:COPIES, eplb:COPIES,GROUPS, clustered or clustered+tokens");
  }
}

TEST(RankGroup, RefusesWhatDoesNotDivide) {
  EXPECT_NO_THROW((RankGroup{64, 8}.validate()));
  EXPECT_EQ(error_text<InvalidArgument>([] {
              RankGroup{0, 1}.validate();
            }),
            "ranks = 0: must be from 1 to 1024");
  EXPECT_EQ(error_text<InvalidArgument>([] {
              RankGroup{1025, 1}.validate();
            }),
            "ranks = 1025: must be from 1 to 1024");
  EXPECT_EQ(error_text<InvalidArgument>([] {
              RankGroup{8, 3}.validate();
            }),
            "nodes = 3: must divide ranks = 8");
  EXPECT_EQ(error_text<InvalidArgument>([] {
              RankGroup{8, 0}.validate();
            }),
            "nodes = 0: must divide ranks = 8");
}

TEST(RankGroup, SharesThingsInOrder) {
  for (const std::int64_t ranks : {1, 2, 3, 7, 64}) {
    for (const std::int64_t count : {1, 5, 64, 100}) {
      const RankGroup group{ranks, 1};
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t owner = group.owner_of(i, count);
        EXPECT_GE(i, group.first_of(owner, count));
        EXPECT_LT(i, group.first_of(owner + 1, count));
      }
      EXPECT_EQ(group.first_of(ranks, count), count);
    }
  }
}

TEST(ExpertPlacement, IsValidForEveryRuleGridAndNumberOfRanks) {
  for (const test::RoutingCase& c : test::routing_cases()) {
    const Routing seen = make_routing(c, 5);
    for (const std::string& text : all_placements(c.shape.grid_rows + c.shape.grid_cols)) {
      for (const std::int64_t ranks : {1, 2, 3, 4, 7, 8, 64}) {
        const PlacementSpec spec = test::fitting(PlacementSpec::parse(text), seen, ranks);
        const ExpertPlacement placement =
            make_placement(spec, {ranks, 1}, c.shape.grid_rows, c.shape.grid_cols, &seen);
        EXPECT_NO_THROW(placement.validate()) << c << text << ranks;
        EXPECT_GE(placement.copies(), 0) << c << text << ranks;
      }
    }
  }
}

/// Equal shares of experts, whatever the rule, as far as the grid allows.
TEST(ExpertPlacement, SharesExpertsEqually) {
  const Routing seen = make_routing({test::make_shape(64, 8, 16, 16, 8), test::RoutingSkew::kPopular}, 3);
  for (const char* text : {"linear", "round_robin", "rows", "columns", "blocks", "lpt", "clustered"}) {
    const ExpertPlacement placement = make_placement(PlacementSpec::parse(text), {8, 1}, 16, 16, &seen);
    EXPECT_EQ(placement.experts_per_rank(), std::vector<std::int64_t>(8, 32)) << text;
    EXPECT_EQ(placement.copies(), 0) << text;
  }
  const auto copied =
      make_placement(PlacementSpec::parse("eplb:16"), {8, 1}, 16, 16, &seen).experts_per_rank();
  EXPECT_LE(std::ranges::max(copied), 34);
  // Strips: 2 rows and 2 columns a rank, which meet in 4 experts.
  EXPECT_EQ(make_placement(PlacementSpec::parse("strips"), {8, 1}, 16, 16, nullptr).experts_per_rank(),
            std::vector<std::int64_t>(8, 2 * 32 - 4));
}

TEST(ExpertPlacement, HoldsByHandWhereItShould) {
  const auto rank_of = [](const char* text, std::int64_t expert) {
    return make_placement(PlacementSpec::parse(text), {4, 1}, 4, 8, nullptr).holders_of(expert).front();
  };
  EXPECT_EQ(rank_of("rows", 15), 1);         // row 1
  EXPECT_EQ(rank_of("columns", 15), 3);      // column 7
  EXPECT_EQ(rank_of("linear", 15), 1);       // 8 experts each
  EXPECT_EQ(rank_of("round_robin", 15), 3);  // 15 mod 4
  EXPECT_EQ(rank_of("blocks", 15), 1);       // 2 x 2 rectangles of 2 x 4
  EXPECT_EQ(rank_of("blocks", 16), 2);
}

TEST(ExpertPlacement, SaysWhatItNeeds) {
  const Routing seen = test::routing_of(2, 2, {{0, 3}});
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("lpt"), {2, 1}, 2, 2, nullptr);
            }),
            "placement = lpt: goes by counts: it needs routing to be made from");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("lpt"), {2, 1}, 4, 1, &seen);
            }),
            "placement = lpt: was given routing on a 2 x 2 grid, the layer's is 4 x 1");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("strips+hot:5"), {2, 1}, 2, 2, &seen);
            }),
            "placement = strips+hot:5: a grid of 2 x 2 has 4 strips");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("eplb:5"), {2, 1}, 2, 2, &seen);
            }),
            "copies = 5: must be from 0 to 4: 4 experts on 2 ranks");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("eplb:2,3"), {2, 1}, 2, 2, &seen);
            }),
            "expert_groups = 3: must divide 4 experts");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              make_placement(PlacementSpec::parse("eplb:1,2"), {2, 2}, 2, 2, &seen);
            }),
            "copies = 1: must be as many for each of 2 nodes");
}

TEST(ExpertPlacement, RefusesDataThatLies) {
  const ExpertPlacement good = make_placement(PlacementSpec::parse("strips"), {2, 1}, 2, 2, nullptr);
  const auto refused = [&](auto&& spoil) {
    ExpertPlacement bad = good;
    spoil(bad);
    return error_text<InvalidArgument>([&] { bad.validate(); });
  };
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.holders[0] = 2; }),
            "holders of expert 0 [0] = 2: must ascend below 2 ranks");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.holder_offsets[1] = 0; }), "expert = 0: must lie on a rank");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.holder_offsets.pop_back(); }),
            "holder_offsets.size = 4: must be 5");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.holders.pop_back(); }), "holders.size = 5: must be 6");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.row_owner[0] = 1; }),
            "expert = 0: must lie on rank 1, its strip's");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.col_owner[1] = 2; }),
            "col_owner[1] = 2: must be a rank below 2, or -1");
  EXPECT_EQ(refused([](ExpertPlacement& p) { p.col_owner.clear(); }), "col_owner.size = 0: must be 2");
}

/// Ranks as sets of experts, ranks of a node in any order: what does not depend on ties.
using Ranks = std::multiset<std::multiset<std::int32_t>>;

/// The example of EPLB's README (github.com/deepseek-ai/EPLB): counts, arguments and printed output.
TEST(ReplicateAndPack, AgreesWithThePublishedExample) {
  constexpr std::array<std::array<std::int64_t, 12>, 2> kCounts = {
      {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
       {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}}};
  constexpr std::array<std::array<std::int32_t, 16>, 2> kPublished = {
      {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
       {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}}};
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto placed = replicate_and_pack(kCounts[layer], 4, 4, {8, 2});
    ASSERT_EQ(placed.size(), 8U);
    for (std::size_t node = 0; node < 2; ++node) {
      Ranks ours;
      Ranks published;
      for (std::size_t rank = 4 * node; rank < 4 * node + 4; ++rank) {
        ours.emplace(placed[rank].begin(), placed[rank].end());
        published.emplace(kPublished[layer].begin() + 2 * rank, kPublished[layer].begin() + 2 * rank + 2);
      }
      EXPECT_EQ(ours, published) << layer << node;
    }
  }
}

TEST(ReplicateAndPack, GivesEveryRankItsShare) {
  std::vector<std::int64_t> counts;
  for (std::int64_t i = 0; i < 37; ++i) {
    counts.push_back(i * i % 23 * 10);
  }
  for (const std::int64_t ranks : {1, 2, 5, 8, 37, 64}) {
    for (const std::int64_t copies : {0, 1, 9, 30}) {
      if (copies > 37 * (ranks - 1)) {
        continue;
      }
      const auto placed = replicate_and_pack(counts, copies, 1, {ranks, 1});
      std::map<std::int32_t, std::int64_t> times;
      std::size_t least = 1000;
      std::size_t most = 0;
      for (const auto& rank : placed) {
        least = std::min(least, rank.size());
        most = std::max(most, rank.size());
        for (const std::int32_t expert : rank) {
          ++times[expert];
        }
      }
      EXPECT_EQ(times.size(), 37U);
      EXPECT_LE(most, least + 1) << ranks << " " << copies;
      std::int64_t places = 0;
      for (const auto& [expert, count] : times) {
        places += count;
        EXPECT_LE(count, ranks);
      }
      EXPECT_EQ(places, 37 + copies);
    }
  }
}

TEST(HottestStrips, FindsTheStripsThatEveryTokenUses) {
  // Row 2 and column 5 are in every token; the rest differs.
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::int32_t t = 0; t < 6; ++t) {
    std::set<std::int32_t> ids;
    for (std::int32_t i = 0; i < 5; ++i) {
      ids.insert(2 * 8 + i);
      ids.insert(i * 8 + 5);
    }
    ids.insert((t + 1) % 7 * 8 + 7);
    tokens.emplace_back(ids.begin(), ids.end());
  }
  EXPECT_EQ(hottest_strips(test::routing_of(8, 8, tokens), 2), (std::vector<std::int32_t>{2, 8 + 5}));
}

TEST(CoClusters, FindGroupsThatAreThere) {
  // Tokens 0, 2, 4, ... use even experts, the others odd ones: what consecutive ids do not see.
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::int32_t t = 0; t < 16; ++t) {
    std::vector<std::int32_t> ids;
    for (std::int32_t i = 0; i < 4; ++i) {
      ids.push_back(2 * ((i * 2 + t / 4) % 8) + t % 2);
    }
    std::ranges::sort(ids);
    tokens.push_back(ids);
  }
  // A few tokens more on one side give the turns something to start from.
  std::stable_partition(tokens.begin(), tokens.end(), [](const auto& ids) { return ids.front() % 2 == 0; });
  std::swap(tokens[0], tokens[15]);
  std::swap(tokens[3], tokens[12]);
  const Routing routing = test::routing_of(1, 16, tokens);
  const CoClusters clusters = cluster_together(routing, {2, 1});
  for (std::int32_t expert = 2; expert < 16; ++expert) {
    EXPECT_EQ(clusters.expert_rank[expert], clusters.expert_rank[expert % 2]) << expert;
  }
  for (std::int64_t token = 0; token < 16; ++token) {
    EXPECT_EQ(clusters.token_rank[token], clusters.expert_rank[routing.ids_of(token).front()]) << token;
  }
}

}  // namespace
}  // namespace moescope
