// AdamW on touched rows against torch's values and a dense AdamW in fp64.
#include "reference/backward/experts_optimizer.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "reference/oracle/stage_compare.hpp"
#include "tests/support/dense_adamw.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

using reference::ExpertsOptimizer;

HostTensor tensor_of(std::int64_t cols, const std::vector<float>& values) {
  HostTensor tensor(Dtype::kF32, std::ssize(values) / cols, cols);
  std::ranges::copy(values, tensor.f32().data);
  return tensor;
}

// torch.optim.AdamW 2.15 in float64: lr 0.1, betas (0.9, 0.99), eps 1e-8, weight_decay 0.5.
constexpr AdamWOptions kTorch = {
    .learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.5};

TEST(ExpertsOptimizer, StepsAsTorchDoes) {
  HostTensor weights = tensor_of(3, {0.5F, -1.25F, 2.0F});
  ExpertsOptimizer optimizer(weights, kTorch);
  const std::vector<std::vector<float>> gradients = {
      {0.25F, -0.5F, 1.0F}, {0, 0, 0}, {0, 0, 0}, {-0.75F, 0.125F, 0.5F}};
  const std::vector<std::vector<double>> expected = {{0.375000004, -1.087500002, 1.800000001},
                                                     {0.2890919929, -0.9659669891, 1.642841987},
                                                     {0.22260593, -0.8656371746, 1.508668422},
                                                     {0.2529902429, -0.7951492643, 1.369017016}};
  for (std::size_t t = 0; t < gradients.size(); ++t) {
    optimizer.dense_step(weights, tensor_of(3, gradients[t]));
    for (std::int64_t k = 0; k < 3; ++k) {
      EXPECT_NEAR(weights.at(0, k), expected[t][static_cast<std::size_t>(k)], 3e-7) << t;
    }
  }
}

// The two steps in between without a gradient are missed and made up for.
TEST(ExpertsOptimizer, MakesUpForMissedSteps) {
  HostTensor weights = tensor_of(3, {0.5F, -1.25F, 2.0F});
  ExpertsOptimizer optimizer(weights, kTorch);
  const std::vector<std::int32_t> row = {0};
  const HostTensor none = HostTensor::zeros(Dtype::kF32, 1, 3);
  optimizer.step(weights, tensor_of(3, {0.25F, -0.5F, 1.0F}), row);
  const HostTensor stale = weights.clone();
  optimizer.step(weights, none, {});
  optimizer.step(weights, none, {});
  EXPECT_TRUE(same_bits(weights, stale));  // nobody read it
  optimizer.step(weights, tensor_of(3, {-0.75F, 0.125F, 0.5F}), row);
  const std::vector<double> expected = {0.2529902429, -0.7951492643, 1.369017016};
  for (std::int64_t k = 0; k < 3; ++k) {
    EXPECT_NEAR(weights.at(0, k), expected[static_cast<std::size_t>(k)], 3e-7);
  }
}

/// Gradients of 40 steps; a row has one in a step with a chance of one in eight.
struct Touches {
  std::vector<HostTensor> gradients;
  std::vector<std::vector<std::int32_t>> rows;

  Touches(std::int64_t n, std::int64_t d, std::int64_t steps) {
    const Philox random(9, 77);
    for (std::int64_t t = 0; t < steps; ++t) {
      HostTensor gradient =
          test::random_tensor(Dtype::kF32, n, d, 1, static_cast<std::uint64_t>(t), RandomStream::kExpertIn);
      rows.emplace_back();
      for (std::int64_t row = 0; row < n; ++row) {
        if (random.uniform(static_cast<std::uint64_t>(t * n + row)) < 0.125) {
          rows.back().push_back(static_cast<std::int32_t>(row));
        } else {
          std::ranges::fill(gradient.f32().row_span(row), 0.0F);
        }
      }
      gradients.push_back(std::move(gradient));
    }
  }
};

double difference(const HostTensor& ours, const test::DenseAdamW& truth, const HostTensor& start) {
  double error = 0;
  double moved = 0;
  for (std::int64_t i = 0; i < ours.size(); ++i) {
    const double expected = truth.weights()[static_cast<std::size_t>(i)];
    error += (ours.f32().data[i] - expected) * (ours.f32().data[i] - expected);
    moved += (start.f32().data[i] - expected) * (start.f32().data[i] - expected);
  }
  return std::sqrt(error / moved);
}

