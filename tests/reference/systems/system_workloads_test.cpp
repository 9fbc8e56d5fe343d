// Every workload for every baseline: what its routing looks like, and that the layer is right under it.
#include "core/systems/system_workload.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/error.hpp"
#include "core/schedule/skew.hpp"
#include "core/systems/system_cost.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/content_hash.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/system_routing.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

constexpr std::array kRouted = {System::kGShard, System::kDeepSeekMoe, System::kPkm, System::kPeer};
constexpr std::array kSpecs = {"gaussian:1",      "gaussian:0", "zipf:1.2", "hot:0.5,2",
                               "clustered:4,0.9", "drift:1,3",  "uniform"};

SystemInputs make(std::string_view text, const SystemShape& shape, std::uint64_t seed = 1) {
  return make_workload(WorkloadSpec::parse(text), shape, seed);
}

std::uint64_t hash_of(const SystemInputs& inputs) {
  test::ContentHash hash;
  hash.add(inputs.hidden_states);
  const SystemWeights& weights = *inputs.weights;
  for (const HostTensor* tensor : {&weights.router, &weights.w_in, &weights.w_out}) {
    hash.add(*tensor);
  }
  if (weights.keys) {
    hash.add(weights.keys->queries);
    hash.add(weights.keys->keys);
  }
  if (inputs.fixed_routing) {
    hash.add(inputs.fixed_routing->expert_ids);
    hash.add(inputs.fixed_routing->gates);
  }
  return hash.value();
}

SkewMetrics skew_of(std::string_view text, const SystemShape& shape) {
  return compute_skew(test::routing_of(make(text, shape)));
}

/// Wide enough for statistics; bf16, whose bias is rounded the most.
SystemShape wide(System system, Dtype dtype = Dtype::kBF16) {
  SystemShape shape = test::system_shape(system, 600, 64, 144, system == System::kGShard ? 4 : 8, 2);
  shape.expert_size = shape.has_ffn_experts() ? 8 : 0;
  shape.key_size = shape.has_product_keys() ? 32 : 0;
  shape.dtype = dtype;
  return shape;
}

class SystemWorkloads : public testing::TestWithParam<System> {};

TEST_P(SystemWorkloads, OutputAgreesWithTheOracleUnderEveryFamily) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const SystemShape shape = test::small_system(GetParam(), dtype);
    for (const char* text : kSpecs) {
      const SystemInputs inputs = make(text, shape, 3);
      EXPECT_EQ(inputs.workload, text);
      ReferenceBackend backend;
      const SystemCheck check = check_system(backend, inputs, shape.num_tokens);
      EXPECT_TRUE(check.passed()) << text << " " << shape.label() << " " << to_string(dtype) << ": "
                                  << check.describe();
      EXPECT_EQ(check.selection.compared_pairs, shape.num_tokens * shape.top_k) << text;
    }
  }
}

TEST_P(SystemWorkloads, AreBitIdenticalForASeedAndDifferForAnother) {
  const SystemShape shape = test::small_system(GetParam(), Dtype::kBF16);
  std::set<std::uint64_t> hashes;
  for (const char* text : kSpecs) {
    const auto hash = hash_of(make(text, shape, 5));
    EXPECT_EQ(hash, hash_of(make(text, shape, 5))) << text;
    EXPECT_NE(hash, hash_of(make(text, shape, 6))) << text;
    hashes.insert(hash);
  }
  if (shape.has_routing()) {
    EXPECT_EQ(hashes.size(), kSpecs.size());
  }
}

INSTANTIATE_TEST_SUITE_P(Systems, SystemWorkloads, testing::ValuesIn(test::kBaselines),
                         [](const auto& test) { return std::string(to_string(test.param)); });

class RoutedWorkloads : public testing::TestWithParam<System> {};

