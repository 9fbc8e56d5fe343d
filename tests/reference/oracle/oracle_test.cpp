// The oracle against values worked out by hand and against a plain second reading of the formulas.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/oracle/oracle.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

using test::error_text;

void fill(HostTensor& tensor, const std::vector<float>& values) {
  std::copy(values.begin(), values.end(), tensor.f32().data);
}

/// d = 1, x = 1, grid 1 x 2: logits are the weights themselves.
LayerInputs tiny_layer(std::int64_t top_k, GateMode mode) {
  auto shape = test::make_shape(1, 1, 1, 2, top_k, 1);
  shape.dtype = Dtype::kF32;
  shape.gate_mode = mode;
  auto inputs = test::make_layer(shape, 2);
  fill(inputs.hidden_states, {1});
  fill(inputs.router.row, {5});
  fill(inputs.router.col, {0, std::log(3.0F)});  // log-probabilities log 1/4, log 3/4
  auto experts = std::make_shared<ExpertWeights>();
  const auto tensor = [](const std::vector<float>& values) {
    HostTensor result(Dtype::kF32, std::ssize(values), 1);
    fill(result, values);
    return result;
  };
  experts->w_in = tensor({2, -1});
  experts->w_out = tensor({10, 100});
  experts->shared = SharedMlpWeights{tensor({1}), tensor({2}), tensor({1000})};
  inputs.experts = experts;
  return inputs;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

TEST(Oracle, WholeLayerByHand) {
  const double shared = silu(1) * 2 * 1000;
  const auto softmax = oracle_layer(tiny_layer(2, GateMode::kSoftmax), {});
  EXPECT_NEAR(softmax.y[0], 0.25 * silu(2) * 10 + 0.75 * silu(-1) * 100 + shared, 1e-5);
  const auto top_one = oracle_layer(tiny_layer(1, GateMode::kSoftmax), {});
  EXPECT_EQ(top_one.routing.expert_ids, (std::vector<std::int32_t>{1}));
  EXPECT_NEAR(top_one.y[0], silu(-1) * 100 + shared, 1e-5);
  const auto probability = oracle_layer(tiny_layer(1, GateMode::kProbability), {});
  EXPECT_NEAR(probability.y[0], 0.75 * silu(-1) * 100 + shared, 1e-5);
  EXPECT_NEAR(probability.routing.threshold[0], std::log(0.75), 1e-7);
}

TEST(Oracle, SelectsTheLowerIdAmongEqualScores) {
  auto inputs = tiny_layer(1, GateMode::kSoftmax);
  fill(inputs.router.col, {0.5F, 0.5F});
  EXPECT_EQ(oracle_routing(inputs, {}).expert_ids, (std::vector<std::int32_t>{0}));
}

TEST(Oracle, ASampleOfTokensEqualsTheirRowsOfTheWhole) {
  for (const LayerShape& shape : test::routing_shapes()) {
    const auto inputs = test::make_layer(shape, 3);
    const auto whole = oracle_layer(inputs, {});
    OracleOptions options;
    options.tokens = spread_tokens(shape.num_tokens, 3);
    const auto sample = oracle_layer(inputs, options);
    ASSERT_EQ(sample.routing.tokens, options.tokens);
    for (std::size_t t = 0; t < options.tokens.size(); ++t) {
      for (std::int64_t k = 0; k < shape.hidden_size; ++k) {
        ASSERT_EQ(sample.view().row(static_cast<std::int64_t>(t))[k], whole.view().row(options.tokens[t])[k]);
      }
    }
  }
}

TEST(Oracle, UsesTheGivenSelectionWithItsOwnGates) {
  const auto inputs = tiny_layer(1, GateMode::kProbability);
  Routing selection = test::routing_of(1, 2, {{0}});
  selection.gates[0] = 77;  // must not be used
  OracleOptions options;
  options.selection = &selection;
  const auto layer = oracle_layer(inputs, options);
  EXPECT_NEAR(layer.y[0], 0.25 * silu(2) * 10 + silu(1) * 2 * 1000, 1e-5);
  EXPECT_EQ(layer.routing.expert_ids, (std::vector<std::int32_t>{1})) << "the oracle's own selection is kept";
}

TEST(Oracle, FixedRoutingKeepsItsGates) {
  auto inputs = tiny_layer(1, GateMode::kSoftmax);
  inputs.fixed_routing = test::routing_of(1, 2, {{0}});
  inputs.fixed_routing->gates[0] = 0.5F;
  EXPECT_NEAR(oracle_layer(inputs, {}).y[0], 0.5 * silu(2) * 10 + silu(1) * 2 * 1000, 1e-5);
}

TEST(CompareSelection, Fp32AndOracleAgreeUpToCountedNearTies) {
  for (LayerShape shape : test::routing_shapes()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        shape.dtype = dtype;
        const auto inputs = test::make_layer(shape, seed);
        const auto routing = reference::router_select(shape, reference::router_project(inputs));
        const auto report = compare_selection(routing, oracle_routing(inputs, {}));
        EXPECT_TRUE(report.ok()) << shape.label() << " seed " << seed << ": " << report.first_wrong;
        EXPECT_EQ(report.compared_pairs, shape.num_pairs());
        EXPECT_LE(report.near_ties, shape.num_pairs() / 100);
      }
    }
  }
}

