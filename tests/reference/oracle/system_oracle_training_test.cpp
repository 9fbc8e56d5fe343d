// The baselines' fp64 step against central differences of its own loss.
#include "reference/oracle/system_oracle_training.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "tests/support/systems.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

SystemShape small_shape(System system) {
  const bool ffn = system == System::kGShard || system == System::kDeepSeekMoe;
  return test::system_shape(system, 5, 10, ffn ? 6 : 36, ffn ? 3 : 8, 2);
}

/// Inputs whose weights may be moved, kept to bfloat16.
struct Problem {
  SystemInputs inputs;
  std::shared_ptr<SystemWeights> weights = std::make_shared<SystemWeights>();
  HostTensor dy;

  explicit Problem(const SystemShape& shape) : inputs(make_system_inputs(shape, 1, 3)) {
    using test::kept_to_bf16;
    inputs.hidden_states = kept_to_bf16(inputs.hidden_states);
    const SystemWeights& made = *inputs.weights;
    weights->router = kept_to_bf16(made.router);
    weights->w_in = kept_to_bf16(made.w_in);
    weights->w_out = kept_to_bf16(made.w_out);
    if (made.keys) {
      weights->keys =
          ProductKeyWeights{kept_to_bf16(made.keys->queries), kept_to_bf16(made.keys->keys), {}, {}};
      for (std::size_t i = 0; i < made.keys->norm_weight.size(); ++i) {
        weights->keys->norm_weight.push_back(1 + 0.125F * static_cast<float>(i));
        weights->keys->norm_bias.push_back(0.25F - 0.125F * static_cast<float>(i));
      }
    }
    if (made.experts) {
      weights->experts =
          FfnExpertWeights{kept_to_bf16(made.experts->gate_up), kept_to_bf16(made.experts->down)};
    }
    if (made.shared) {
      weights->shared = SharedMlpWeights{kept_to_bf16(made.shared->gate), kept_to_bf16(made.shared->up),
                                         kept_to_bf16(made.shared->down)};
    }
    inputs.weights = weights;
    dy = kept_to_bf16(test::random_tensor(Dtype::kF32, shape.num_tokens, shape.hidden_size, 1, 8,
                                          RandomStream::kHiddenStates));
  }
};

struct SystemCase {
  System system;
  GateMode gates;
};

class SystemTrainingStep : public testing::TestWithParam<SystemCase> {};

TEST_P(SystemTrainingStep, GradientsAreThoseOfTheLoss) {
  SystemShape shape = small_shape(GetParam().system);
  shape.gate_mode = GetParam().gates;
  Problem problem(shape);
  const SystemTraining step = system_training(problem.inputs, problem.dy, nullptr);
  const Routing* selection = shape.has_routing() ? &step.routing : nullptr;
  const auto loss = [&] { return system_training(problem.inputs, problem.dy, selection).output_loss; };
  int compared = 0;
  const auto check = [&](const char* name, HostTensor& tensor, const auto& gradient_of) {
    double error = 0;
    double size = 0;
    for (std::int64_t i = 0; i < tensor.size(); i += std::max<std::int64_t>(1, tensor.size() / 23)) {
      const double slope = test::slope(tensor.f32().data[i], loss);
      const double ours = gradient_of(i / tensor.cols(), i % tensor.cols());
      error += (ours - slope) * (ours - slope);
      size += slope * slope;
      ++compared;
    }
    EXPECT_LE(std::sqrt(error), 3e-8 * std::max(1.0, std::sqrt(size))) << name;
    EXPECT_GT(size, 0) << name;
  };
  const auto plain = [](const OracleGradient& gradient) {
    return [&gradient](std::int64_t row, std::int64_t col) { return gradient.row(row)[col]; };
  };
  check("hidden_states", problem.inputs.hidden_states, plain(step.hidden_states));
  SystemWeights& weights = *problem.weights;
  if (!weights.router.empty()) {
    check("router", weights.router, plain(step.router));
    const auto f = shape.expert_size;
    check("gate_up", weights.experts->gate_up, [&](std::int64_t row, std::int64_t col) {
      const auto expert = row / (2 * f);
      const auto unit = row % (2 * f);
      return (unit < f ? step.expert_gate : step.expert_up).row(expert * f + unit % f)[col];
    });
    check("down", weights.experts->down, [&](std::int64_t row, std::int64_t col) {
      return step.expert_down.row(row / shape.hidden_size * f + col)[row % shape.hidden_size];
    });
  }
  if (weights.keys) {
    check("queries", weights.keys->queries, plain(step.queries));
    check("keys", weights.keys->keys, plain(step.keys));
    for (std::size_t i = 0; i < weights.keys->norm_weight.size(); ++i) {
      EXPECT_NEAR(step.norm_weight.values[i], test::slope(weights.keys->norm_weight[i], loss), 1e-7);
      EXPECT_NEAR(step.norm_bias.values[i], test::slope(weights.keys->norm_bias[i], loss), 1e-7);
    }
  }
  if (!weights.w_in.empty()) {
    check("w_in", weights.w_in, plain(step.w_in));
  }
  if (!weights.w_out.empty()) {
    check("w_out", weights.w_out, plain(step.w_out));
  }
  if (weights.shared) {
    check("shared.gate", weights.shared->gate, plain(step.shared_gate));
    check("shared.up", weights.shared->up, plain(step.shared_up));
    check("shared.down", weights.shared->down,
          [&](std::int64_t row, std::int64_t col) { return step.shared_down.row(col)[row]; });
  }
  EXPECT_GT(compared, 40);
}

INSTANTIATE_TEST_SUITE_P(Systems, SystemTrainingStep,
                         testing::Values(SystemCase{System::kDenseMlp, GateMode::kSoftmax},
                                         SystemCase{System::kGShard, GateMode::kSoftmax},
                                         SystemCase{System::kDeepSeekMoe, GateMode::kProbability},
                                         SystemCase{System::kPkm, GateMode::kSoftmax},
                                         SystemCase{System::kPeer, GateMode::kSoftmax},
                                         SystemCase{System::kPeer, GateMode::kRelu}),
                         [](const auto& test) {
                           return std::string(to_string(test.param.system)) + "_" +
                                  std::string(to_string(test.param.gates));
                         });

TEST(SystemTraining, ForwardIsTheOracles) {
  const Problem problem(small_shape(System::kPkm));
  const auto step = system_training(problem.inputs, problem.dy, nullptr);
  const auto layer = system_oracle(problem.inputs, {}, nullptr);
  ASSERT_EQ(step.y.size(), layer.y.size());
  for (std::size_t i = 0; i < layer.y.size(); ++i) {
    EXPECT_NEAR(step.y[i], layer.y[i], 1e-12);
  }
}

TEST(SystemTraining, RefusesAForeignGradient) {
  const Problem problem(small_shape(System::kGShard));
  EXPECT_THROW(system_training(problem.inputs, HostTensor::zeros(Dtype::kF32, 4, 10), nullptr),
               InvalidArgument);
  EXPECT_THROW(system_training(problem.inputs, HostTensor::zeros(Dtype::kBF16, 5, 10), nullptr),
               InvalidArgument);
}

}  // namespace
}  // namespace moescope
