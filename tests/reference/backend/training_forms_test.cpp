// What the mirror makes of gradients: of touched rows, sums, and a step of the optimizer.
#include <gtest/gtest.h>

#include <array>

#include "core/base/error.hpp"
#include "core/cost/memory_plan.hpp"
#include "reference/backend/reference_training.hpp"
#include "reference/backward/experts_optimizer.hpp"
#include "reference/oracle/gradient_start.hpp"
#include "reference/oracle/stage_compare.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

using reference::ReferenceTraining;

test::TrainingProblem small_problem(Dtype dtype) {
  auto shape = test::make_shape(20, 40, 16, 12, 5, 24);
  shape.dtype = dtype;
  return {shape, 3};
}

TEST(GradientForm, NamesAreRead) {
  for (const GradientForm form : {GradientForm::kStored, GradientForm::kTouched, GradientForm::kAdded}) {
    EXPECT_EQ(parse_gradient_form(to_string(form)), form);
  }
  EXPECT_THROW(parse_gradient_form("none"), InvalidArgument);
  for (const OptimizerForm form : {OptimizerForm::kNone, OptimizerForm::kTouched, OptimizerForm::kDense}) {
    EXPECT_EQ(parse_optimizer_form(to_string(form)), form);
  }
  EXPECT_THROW(parse_optimizer_form("all"), InvalidArgument);
}

TEST(TrainingForms, AddedGradientsBeginWithZerosAndGoOn) {
  auto problem = small_problem(Dtype::kF32);
  ReferenceTraining stored(problem.inputs, problem.dy, {}, problem.options);
  stored.run(L2State::kWarm);
  problem.options.form = GradientForm::kAdded;
  ReferenceTraining added(problem.inputs, problem.dy, {}, problem.options);
  added.run(L2State::kWarm);
  const LayerGradients& once = stored.gradients();
  EXPECT_TRUE(same_bits(added.gradients().w_in, once.w_in));
  EXPECT_TRUE(same_bits(added.gradients().shared->down, once.shared->down));
  added.run(L2State::kWarm);
  for (std::int64_t i = 0; i < once.w_out.size(); ++i) {
    ASSERT_FLOAT_EQ(added.gradients().w_out.f32().data[i], 2 * once.w_out.f32().data[i]);
  }
  for (std::size_t i = 0; i < once.row_bias.size(); ++i) {
    ASSERT_FLOAT_EQ(added.gradients().row_bias[i], 2 * once.row_bias[i]);
  }
  // What is no parameter's is written, not added to.
  EXPECT_TRUE(same_bits(added.gradients().hidden_states, once.hidden_states));
  added.set_gradients(zero_start(once));
  added.run(L2State::kWarm);
  EXPECT_TRUE(same_bits(added.gradients().router_col, once.router_col));
}

TEST(TrainingForms, RefusesAStartThatDoesNotFit) {
  auto problem = small_problem(Dtype::kF32);
  ReferenceTraining stored(problem.inputs, problem.dy, {}, problem.options);
  stored.run(L2State::kWarm);
  EXPECT_THROW(stored.set_gradients(stored.gradients()), InvalidArgument);
  problem.options.form = GradientForm::kAdded;
  ReferenceTraining added(problem.inputs, problem.dy, {}, problem.options);
  const auto refusal = [&](const auto& spoil) {
    LayerGradients start = zero_start(stored.gradients());
    spoil(start);
    return test::error_text<InvalidArgument>([&] { added.set_gradients(start); });
  };
  EXPECT_NE(refusal([](LayerGradients& g) { g.w_out = HostTensor::zeros(Dtype::kF32, 3, 40); }).find("w_out"),
            std::string::npos);
  EXPECT_NE(refusal([](LayerGradients& g) { g.w_in = g.w_in.to(Dtype::kBF16); }).find("w_in"),
            std::string::npos);
  EXPECT_NE(refusal([](LayerGradients& g) { g.row_bias.clear(); }).find("row_bias"), std::string::npos);
  EXPECT_NE(refusal([](LayerGradients& g) { g.shared.reset(); }).find("shared"), std::string::npos);
}

/// The backward goes on with the weights that it was given, the optimizer with its own.
TEST(TrainingForms, EndsWithTheOptimizersStep) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    for (const OptimizerForm form : {OptimizerForm::kTouched, OptimizerForm::kDense}) {
      auto problem = small_problem(dtype);
      ReferenceTraining plain(problem.inputs, problem.dy, {}, problem.options);
      EXPECT_EQ(plain.expert_step().w_in.size(), 0);
      plain.run(L2State::kWarm);
      const LayerGradients& gradients = plain.gradients();
      problem.options.optimizer = form;
      problem.options.adamw = {.learning_rate = 0.01};
      ReferenceTraining step(problem.inputs, problem.dy, {}, problem.options);
      EXPECT_EQ(step.stages().back(), Stage::kExpertsOptimizer);
      HostTensor expected = problem.inputs.experts->w_in.clone();
      reference::ExpertsOptimizer optimizer(expected, problem.options.adamw);
      for (int run = 0; run < 2; ++run) {
        step.run(L2State::kWarm);
        if (form == OptimizerForm::kDense) {
          optimizer.dense_step(expected, gradients.w_in);
        } else {
          optimizer.step(expected, gradients.w_in, gradients.touched_experts);
        }
        EXPECT_TRUE(same_bits(step.gradients().w_in, gradients.w_in));
        EXPECT_TRUE(same_bits(step.gradients().hidden_states, gradients.hidden_states));
      }
      EXPECT_TRUE(same_bits(step.expert_step().w_in, expected));
      EXPECT_EQ(optimizer.state_bytes() * 2, optimizer_state_bytes(problem.inputs.shape));
    }
  }
}

TEST(TrainingForms, RefusesAnOptimizerWithoutItsRows) {
  auto problem = small_problem(Dtype::kF32);
  const auto refusal = [&](GradientForm form, OptimizerForm optimizer) {
    problem.options.form = form;
    problem.options.optimizer = optimizer;
    return test::error_text<InvalidArgument>(
        [&] { ReferenceTraining(problem.inputs, problem.dy, {}, problem.options); });
  };
  EXPECT_NE(refusal(GradientForm::kAdded, OptimizerForm::kTouched).find("gradients added"), std::string::npos);
  EXPECT_NE(refusal(GradientForm::kTouched, OptimizerForm::kDense).find("must be stored"), std::string::npos);
  problem.options.adamw.beta1 = 1;
  EXPECT_NE(refusal(GradientForm::kStored, OptimizerForm::kDense).find("beta1"), std::string::npos);
}

}  // namespace
}  // namespace moescope