TEST_P(RoutedWorkloads, GaussianIsWhatItAlwaysWas) {
  const SystemShape shape = wide(GetParam());
  EXPECT_EQ(hash_of(make("gaussian:2", shape, 7)), hash_of(make_system_inputs(shape, 2, 7)));
}

TEST_P(RoutedWorkloads, ZipfSkewsTheMoreTheLargerItsExponent) {
  double last = 0;
  for (const char* text : {"zipf:0", "zipf:0.5", "zipf:1", "zipf:2"}) {
    const double unevenness = skew_of(text, wide(GetParam())).unevenness;
    EXPECT_GT(unevenness, last + 0.02) << text;
    last = unevenness;
  }
}

TEST_P(RoutedWorkloads, DriftStartsAsZipfAndMovesTheLoadToOtherExperts) {
  const SystemShape shape = wide(GetParam());
  EXPECT_EQ(hash_of(make("zipf:1.5", shape)), hash_of(make("drift:1.5,0", shape)));
  EXPECT_EQ(hash_of(make("zipf:1.5", shape)), hash_of(make("drift:1.5,16", shape)));  // the period
  const auto top = [&](const char* text) {
    const auto loads = expert_loads(test::routing_of(make(text, shape)));
    return std::max_element(loads.begin(), loads.end()) - loads.begin();
  };
  EXPECT_NE(top("drift:1.5,0"), top("drift:1.5,8"));
}

TEST_P(RoutedWorkloads, HotTokensShareTheHotExpertsAndOthersDoNot) {
  const SystemShape shape = wide(GetParam());
  const SystemInputs inputs = make("hot:0.25,1,40", shape);  // out of reach of the noise
  const Routing routing = test::routing_of(inputs);
  const auto loads = expert_loads(routing);
  const auto hot = static_cast<std::int32_t>(std::max_element(loads.begin(), loads.end()) - loads.begin());
  std::int64_t flagged = 0;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const bool flag = to_float(inputs.hidden_states.bf16().row(token)[0]) == 1.0F;
    flagged += flag ? 1 : 0;
    for (std::int64_t head = 0; head < shape.heads && flag; ++head) {
      const auto ids = routing.ids_of(token * shape.heads + head);
      EXPECT_NE(std::find(ids.begin(), ids.end(), hot), ids.end()) << token;
    }
  }
  EXPECT_EQ(flagged, 150);
  // Other tokens choose it as they choose any: K of N.
  const double others = static_cast<double>(loads[static_cast<std::size_t>(hot)] - flagged * shape.heads);
  const double expected = static_cast<double>((shape.num_tokens - flagged) * shape.top_k) / 144;
  EXPECT_LT(std::abs(others - expected), 5 * std::sqrt(expected) + 0.5 * expected);
}

TEST_P(RoutedWorkloads, HotOneOneSendsEveryTokenToTheSameExpert) {
  const SystemShape shape = wide(GetParam());
  const auto loads = expert_loads(test::routing_of(make("hot:1,1,40", shape)));
  EXPECT_EQ(*std::max_element(loads.begin(), loads.end()), shape.num_queries());
}

TEST_P(RoutedWorkloads, TokensOfAClusterShareExperts) {
  const SystemShape shape = wide(GetParam());
  const double shared = skew_of("clustered:3,0.95", shape).unevenness;
  EXPECT_GT(shared, 2 * skew_of("clustered:3,0", shape).unevenness);
  EXPECT_NEAR(skew_of("clustered:3,0", shape).unevenness, skew_of("gaussian:1", shape).unevenness, 0.05);
}