TEST(CompareSelection, CountsNearTiesApartFromErrors) {
  auto inputs = tiny_layer(1, GateMode::kSoftmax);
  const Routing other = test::routing_of(1, 2, {{0}});
  auto report = compare_selection(other, oracle_routing(inputs, {}));
  EXPECT_EQ(report.wrong, 1);  // expert 0 is far below; expert 1 is the threshold itself
  EXPECT_EQ(report.near_ties, 1);
  EXPECT_FALSE(report.ok());
  EXPECT_TRUE(report.first_wrong.starts_with("token 0, expert 0: score -1.386")) << report.first_wrong;
  fill(inputs.router.col, {0.5F, 0.5F + 0x1p-23F});
  report = compare_selection(other, oracle_routing(inputs, {}));
  EXPECT_EQ(report.wrong, 0);
  EXPECT_EQ(report.near_ties, 2);
  inputs.fixed_routing = test::routing_of(1, 2, {{1}});
  report = compare_selection(other, oracle_routing(inputs, {}));
  EXPECT_EQ(report.wrong, 2);
  EXPECT_EQ(report.first_wrong, "token 0, expert 0: differs from the fixed routing");
}

TEST(Oracle, RefusesTokensAndSelectionsOutsideTheBatch) {
  const auto inputs = test::make_layer(test::make_shape(4, 8, 4, 4, 2), 1);
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              oracle_routing(inputs, {1, 4});
            }),
            "tokens[1] = 4: must ascend and be in [0, 4)");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              oracle_routing(inputs, {2, 2});
            }),
            "tokens[1] = 2: must ascend and be in [0, 4)");
  const Routing selection = test::routing_of(4, 4, {{1}});
  OracleOptions options;
  options.selection = &selection;
  EXPECT_EQ(error_text<InvalidArgument>([&] { oracle_layer(inputs, options); }),
            "selection = 1 tokens, grid 4 x 4: must belong to L4_d8_N16_K2");
}

TEST(SpreadTokens, CoversTheBatchEvenly) {
  EXPECT_EQ(spread_tokens(10, 4), (std::vector<std::int64_t>{0, 3, 6, 9}));
  EXPECT_EQ(spread_tokens(3, 5), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(spread_tokens(7, 1), (std::vector<std::int64_t>{0}));
}

TEST(GatherRows, CopiesTheRowsAsked) {
  const auto tensor = test::random_tensor(Dtype::kBF16, 5, 3, 1, 1, RandomStream::kHiddenStates);
  const auto rows = gather_rows(tensor, {1, 4});
  ASSERT_EQ(rows.rows(), 2);
  for (std::int64_t k = 0; k < 3; ++k) {
    EXPECT_EQ(rows.at(0, k), tensor.at(1, k));
    EXPECT_EQ(rows.at(1, k), tensor.at(4, k));
  }
}

}  // namespace
}  // namespace moescope
