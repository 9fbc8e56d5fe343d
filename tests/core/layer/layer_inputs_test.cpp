#include "core/layer/layer_inputs.hpp"

#include <gtest/gtest.h>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

LayerInputs make_inputs() {
  LayerInputs inputs;
  inputs.shape = test::make_shape(3, 8, 4, 2, 2, 5);
  inputs.hidden_states = HostTensor::zeros(Dtype::kBF16, 3, 8);
  inputs.router.row = HostTensor::zeros(Dtype::kBF16, 4, 8);
  inputs.router.col = HostTensor::zeros(Dtype::kBF16, 2, 8);
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = HostTensor::zeros(Dtype::kBF16, 8, 8);
  experts->w_out = HostTensor::zeros(Dtype::kBF16, 8, 8);
  experts->shared =
      SharedMlpWeights{HostTensor::zeros(Dtype::kBF16, 5, 8), HostTensor::zeros(Dtype::kBF16, 5, 8),
                       HostTensor::zeros(Dtype::kBF16, 8, 5)};
  inputs.experts = experts;
  return inputs;
}

std::string refusal(const LayerInputs& inputs) {
  return test::error_text<InvalidArgument>([&] { inputs.validate(); });
}

TEST(LayerInputs, AcceptsWhatFits) {
  auto inputs = make_inputs();
  EXPECT_NO_THROW(inputs.validate());
  inputs.router.row_bias.assign(4, 0);
  inputs.router.col_bias.assign(2, 0);
  EXPECT_NO_THROW(inputs.validate());
}

TEST(LayerInputs, NamesTheTensorWhoseExtentsOrTypeDoNotFit) {
  auto inputs = make_inputs();
  inputs.hidden_states = HostTensor::zeros(Dtype::kBF16, 2, 8);
  EXPECT_EQ(refusal(inputs), "hidden_states = [2, 8] bf16: must be [3, 8] bf16 for L3_d8_N4x2_K2");
  inputs = make_inputs();
  inputs.router.col = HostTensor::zeros(Dtype::kF32, 2, 8);
  EXPECT_EQ(refusal(inputs), "router.col = [2, 8] fp32: must be [2, 8] bf16 for L3_d8_N4x2_K2");
  inputs = make_inputs();
  inputs.router.row_bias.assign(5, 0);
  EXPECT_EQ(refusal(inputs), "router.row_bias = [5]: must be empty or [4]");
}

TEST(LayerInputs, ChecksExpertWeightsAndTheSharedMlp) {
  auto inputs = make_inputs();
  inputs.experts = nullptr;
  EXPECT_EQ(refusal(inputs), "experts = null: a layer needs expert weights");
  inputs = make_inputs();
  inputs.shape.shared_size = 0;
  EXPECT_EQ(refusal(inputs), "experts.shared = present: shape.shared_size is 0");
  inputs = make_inputs();
  inputs.shape.shared_size = 6;
  EXPECT_EQ(refusal(inputs), "shared.gate = [5, 8] bf16: must be [6, 8] bf16 for L3_d8_N4x2_K2");
  inputs = make_inputs();
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = HostTensor::zeros(Dtype::kBF16, 8, 8);
  experts->w_out = HostTensor::zeros(Dtype::kBF16, 7, 8);
  inputs.experts = experts;
  EXPECT_EQ(refusal(inputs), "experts.w_out = [7, 8] bf16: must be [8, 8] bf16 for L3_d8_N4x2_K2");
}

TEST(LayerInputs, FixedRoutingStandsInForTheRouterAndMustFit) {
  auto inputs = make_inputs();
  inputs.router = {};
  EXPECT_EQ(refusal(inputs), "router.row = [0, 0] fp32: must be [4, 8] bf16 for L3_d8_N4x2_K2");
  inputs.fixed_routing = test::routing_of(4, 2, {{0, 1}, {2, 3}, {4, 7}});
  EXPECT_NO_THROW(inputs.validate());
  inputs.fixed_routing = test::routing_of(2, 4, {{0, 1}, {2, 3}, {4, 7}});
  EXPECT_EQ(refusal(inputs), "fixed_routing = 3 tokens, grid 2 x 4: must have 3 tokens, grid 4 x 2");
  inputs.fixed_routing = test::routing_of(4, 2, {{0, 1}, {2}, {4, 7}});
  EXPECT_EQ(refusal(inputs), "fixed_routing, experts of token 1 = 1: must be top_k = 2");
}

}  // namespace
}  // namespace moescope
