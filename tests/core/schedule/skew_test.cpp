#include "core/schedule/skew.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

TEST(Skew, OfAHandCountedRouting) {
  // Grid 2 x 3. Loads: expert 0: 3, 1: 2, 4: 1, others 0; M = 6, N = 6.
  const SkewMetrics skew = compute_skew(test::routing_of(2, 3, {{0, 1}, {0, 4}, {0, 1}}));
  EXPECT_EQ(skew.num_pairs, 6);
  EXPECT_EQ(skew.active_experts, 3);
  EXPECT_DOUBLE_EQ(skew.usage, 0.5);
  EXPECT_NEAR(skew.unevenness, std::log(3.0) / 2 + std::log(2.0) / 3,
              1e-15);  // sum p ln(6 p), p = 1/2, 1/3, 1/6
  EXPECT_NEAR(skew.gini, 2 * (4 * 1 + 5 * 2 + 6 * 3) / 36.0 - 7.0 / 6, 1e-15);
  EXPECT_DOUBLE_EQ(skew.max_over_mean, 3);
  EXPECT_NEAR(skew.effective_experts, 1 / (9 / 36.0 + 4 / 36.0 + 1 / 36.0), 1e-14);
  EXPECT_DOUBLE_EQ(skew.reuse, 2);
  EXPECT_DOUBLE_EQ(skew.rows_per_token, 4 / 3.0);    // 1, 2, 1
  EXPECT_DOUBLE_EQ(skew.cols_per_token, 2);          // 2, 2, 2
  EXPECT_DOUBLE_EQ(skew.strips_per_token, 4 / 3.0);  // row 0; two strips; row 0
  EXPECT_EQ(skew.max_strips_per_token, 2);
}

TEST(Skew, OfAnEvenRoutingIsZero) {
  const SkewMetrics skew = compute_skew(test::routing_of(2, 2, {{0, 1, 2, 3}, {0, 1, 2, 3}}));
  EXPECT_EQ(skew.unevenness, 0);
  EXPECT_EQ(skew.gini, 0);
  EXPECT_DOUBLE_EQ(skew.max_over_mean, 1);
  EXPECT_DOUBLE_EQ(skew.effective_experts, 4);
  EXPECT_DOUBLE_EQ(skew.usage, 1);
}

TEST(Skew, OfAllTokensOnOneExpertIsTheLargestThereIs) {
  const SkewMetrics skew = compute_skew(test::routing_of(4, 8, {{9}, {9}, {9}}));
  EXPECT_NEAR(skew.unevenness, std::log(32.0), 1e-14);
  EXPECT_NEAR(skew.gini, 31 / 32.0, 1e-14);
  EXPECT_DOUBLE_EQ(skew.max_over_mean, 32);
  EXPECT_DOUBLE_EQ(skew.effective_experts, 1);
  EXPECT_DOUBLE_EQ(skew.reuse, 3);
  EXPECT_DOUBLE_EQ(skew.strips_per_token, 1);
}

TEST(Skew, OfNoPairsIsZeroThroughout) {
  const SkewMetrics skew = compute_skew(test::routing_of(2, 2, {{}, {}}));
  EXPECT_EQ(skew.num_pairs, 0);
  EXPECT_EQ(skew.usage, 0);
  EXPECT_EQ(skew.reuse, 0);
  EXPECT_EQ(skew.strips_per_token, 0);
}

TEST(Skew, StaysWithinTheBoundsOfItsDefinitionsForAllTestRoutings) {
  for (const auto& c : test::routing_cases()) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      const Routing routing = test::make_routing(c, seed);
      const SkewMetrics skew = compute_skew(routing);
      const auto experts = static_cast<double>(c.shape.num_experts());
      SCOPED_TRACE(c.name());
      EXPECT_GE(skew.unevenness, 0);
      EXPECT_LE(skew.unevenness, std::log(experts) + 1e-12);
      EXPECT_GE(skew.gini, 0);
      EXPECT_LT(skew.gini, 1);
      EXPECT_LE(skew.effective_experts, static_cast<double>(skew.active_experts) + 1e-9);
      EXPECT_GE(skew.effective_experts, 1 - 1e-12);
      EXPECT_GE(skew.max_over_mean, 1 - 1e-12);
      EXPECT_LE(skew.strips_per_token, std::min(skew.rows_per_token, skew.cols_per_token));
      std::int64_t strips = 0;
      for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
        strips += minimal_strip_cover(routing.ids_of(token), routing.grid_rows, routing.grid_cols).strips();
      }
      EXPECT_DOUBLE_EQ(skew.strips_per_token,
                       static_cast<double>(strips) / static_cast<double>(routing.num_tokens));
      if (test::is_staircase_skew(c.skew)) {
        EXPECT_LE(static_cast<double>(skew.max_strips_per_token), 2 * std::sqrt(c.shape.top_k) + 1e-9);
      }
    }
  }
}

TEST(Skew, LoadQuantilesAreNearestRanksOverAllExperts) {
  const Routing routing = test::routing_of(1, 5, {{1, 3}, {1, 3}, {3, 4}, {3}});  // loads 0 2 0 4 1
  const std::array fractions = {0.0, 0.2, 0.21, 0.5, 0.6, 0.61, 0.8, 0.81, 1.0};
  EXPECT_EQ(load_quantiles(routing, fractions), (std::vector<std::int64_t>{0, 0, 0, 1, 1, 2, 2, 4, 4}));
  const std::array too_large = {0.5, 1.5};
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { load_quantiles(routing, too_large); }),
            "fraction = 1.5: must be in [0, 1]");
  const std::array not_a_number = {std::nan("")};
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { load_quantiles(routing, not_a_number); }),
            "fraction = nan: must be in [0, 1]");
}

}  // namespace
}  // namespace moescope
