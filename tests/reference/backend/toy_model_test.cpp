// Two layers learn a map: the mirror's steps against fp64 ones from the same start.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "reference/backend/reference_training.hpp"
#include "reference/backward/experts_optimizer.hpp"
#include "tests/support/dense_adamw.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

constexpr int kSteps = 40;
constexpr std::int64_t kTokens = 64;
constexpr std::int64_t kWidth = 24;
constexpr AdamWOptions kAdamW = {.learning_rate = 0.01, .weight_decay = 0.01};

using Values = std::vector<double>;

Values values_of(const HostTensor& tensor) {
  const HostTensor floats = tensor.to(Dtype::kF32);
  return {floats.f32().data, floats.f32().data + floats.size()};
}

HostTensor tensor_of(const Values& values, std::int64_t cols, Dtype dtype) {
  HostTensor tensor(Dtype::kF32, std::ssize(values) / cols, cols);
  std::ranges::transform(values, tensor.f32().data, [](double v) { return static_cast<float>(v); });
  return tensor.to(dtype);
}

LayerShape toy_shape(Dtype dtype) {
  auto shape = test::make_shape(kTokens, kWidth, 6, 7, 6);
  shape.dtype = dtype;
  return shape;
}

/// What a layer is made of, in the order W, V, Wr, Wc.
using Weights = std::array<HostTensor, 4>;

Weights start_of(std::uint64_t seed, Dtype dtype) {
  const LayerInputs made = test::make_layer(toy_shape(Dtype::kBF16), seed);  // the same start in either dtype
  return {made.experts->w_in.to(dtype), made.experts->w_out.to(dtype), made.router.row.to(dtype),
          made.router.col.to(dtype)};
}

LayerInputs inputs_of(const Weights& weights, const Values& x, Dtype dtype) {
  LayerInputs inputs;
  inputs.shape = toy_shape(dtype);
  inputs.hidden_states = tensor_of(x, kWidth, dtype);
  inputs.router = {weights[2].clone(), weights[3].clone(), {}, {}};
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = weights[0].clone();
  experts->w_out = weights[1].clone();
  inputs.experts = std::move(experts);
  return inputs;
}

/// The batch, and what is to be learnt of it: a fixed map through a tanh.
struct Batch {
  Values x;
  Values target;

  Batch() {
    x = values_of(test::random_tensor(Dtype::kBF16, kTokens, kWidth, 1, 5, RandomStream::kHiddenStates));
    const Values map =
        values_of(test::random_tensor(Dtype::kF32, kWidth, kWidth, 0.3, 6, RandomStream::kSharedGate));
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t k = 0; k < kWidth; ++k) {
        double sum = 0;
        for (std::int64_t j = 0; j < kWidth; ++j) {
          sum += x[static_cast<std::size_t>(t * kWidth + j)] * map[static_cast<std::size_t>(k * kWidth + j)];
        }
        target.push_back(x[static_cast<std::size_t>(t * kWidth + k)] + 2 * std::tanh(sum));
      }
    }
  }
};

Values sum_of(const Values& a, const Values& b) {
  Values sum = a;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum[i] += b[i];
  }
  return sum;
}

/// Mean of squares, and its gradient.
double squared_loss(const Values& out, const Values& target, Values& gradient) {
  double loss = 0;
  const auto count = static_cast<double>(out.size());
  gradient.clear();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double off = out[i] - target[i];
    loss += off * off / count;
    gradient.push_back(2 * off / count);
  }
  return loss;
}

/// Losses of kSteps steps of out = h + layer2(h), h = x + layer1(x). `Layer` has forward(x), returning
/// layer(x), and backward(dy), returning dX, which also moves its weights.
template <class Layer>
Values losses_of(Layer first, Layer second) {
  const Batch batch;
  Values losses;
  for (int step = 0; step < kSteps; ++step) {
    const Values h = sum_of(batch.x, first.forward(batch.x));
    const Values out = sum_of(h, second.forward(h));
    Values d_out;
    losses.push_back(squared_loss(out, batch.target, d_out));
    first.backward(sum_of(d_out, second.backward(d_out)));
  }
  return losses;
}