TEST_P(RoutedWorkloads, UniformHasNoRouterAndLoadsAllAlike) {
  const SystemShape shape = wide(GetParam());
  const SystemInputs inputs = make("uniform", shape);
  ASSERT_TRUE(inputs.fixed_routing.has_value());
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  EXPECT_EQ(execution->stages().front(), system_stages(shape.system, true).front());
  EXPECT_EQ(execution->stages().size(), system_stages(shape.system).size() - 2);
  const Routing routing = *inputs.fixed_routing;
  const double mean = static_cast<double>(routing.num_pairs()) / 144;
  double chi_square = 0;
  for (const auto load : expert_loads(routing)) {
    chi_square += (static_cast<double>(load) - mean) * (static_cast<double>(load) - mean) / mean;
  }
  EXPECT_LT(chi_square, 143 + 5 * std::sqrt(2.0 * 143));
  const AnalyticCost cost =
      analytic_cost(shape, routing, system_schedule(shape.system).kind, /*fixed_routing=*/true);
  EXPECT_EQ(cost.bytes(Stage::kRouterProject, MemoryLevel::kHbm), 0);
  EXPECT_EQ(cost.bytes(Stage::kRouterSelect, MemoryLevel::kL2), 0);
  EXPECT_GT(cost.bytes(Stage::kLayer, MemoryLevel::kHbm), 0);
}

INSTANTIATE_TEST_SUITE_P(Systems, RoutedWorkloads, testing::ValuesIn(kRouted),
                         [](const auto& test) { return std::string(to_string(test.param)); });

// A flat router is a grid of one row: OmniMoE on such a grid is skewed alike.
TEST(FlatRouter, IsAGridOfOneRow) {
  SystemShape shape = wide(System::kGShard);
  shape.num_tokens = 3000;
  LayerShape grid;
  grid.num_tokens = shape.num_tokens;
  grid.hidden_size = shape.hidden_size;
  grid.grid_rows = 1;
  grid.grid_cols = shape.num_experts;
  grid.top_k = shape.top_k;
  ReferenceBackend backend;
  for (const char* text : {"zipf:0.7", "zipf:1.5", "hot:0.5,1,20"}) {
    const LayerInputs inputs = make_workload(WorkloadSpec::parse(text), grid, 2);
    const SkewMetrics omnimoe = compute_skew(backend.router_select(grid, backend.router_project(inputs)));
    const SkewMetrics flat = skew_of(text, shape);
    // The draws differ.
    EXPECT_NEAR(flat.unevenness / omnimoe.unevenness, 1, 0.12) << text;
    EXPECT_NEAR(flat.gini / omnimoe.gini, 1, 0.12) << text;
  }
}

TEST(SystemWorkload, RefusesWhatTheRouterHasNoRoomFor) {
  const auto refusal = [](std::string_view text, const SystemShape& shape) {
    return test::error_text<InvalidArgument>([&] { make(text, shape); });
  };
  EXPECT_EQ(refusal("hot:0.5,50", test::small_system(System::kGShard, Dtype::kF32)),
            "workload = hot:0.5,50: COUNT = 50 must not exceed num_experts = 49");
  EXPECT_EQ(refusal("hot:0.5,8", test::small_system(System::kPeer, Dtype::kF32)),
            "workload = hot:0.5,8: COUNT = 8 must not exceed the 7 sub-keys");
  SystemShape narrow = test::small_system(System::kPkm, Dtype::kF32);
  narrow.key_size = 1;
  EXPECT_EQ(refusal("zipf:1", narrow), "key_size = 1: must be at least 2 for workload zipf:1");
  EXPECT_EQ(refusal("uniform", narrow), "(no error)");
}

TEST(SystemWorkload, AFixedRoutingHasToFit) {
  SystemInputs inputs = make("uniform", test::small_system(System::kPeer, Dtype::kF32));
  inputs.fixed_routing->grid_rows = 1;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { inputs.validate(); }),
            "fixed_routing = 111 tokens, grid 1 x 7: must have 111 tokens, grid 7 x 7");
  inputs = make("gaussian:1", test::small_system(System::kDenseMlp, Dtype::kF32));
  inputs.fixed_routing.emplace();
  EXPECT_TRUE(test::error_text<InvalidArgument>([&] {
                inputs.validate();
              }).starts_with("fixed_routing = present: must be absent for dense_mlp"));
}

}  // namespace
}  // namespace moescope
