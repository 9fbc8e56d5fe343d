// The backward on strips as a layer's: every gradient against the fp64 oracle in every mode, memory as
// planned, refusals.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>

#include "core/base/error.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/training/cuda_training.hpp"
#include "reference/oracle/training_check.hpp"
#include "tests/support/strip_batches.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

constexpr std::array kSaves = {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores};
constexpr std::array kSchedules = {"staircase", "staircase:atomics", "staircase:rows"};

class StripsTrainingGpu : public testing::Test {
 protected:
  void SetUp() override {
    NEEDS_STAIRCASE_KERNEL();
    backend_ = make_cuda_backend();
  }

  std::unique_ptr<MoeBackend> backend_;
};

TEST_F(StripsTrainingGpu, EveryGradientIsTheOraclesInEveryMode) {
  std::uint64_t seed = 3;  // odd: with biases; even: with batch norm
  for (LayerShape shape :
       {test::make_shape(33, 24, 7, 11, 77, 16), test::make_shape(50, 16, 1, 64, 9),
        test::make_shape(130, 72, 24, 40, 33, 48), test::make_shape(256, 128, 32, 32, 8, 64),
        test::make_shape(700, 264, 12, 20, 5), test::make_shape(90, 64, 340, 70, 100)}) {
    for (const GateMode gates : {GateMode::kSoftmax, GateMode::kProbability}) {
      shape.gate_mode = gates;
      shape.dtype = Dtype::kBF16;
      shape.activation = seed % 3 == 0 ? Activation::kSilu : Activation::kGelu;
      const test::TrainingProblem problem(shape, seed++);
      for (const char* schedule : kSchedules) {
        SCOPED_TRACE(shape.label() + " " + schedule);
        const LayerCheck result = check_training_modes(*backend_, problem.inputs, problem.dy,
                                                       parse_schedule(schedule), kSaves, 1000);
        ASSERT_FALSE(result.stages.empty());
        if (const StageCheck* failure = result.first_failure()) {
          ADD_FAILURE() << failure->what << " (" << failure->kernels << "): " << failure->detail;
        }
      }
    }
  }
}

TEST_F(StripsTrainingGpu, GradientsInFp32) {
  auto shape = test::make_shape(130, 72, 24, 40, 33, 48);
  shape.dtype = Dtype::kBF16;
  test::TrainingProblem problem(shape, 5);
  problem.options.gradients = Dtype::kF32;
  for (const GradientForm form : {GradientForm::kStored, GradientForm::kTouched, GradientForm::kAdded}) {
    problem.options.form = form;
    for (const char* schedule : kSchedules) {
      const LayerCheck result = check_training(*backend_, problem.inputs, problem.dy,
                                               parse_schedule(schedule), problem.options, 1000, schedule);
      EXPECT_EQ(result.first_failure(), nullptr)
          << schedule << ", " << to_string(form) << ": " << result.first_failure()->detail;
    }
  }
}

TEST_F(StripsTrainingGpu, TakesTheMemoryThatWasPlannedBefore) {
  for (const SaveMode save : kSaves) {
    auto shape = test::make_shape(130, 72, 24, 40, 33, 48);
    shape.dtype = Dtype::kBF16;
    test::TrainingProblem problem(shape, 4);
    problem.options.save = save;
    const auto training =
        backend_->prepare_training(problem.inputs, problem.dy, parse_schedule("staircase"), problem.options);
    const auto& cuda_training = dynamic_cast<const cuda::CudaTraining&>(*training);
    std::int64_t planned = 0;
    for (const MemoryTerm& term : cuda_training.plan().terms) planned += term.bytes;
    EXPECT_EQ(cuda_training.allocated_bytes(), planned) << to_string(save);
  }
}

/// The list of touched experts is made on the device, and the step takes it from there.
TEST_F(StripsTrainingGpu, TheOptimizerStepsTouchedExperts) {
  auto shape = test::make_shape(60, 264, 30, 40, 9);
  shape.dtype = Dtype::kBF16;
  test::TrainingProblem problem(shape, 4);
  problem.options.form = GradientForm::kTouched;
  problem.options.optimizer = OptimizerForm::kTouched;
  problem.options.adamw = {.learning_rate = 0.25};
  for (const char* schedule : kSchedules) {
    SCOPED_TRACE(schedule);
    const auto training =
        backend_->prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
    training->run(L2State::kWarm);
    const auto touched = touched_experts(training->routing());
    EXPECT_EQ(training->gradients().touched_experts, touched);
    EXPECT_LT(std::ssize(touched), shape.num_experts());
    const ExpertStep step = training->expert_step();
    auto next = touched.begin();
    for (std::int32_t expert = 0; expert < shape.num_experts(); ++expert) {
      const bool listed = next != touched.end() && *next == expert;
      next += listed ? 1 : 0;
      std::int64_t moved = 0;
      for (std::int64_t k = 0; k < shape.hidden_size; ++k) {
        moved += step.w_out.at(expert, k) != problem.inputs.experts->w_out.at(expert, k) ? 1 : 0;
      }
      ASSERT_EQ(moved > shape.hidden_size / 2, listed) << expert;
      ASSERT_TRUE(listed || moved == 0) << expert;
    }
    std::int64_t planned = 0;
    for (const MemoryTerm& term : training->plan().terms) planned += term.bytes;
    EXPECT_EQ(dynamic_cast<const cuda::CudaTraining&>(*training).allocated_bytes(), planned);
  }
}

TEST_F(StripsTrainingGpu, RoutingThatIsGivenIsRefused) {
  auto shape = test::make_shape(30, 40, 16, 12, 11);
  shape.dtype = Dtype::kBF16;
  test::TrainingProblem problem(shape, 4);
  problem.fix_routing();
  std::string why;
  EXPECT_FALSE(
      backend_->supports_training(problem.inputs, parse_schedule("staircase"), problem.options, why));
  EXPECT_EQ(why, "a staircase's backward needs the router's scores, bf16 and compute capability 9.0");
}

}  // namespace
}  // namespace moescope
