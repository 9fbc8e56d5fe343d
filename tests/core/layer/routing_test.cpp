#include "core/layer/routing.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

/// Two tokens on a 2 x 3 grid.
Routing make_routing() { return test::routing_of(2, 3, {{0, 4}, {1, 2, 5}}); }

std::string refusal(const Routing& routing) {
  return test::error_text<InvalidArgument>([&] { routing.validate(); });
}

TEST(Routing, GivesTheExpertsAndGatesOfAToken) {
  const Routing routing = make_routing();
  EXPECT_EQ(routing.num_pairs(), 5);
  EXPECT_EQ(routing.num_experts(), 6);
  EXPECT_EQ(std::vector<std::int32_t>(routing.ids_of(1).begin(), routing.ids_of(1).end()),
            (std::vector<std::int32_t>{1, 2, 5}));
  EXPECT_EQ(routing.gates_of(0).size(), 2U);
  EXPECT_EQ(routing.gates_of(1)[0], 1.0F / 3);
}

TEST(Routing, CountsPairsPerExpertIncludingThoseWithout) {
  EXPECT_EQ(expert_loads(test::routing_of(2, 3, {{0, 4}, {0, 4, 5}})),
            (std::vector<std::int64_t>{2, 0, 0, 0, 2, 1}));
}

TEST(Routing, AcceptsTokensWithoutExpertsAndNoTokens) {
  EXPECT_NO_THROW(make_routing().validate());
  EXPECT_NO_THROW(test::routing_of(2, 3, {{}, {5}, {}}).validate());
  EXPECT_NO_THROW(test::routing_of(1, 1, {}).validate());
}

TEST(Routing, AcceptsEveryTestRouting) {
  for (const auto& c : test::routing_cases()) {
    EXPECT_NO_THROW(test::make_routing(c, 1).validate()) << c.name();
  }
}

TEST(Routing, NamesOffsetsThatAreWrong) {
  Routing routing = make_routing();
  routing.token_offsets = {0, 2};
  EXPECT_EQ(refusal(routing), "token_offsets.size = 2: must be num_tokens + 1 for num_tokens = 2");
  routing.token_offsets = {1, 2, 5};
  EXPECT_EQ(refusal(routing), "token_offsets[0] = 1: must be 0");
  routing.token_offsets = {0, 6, 5};
  EXPECT_EQ(refusal(routing), "token_offsets[2] = 5: must not be below token_offsets[1] = 6");
  routing.token_offsets = {0, 2, 4};
  EXPECT_EQ(refusal(routing), "token_offsets[2] = 4: must be the number of pairs, 5");
  routing.token_offsets = {};
  routing.num_tokens = -1;
  EXPECT_EQ(refusal(routing), "num_tokens = -1: must not be negative");
}

TEST(Routing, NamesIdsThatAreOutOfRangeRepeatedOrUnsorted) {
  Routing routing = make_routing();
  routing.expert_ids = {0, 6, 1, 2, 5};
  EXPECT_EQ(refusal(routing), "expert_ids[token 0, 1] = 6: must be in [0, 6)");
  routing.expert_ids = {-1, 4, 1, 2, 5};
  EXPECT_EQ(refusal(routing), "expert_ids[token 0, 0] = -1: must be in [0, 6)");
  routing.expert_ids = {0, 4, 1, 1, 5};
  EXPECT_EQ(refusal(routing),
            "expert_ids[token 1, 1] = 1: repeats within its token; experts of a token are distinct");
  routing.expert_ids = {0, 4, 1, 5, 2};
  EXPECT_EQ(refusal(routing), "expert_ids[token 1, 2] = 2: follows a larger id; a token's experts ascend");
}

TEST(Routing, NamesGatesThatAreMissingOrNotFinite) {
  Routing routing = make_routing();
  routing.gates[3] = std::nanf("");
  EXPECT_EQ(refusal(routing), "gates[token 1, 1] = nan: must be finite");
  routing.gates[3] = INFINITY;
  EXPECT_EQ(refusal(routing), "gates[token 1, 1] = inf: must be finite");
  routing.gates.pop_back();
  EXPECT_EQ(refusal(routing), "gates.size = 4: must be the number of pairs, 5");
}

TEST(Routing, RefusesGridsThatIdsCannotName) {
  Routing routing = make_routing();
  routing.grid_rows = 0;
  EXPECT_EQ(refusal(routing), "grid = 0 x 3: extents must be at least 1 and their product below 2^31");
  routing.grid_rows = INT64_MAX;
  EXPECT_EQ(refusal(routing),
            "grid = 9223372036854775807 x 3: extents must be at least 1 and their product below 2^31");
}

}  // namespace
}  // namespace moescope