/// In fp64 but for weights and states rounded to fp32 on their way into the oracle.
class OracleToy {
 public:
  explicit OracleToy(std::uint64_t seed) : weights_(start_of(seed, Dtype::kF32)) {
    for (const HostTensor& one : weights_) {
      optimizers_.emplace_back(one, kAdamW);
    }
  }
  Values forward(const Values& x) {
    x_ = x;
    return step_of(Values(x.size(), 0.0)).y;
  }
  Values backward(const Values& dy) {
    const OracleTraining step = step_of(dy);
    const std::array gradients = {&step.w_in, &step.w_out, &step.router_row, &step.router_col};
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      optimizers_[i].step_with([&](std::size_t k) { return gradients[i]->values[k]; });
      weights_[i] = tensor_of(optimizers_[i].weights(), kWidth, Dtype::kF32);
    }
    return step.hidden_states.values;
  }

 private:
  OracleTraining step_of(const Values& dy) {
    const LayerInputs inputs = inputs_of(weights_, x_, Dtype::kF32);
    return oracle_training(inputs, tensor_of(dy, kWidth, Dtype::kF32), nullptr, {}, {});
  }

  Weights weights_;
  std::vector<test::DenseAdamW> optimizers_;
  Values x_;
};

/// The mirror, AdamW on touched rows of the experts, caught up before they are read.
class MirrorToy {
 public:
  MirrorToy(std::uint64_t seed, Dtype dtype, const char* schedule)
      : dtype_(dtype), schedule_(parse_schedule(schedule)), weights_(start_of(seed, dtype)) {
    for (const HostTensor& one : weights_) {
      optimizers_.emplace_back(one, kAdamW);
    }
  }
  Values forward(const Values& x) {
    x_ = x;
    optimizers_[0].flush(weights_[0]);
    optimizers_[1].flush(weights_[1]);
    return values_of(step_of(Values(x.size(), 0.0), false).output());
  }
  Values backward(const Values& dy) {
    // A loss's gradient is small; in bf16 it keeps its digits whatever its size.
    reference::ReferenceTraining& step = step_of(dy, true);
    const LayerGradients& g = step.gradients();
    optimizers_[0].step(weights_[0], g.w_in, g.touched_experts);
    optimizers_[1].step(weights_[1], g.w_out, g.touched_experts);
    optimizers_[2].dense_step(weights_[2], g.router_row);
    optimizers_[3].dense_step(weights_[3], g.router_col);
    return values_of(g.hidden_states);
  }

 private:
  reference::ReferenceTraining& step_of(const Values& dy, bool backward) {
    inputs_ = std::make_unique<LayerInputs>(inputs_of(weights_, x_, dtype_));
    dy_ = tensor_of(dy, kWidth, dtype_);
    step_ = std::make_unique<reference::ReferenceTraining>(*inputs_, dy_, schedule_, TrainingOptions{});
    if (backward) {
      step_->run(L2State::kWarm);
    }
    return *step_;
  }

  Dtype dtype_;
  ScheduleOptions schedule_;
  Weights weights_;
  std::vector<reference::ExpertsOptimizer> optimizers_;
  Values x_;
  HostTensor dy_;
  std::unique_ptr<LayerInputs> inputs_;
  std::unique_ptr<reference::ReferenceTraining> step_;
};

TEST(ToyModel, LearnsAsInFp64) {
  const Values truth = losses_of(OracleToy(2), OracleToy(4));
  EXPECT_LT(truth.back(), 0.25 * truth.front());
  for (const char* schedule : {"staircase", "token_centric", "dense_masked"}) {
    const Values fp32 = losses_of(MirrorToy(2, Dtype::kF32, schedule), MirrorToy(4, Dtype::kF32, schedule));
    const Values bf16 = losses_of(MirrorToy(2, Dtype::kBF16, schedule), MirrorToy(4, Dtype::kBF16, schedule));
    EXPECT_NEAR(fp32.front(), truth.front(), 1e-5 * truth.front());
    for (std::size_t step = 0; step < truth.size(); ++step) {
      // A selection that rounding decides differently moves a path a little, and a little more each step.
      EXPECT_NEAR(fp32[step], truth[step], 0.02 * truth[step]) << schedule << " step " << step;
      EXPECT_NEAR(bf16[step], truth[step], 0.15 * truth[step]) << schedule << " step " << step;
    }
  }
}

}  // namespace
}  // namespace moescope
