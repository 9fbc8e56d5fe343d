// The fp64 training step against central differences of its own loss.
#include "reference/oracle/oracle_training.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

struct TrainingCase {
  const char* name;
  GateMode gates = GateMode::kSoftmax;
  Activation activation = Activation::kSilu;
  std::int64_t top_k = 7;
  bool batch_norm = false;
  bool bias = false;
  AuxiliaryLosses losses = {};
  bool fixed_routing = false;
};

class OracleTrainingStep : public testing::TestWithParam<TrainingCase> {};

TEST_P(OracleTrainingStep, GradientsAreThoseOfTheLoss) {
  const TrainingCase& c = GetParam();
  auto shape = test::make_shape(6, 10, 5, 6, c.top_k, 9);
  shape.dtype = Dtype::kF32;
  shape.gate_mode = c.gates;
  shape.activation = c.activation;
  test::TrainingProblem problem(shape, c.bias ? 3 : 4);
  problem.options.losses = c.losses;
  if (c.batch_norm) {
    problem.options.batch_norm = BatchNorm{};
  }
  if (c.fixed_routing) {
    problem.fix_routing();
  }
  const OracleTraining step = oracle_training(problem.inputs, problem.dy, nullptr, problem.options, {});
  EXPECT_GT(std::abs(step.output_loss), 0);
  EXPECT_EQ(step.balance_loss > 0, c.losses.balance > 0);
  EXPECT_EQ(step.z_loss > 0, c.losses.z > 0);
  const auto loss = [&] {
    return oracle_training(problem.inputs, problem.dy, &step.routing, problem.options, {}).loss();
  };
  std::int64_t compared = 0;
  for (const test::Parameter& parameter : problem.parameters(step)) {
    double error = 0;
    double size = 0;
    for (std::int64_t i = 0; i < parameter.count; i += std::max<std::int64_t>(1, parameter.count / 11)) {
      const double slope = test::slope(parameter.at(i), loss);
      const double ours = parameter.gradient(i);
      error += (ours - slope) * (ours - slope);
      size += slope * slope;
      ++compared;
    }
    // A router under softmax gates of one expert has no gradient at all.
    EXPECT_LE(std::sqrt(error), 2e-8 * std::max(1.0, std::sqrt(size))) << parameter.name;
  }
  EXPECT_GT(compared, c.fixed_routing ? 60 : 80);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, OracleTrainingStep,
    testing::Values(
        TrainingCase{"softmax"}, TrainingCase{"probability", GateMode::kProbability},
        TrainingCase{"softmax_bias", GateMode::kSoftmax, Activation::kGelu, 7, false, true},
        TrainingCase{"probability_bias", GateMode::kProbability, Activation::kGelu, 7, false, true},
        TrainingCase{"softmax_norm", GateMode::kSoftmax, Activation::kSilu, 7, true},
        TrainingCase{"probability_norm", GateMode::kProbability, Activation::kSilu, 7, true},
        TrainingCase{"relu", GateMode::kSoftmax, Activation::kRelu, 7, true},
        TrainingCase{"one_expert_softmax", GateMode::kSoftmax, Activation::kSilu, 1},
        TrainingCase{"one_expert_probability", GateMode::kProbability, Activation::kSilu, 1},
        TrainingCase{"all_experts", GateMode::kSoftmax, Activation::kSilu, 30},
        TrainingCase{"balance", GateMode::kSoftmax, Activation::kSilu, 7, false, true, {.balance = 3}},
        TrainingCase{"z_loss", GateMode::kProbability, Activation::kSilu, 7, false, true, {.z = 2}},
        TrainingCase{"both_losses_norm",
                     GateMode::kProbability,
                     Activation::kGelu,
                     7,
                     true,
                     false,
                     {.balance = 3, .z = 2}},
        TrainingCase{"fixed", GateMode::kSoftmax, Activation::kSilu, 7, false, false, {}, true}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(TrainingOracle, ForwardIsTheOracles) {
  auto shape = test::make_shape(6, 10, 5, 6, 7, 9);
  shape.dtype = Dtype::kBF16;
  const test::TrainingProblem problem(shape, 3);
  const auto step = oracle_training(problem.inputs, problem.dy, nullptr, {}, {});
  const auto layer = oracle_layer(problem.inputs, {});
  ASSERT_EQ(step.y.size(), layer.y.size());
  for (std::size_t i = 0; i < layer.y.size(); ++i) {
    EXPECT_NEAR(step.y[i], layer.y[i], 1e-12);
  }
  EXPECT_EQ(step.routing.expert_ids, layer.routing.expert_ids);
}

TEST(TrainingOracle, SampleIsPartOfTheWhole) {
  auto shape = test::make_shape(6, 10, 5, 6, 7, 9);
  shape.dtype = Dtype::kF32;
  const test::TrainingProblem problem(shape, 3);
  const auto whole = oracle_training(problem.inputs, problem.dy, nullptr, {}, {});
  const auto part = oracle_training(problem.inputs, problem.dy, nullptr, {}, {{1, 4}, {0, 3, 29}, {8}});
  const auto same_row = [&](const OracleGradient& some, std::int64_t row, const OracleGradient& all,
                            std::int64_t at) {
    for (std::int64_t k = 0; k < all.cols; ++k) {
      EXPECT_EQ(some.row(row)[k], all.row(at)[k]);
    }
  };
  same_row(part.hidden_states, 1, whole.hidden_states, 4);
  same_row(part.w_in, 2, whole.w_in, 29);
  same_row(part.w_out, 1, whole.w_out, 3);
  same_row(part.shared_down, 0, whole.shared_down, 8);
  EXPECT_EQ(part.router_row.values, whole.router_row.values);
}

// Even use of even probabilities costs `balance`, whatever the grid; logits of zero have a known z-loss.
TEST(TrainingOracle, AuxiliaryLossesOfAnEvenRouter) {
  auto shape = test::make_shape(4, 8, 3, 4, 12, 0);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 2);
  problem.inputs.router.row = HostTensor::zeros(Dtype::kF32, 3, 8);
  problem.inputs.router.col = HostTensor::zeros(Dtype::kF32, 4, 8);
  problem.options.losses = {.balance = 0.5, .z = 0.25};
  const auto step = oracle_training(problem.inputs, problem.dy, nullptr, problem.options, {});
  EXPECT_NEAR(step.balance_loss, 0.5, 1e-12);
  EXPECT_NEAR(step.z_loss, 0.25 * std::log(12.0) * std::log(12.0), 1e-12);
}

TEST(TrainingOracle, BatchNormNormalisesAndRuns) {
  auto shape = test::make_shape(6, 10, 5, 6, 7, 0);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 4);
  problem.options.batch_norm = BatchNorm{.eps = 1e-12, .momentum = 0.25};
  const auto step = oracle_training(problem.inputs, problem.dy, nullptr, problem.options, {});
  for (std::int64_t r = 0; r < 5; ++r) {
    double sum = 0;
    double squares = 0;
    for (std::int64_t t = 0; t < 6; ++t) {
      const double a = step.row.logits[static_cast<std::size_t>(t * 5 + r)];
      sum += a;
      squares += a * a;
    }
    EXPECT_NEAR(sum, 0, 1e-9);
    EXPECT_NEAR(squares, 6, 1e-6);
  }
  const RunningNorm before{std::vector<double>(5, 2.0), std::vector<double>(5, 1.0)};
  const RunningNorm after = updated_norm(before, step.row, 6, 0.25);
  EXPECT_NEAR(after.mean[2], 0.75 * 2 + 0.25 * step.row.mean[2], 1e-12);
  EXPECT_NEAR(after.variance[2], 0.75 + 0.25 * step.row.variance[2] * 6 / 5, 1e-12);
}

TEST(TrainingOracle, RefusesWhatDoesNotFit) {
  auto shape = test::make_shape(6, 10, 5, 6, 7, 0);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 3);
  const auto refusal = [&](const TrainingOptions& options) {
    return test::error_text<InvalidArgument>(
        [&] { oracle_training(problem.inputs, problem.dy, nullptr, options, {}); });
  };
  EXPECT_NE(refusal({.losses = {.balance = -1}}).find("losses.balance"), std::string::npos);
  EXPECT_NE(refusal({.losses = {.z = NAN}}).find("losses.z"), std::string::npos);
  EXPECT_NE(refusal({.batch_norm = BatchNorm{}}).find("router.bias"), std::string::npos);
  problem.dy = HostTensor::zeros(Dtype::kF32, 5, 10);
  EXPECT_NE(refusal({}).find("dy"), std::string::npos);
  shape.num_tokens = 1;
  test::TrainingProblem one(shape, 4);
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              oracle_training(one.inputs, one.dy, nullptr, {.batch_norm = BatchNorm{}}, {});
            }).find("num_tokens"),
            std::string::npos);
}

}  // namespace
}  // namespace moescope
