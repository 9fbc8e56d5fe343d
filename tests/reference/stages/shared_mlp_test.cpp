#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

/// (act(x gate^T) * (x up^T)) down^T in fp64.
std::vector<double> exact_shared_mlp(const LayerInputs& inputs) {
  const auto& shared = *inputs.experts->shared;
  const auto d = inputs.shape.hidden_size;
  std::vector<double> y;
  for (std::int64_t token = 0; token < inputs.shape.num_tokens; ++token) {
    std::vector<double> hidden;
    for (std::int64_t j = 0; j < inputs.shape.shared_size; ++j) {
      double gate = 0;
      double up = 0;
      for (std::int64_t k = 0; k < d; ++k) {
        gate += double{inputs.hidden_states.at(token, k)} * shared.gate.at(j, k);
        up += double{inputs.hidden_states.at(token, k)} * shared.up.at(j, k);
      }
      hidden.push_back(reference::activate(inputs.shape.activation, gate) * up);
    }
    for (std::int64_t k = 0; k < d; ++k) {
      double sum = 0;
      for (std::int64_t j = 0; j < inputs.shape.shared_size; ++j) {
        sum += hidden[static_cast<std::size_t>(j)] * shared.down.at(k, j);
      }
      y.push_back(sum);
    }
  }
  return y;
}

TEST(SharedMlp, StaysWithinToleranceOfDoublePrecision) {
  for (LayerShape shape : test::routing_shapes()) {
    if (shape.shared_size == 0) continue;
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
        shape.dtype = dtype;
        shape.activation = activation;
        const auto inputs = test::make_layer(shape, 4);
        const auto expected = exact_shared_mlp(inputs);
        const auto report =
            compare(reference::shared_mlp(inputs), {expected.data(), shape.num_tokens, shape.hidden_size});
        EXPECT_LE(report.relative_error, relative_error_tolerance(dtype, shape.hidden_size))
            << shape.label() << " " << to_string(activation) << ": " << report.describe();
      }
    }
  }
}

TEST(SharedMlp, RoundsItsHiddenActivationToStorage) {
  // One hidden unit and x = 1: y = round(silu(gate) * up) * down, exactly.
  auto shape = test::make_shape(1, 1, 2, 2, 1, 1);
  auto inputs = test::make_layer(shape, 2);
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = HostTensor::zeros(Dtype::kBF16, 4, 1);
  experts->w_out = HostTensor::zeros(Dtype::kBF16, 4, 1);
  const auto scalar = [](float value) {
    HostTensor tensor(Dtype::kBF16, 1, 1);
    tensor.bf16().data[0] = to_bf16(value);
    return tensor;
  };
  experts->shared = SharedMlpWeights{scalar(1.5F), scalar(0.75F), scalar(1)};
  inputs.experts = experts;
  inputs.hidden_states = scalar(1);
  const float hidden = 1.5F / (1 + std::exp(-1.5F)) * 0.75F;
  ASSERT_NE(hidden, round_to(Dtype::kBF16, hidden));
  EXPECT_EQ(reference::shared_mlp(inputs).at(0, 0), round_to(Dtype::kBF16, hidden));
}

TEST(SharedMlp, RefusesALayerWithoutOne) {
  const auto inputs = test::make_layer(test::make_shape(2, 8, 4, 4, 1), 1);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { reference::shared_mlp(inputs); }),
            "shared_size = 0: the layer has no shared MLP");
}

}  // namespace
}  // namespace moescope