TEST(ExpertsOptimizer, MeetsADenseAdamWInFp64) {
  const HostTensor start = test::random_tensor(Dtype::kF32, 24, 16, 1, 3, RandomStream::kExpertOut);
  const Touches touches(24, 16, 40);
  AdamWOptions options{.learning_rate = 0.01, .weight_decay = 0.1};
  const auto run = [&](std::int64_t replay_steps) {
    options.replay_steps = replay_steps;
    HostTensor weights = start.clone();
    ExpertsOptimizer lazy(weights, options);
    test::DenseAdamW dense(weights, options);
    for (std::size_t t = 0; t < touches.rows.size(); ++t) {
      lazy.step(weights, touches.gradients[t], touches.rows[t]);
      dense.step(touches.gradients[t]);
    }
    lazy.flush(weights);
    return difference(weights, dense, start);
  };
  EXPECT_LE(run(152), 1e-5);
  // Without making up for movement, what is lost is much of it; half the limit loses the more the shorter.
  EXPECT_GT(run(0), 0.05);
  EXPECT_LT(run(8), run(0));
  EXPECT_LT(run(24), run(8));
}

// A forward that reads what a dense optimizer would have: catch_up() before it.
TEST(ExpertsOptimizer, CatchUpBeforeTheForwardReadsTheDenseWeights) {
  const HostTensor start = test::random_tensor(Dtype::kF32, 24, 16, 1, 3, RandomStream::kExpertOut);
  const Touches touches(24, 16, 20);
  const AdamWOptions options{.learning_rate = 0.01, .weight_decay = 0.1};
  HostTensor weights = start.clone();
  ExpertsOptimizer lazy(weights, options);
  test::DenseAdamW dense(weights, options);
  for (std::size_t t = 0; t < touches.rows.size(); ++t) {
    lazy.catch_up(weights, touches.rows[t]);
    for (const auto row : touches.rows[t]) {
      for (std::int64_t k = 0; k < 16; ++k) {
        EXPECT_NEAR(weights.at(row, k), dense.weights()[static_cast<std::size_t>(row * 16 + k)], 2e-6);
      }
    }
    lazy.step(weights, touches.gradients[t], touches.rows[t]);
    dense.step(touches.gradients[t]);
  }
}

TEST(ExpertsOptimizer, KeepsSmallStepsOfBf16Weights) {
  HostTensor weights = tensor_of(1, {1.0F}).to(Dtype::kBF16);
  ExpertsOptimizer optimizer(weights, {.learning_rate = 1e-4, .weight_decay = 0});
  const HostTensor gradient = tensor_of(1, {1.0F}).to(Dtype::kBF16);
  for (int t = 0; t < 100; ++t) {  // each far below half of a bf16 unit
    optimizer.dense_step(weights, gradient);
  }
  EXPECT_NEAR(weights.at(0, 0), 0.99F, 0.004F);
  EXPECT_LT(weights.at(0, 0), 1.0F);
}

TEST(ExpertsOptimizer, IsBitIdenticalWhateverTheNumberOfThreads) {
  const Touches touches(24, 16, 12);
  const auto run = [&](int threads) {
    omp_set_num_threads(threads);
    HostTensor weights = test::random_tensor(Dtype::kBF16, 24, 16, 1, 3, RandomStream::kExpertOut);
    ExpertsOptimizer lazy(weights, {.learning_rate = 0.01});
    for (std::size_t t = 0; t < touches.rows.size(); ++t) {
      lazy.step(weights, touches.gradients[t], touches.rows[t]);
    }
    lazy.flush(weights);
    return weights;
  };
  const int before = omp_get_max_threads();
  const HostTensor one = run(1);
  const HostTensor three = run(3);
  omp_set_num_threads(before);
  EXPECT_TRUE(same_bits(one, three));
}

TEST(ExpertsOptimizer, RefusesWhatDoesNotFit) {
  HostTensor weights = HostTensor::zeros(Dtype::kF32, 4, 2);
  EXPECT_THROW(ExpertsOptimizer(weights, {.learning_rate = -1}), InvalidArgument);
  EXPECT_THROW(ExpertsOptimizer(weights, {.beta1 = 1}), InvalidArgument);
  EXPECT_THROW(ExpertsOptimizer(weights, {.beta1 = 0.9, .beta2 = 0.5}), InvalidArgument);
  EXPECT_THROW(ExpertsOptimizer(weights, {.eps = 0}), InvalidArgument);
  ExpertsOptimizer optimizer(weights, {});
  const HostTensor gradient = HostTensor::zeros(Dtype::kF32, 4, 2);
  const std::vector<std::int32_t> twice = {1, 1};
  const std::vector<std::int32_t> beyond = {4};
  EXPECT_THROW(optimizer.step(weights, gradient, twice), InvalidArgument);
  EXPECT_THROW(optimizer.step(weights, gradient, beyond), InvalidArgument);
  EXPECT_THROW(optimizer.step(weights, HostTensor::zeros(Dtype::kF32, 3, 2), {}), InvalidArgument);
  EXPECT_EQ(optimizer.steps(), 0);
  EXPECT_EQ(optimizer.state_bytes(), 3 * 4 * 2 * 4 + 4 * 4);
}

}  // namespace
}  // namespace moescope
