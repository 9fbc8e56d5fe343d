// The backward on the GPU as a whole: every gradient against the fp64 oracle in every mode, memory as
// planned, the same bits again, refusals.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/base/error.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/training/cuda_training.hpp"
#include "reference/backend/reference_training.hpp"
#include "reference/oracle/training_check.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

constexpr std::array kSaves = {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores};
constexpr std::array kSchedules = {"token_centric", "expert_centric", "dense_masked"};

std::vector<LayerShape> shapes() {
  return {test::make_shape(1, 8, 4, 4, 1),           test::make_shape(1, 32, 8, 8, 64, 8),
          test::make_shape(33, 24, 7, 11, 77, 16),   test::make_shape(50, 16, 1, 64, 9),
          test::make_shape(50, 16, 64, 1, 9, 24),    test::make_shape(130, 72, 24, 40, 33, 48),
          test::make_shape(256, 128, 32, 32, 8, 64), test::make_shape(700, 264, 12, 20, 5)};
}

class CudaTrainingGpu : public testing::Test {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  void check(const test::TrainingProblem& problem, const char* schedule) {
    const LayerCheck result =
        check_training_modes(*backend_, problem.inputs, problem.dy, parse_schedule(schedule), kSaves, 1000);
    ASSERT_FALSE(result.stages.empty());
    if (const StageCheck* failure = result.first_failure()) {
      ADD_FAILURE() << failure->what << " (" << failure->kernels << "): " << failure->detail;
    }
  }

  std::unique_ptr<MoeBackend> backend_;
};

TEST_F(CudaTrainingGpu, EveryGradientIsTheOraclesInEveryMode) {
  std::uint64_t seed = 3;  // odd: with biases; even: with batch norm
  for (LayerShape shape : shapes()) {
    for (const GateMode gates : {GateMode::kSoftmax, GateMode::kProbability}) {
      for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
        shape.gate_mode = gates;
        shape.dtype = dtype;
        shape.activation = seed % 3 == 0 ? Activation::kSilu : Activation::kGelu;
        const test::TrainingProblem problem(shape, seed++);
        for (const char* schedule : kSchedules) {
          SCOPED_TRACE(shape.label() + " " + std::string(to_string(dtype)) + " " + schedule);
          check(problem, schedule);
        }
      }
    }
  }
}

TEST_F(CudaTrainingGpu, RoutingThatIsGiven) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    auto shape = test::make_shape(300, 40, 16, 12, 11, 24);
    shape.dtype = dtype;
    test::TrainingProblem problem(shape, 4);
    problem.fix_routing();
    for (const char* schedule : kSchedules) {
      SCOPED_TRACE(schedule);
      check(problem, schedule);
    }
  }
}

/// All tokens on one expert beside others, and experts without tokens.
TEST_F(CudaTrainingGpu, OneExpertWithEveryToken) {
  auto shape = test::make_shape(900, 264, 8, 8, 3);
  shape.dtype = Dtype::kBF16;
  test::TrainingProblem problem(shape, 4);
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets = {0};
  for (std::int32_t t = 0; t < shape.num_tokens; ++t) {
    for (const std::int32_t id : {5, 6 + t % 20, 40}) {
      routing.expert_ids.push_back(id);
      routing.gates.push_back(round_to(Dtype::kBF16, 0.1F + 0.01F * static_cast<float>(t % 13)));
    }
    routing.token_offsets.push_back(routing.num_pairs());
  }
  problem.inputs.fixed_routing = routing;
  for (const char* schedule : kSchedules) {
    SCOPED_TRACE(schedule);
    check(problem, schedule);
  }
}

TEST_F(CudaTrainingGpu, GradientsInFp32OfALayerInBf16) {
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

TEST_F(CudaTrainingGpu, RunningAveragesAreTheMirrors) {
  auto shape = test::make_shape(300, 40, 16, 12, 11);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 4);
  problem.options.batch_norm = BatchNorm{.eps = 1e-5, .momentum = 0.3};
  const auto schedule = parse_schedule("token_centric");
  const auto ours = backend_->prepare_training(problem.inputs, problem.dy, schedule, problem.options);
  const reference::ReferenceTraining mirror(problem.inputs, problem.dy, schedule, problem.options);
  for (const auto& [a, b] :
       {std::pair(ours->row_norm(), mirror.row_norm()), std::pair(ours->col_norm(), mirror.col_norm())}) {
    ASSERT_EQ(a.mean.size(), b.mean.size());
    for (std::size_t i = 0; i < a.mean.size(); ++i) {
      EXPECT_NEAR(a.mean[i], b.mean[i], 1e-5);
      EXPECT_NEAR(a.variance[i], b.variance[i], 1e-4);
    }
  }
}

TEST_F(CudaTrainingGpu, TakesTheMemoryThatWasPlannedBefore) {
  for (const bool fixed : {false, true}) {
    for (const SaveMode save : kSaves) {
      for (const char* schedule : kSchedules) {
        auto shape = test::make_shape(130, 72, 24, 40, 33, 48);
        shape.dtype = Dtype::kBF16;
        test::TrainingProblem problem(shape, fixed ? 3 : 4);
        problem.options.save = save;
        if (fixed) {
          problem.fix_routing();
        } else {
          problem.options.losses = {.balance = 1, .z = 1};
          problem.options.batch_norm = BatchNorm{};
        }
        const auto step =
            backend_->prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
        const MemoryPlan plan = step->plan();
        std::int64_t planned = 0;
        for (const MemoryTerm& term : plan.terms) {
          planned += term.bytes;
        }
        const auto& ours = dynamic_cast<const cuda::CudaTraining&>(*step);
        EXPECT_EQ(planned, ours.allocated_bytes()) << schedule << " " << to_string(save);
        EXPECT_EQ(plan.bytes(MemoryPart::kInput) + plan.bytes(MemoryPart::kGradient) + plan.peak_bytes(),
                  planned);
        EXPECT_EQ(plan.bytes(MemoryPart::kSaved), step->saved_bytes());
        EXPECT_EQ(plan.stages, std::vector<Stage>(step->stages().begin(), step->stages().end()));
      }
    }
  }
}

/// How far `ours` is from `theirs`, of how far these are from `start`.
double off_the_way(const HostTensor& ours, const HostTensor& theirs, const HostTensor& start) {
  double off = 0;
  double way = 0;
  for (std::int64_t r = 0; r < ours.rows(); ++r) {
    for (std::int64_t c = 0; c < ours.cols(); ++c) {
      off += std::pow(static_cast<double>(ours.at(r, c)) - theirs.at(r, c), 2);
      way += std::pow(static_cast<double>(theirs.at(r, c)) - start.at(r, c), 2);
    }
  }
  return std::sqrt(off / way);
}

/// As often as run() takes a step: the stages one by one, and the layer.
TEST_F(CudaTrainingGpu, EndsWithTheMirrorsStepOfTheOptimizer) {
  auto shape = test::make_shape(60, 264, 30, 40, 9);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 4);
  for (const GradientForm form : {GradientForm::kStored, GradientForm::kTouched}) {
    for (const OptimizerForm rows : {OptimizerForm::kTouched, OptimizerForm::kDense}) {
      if (form == GradientForm::kTouched && rows == OptimizerForm::kDense) {
        continue;  // refused
      }
      problem.options.form = form;
      problem.options.optimizer = rows;
      problem.options.adamw = {.learning_rate = 0.01, .eps = 1e-3, .weight_decay = 0.1};
      for (const char* schedule : kSchedules) {
        SCOPED_TRACE(fmt::format("{} {} {}", schedule, to_string(form), to_string(rows)));
        const auto options = parse_schedule(schedule);
        const auto ours = backend_->prepare_training(problem.inputs, problem.dy, options, problem.options);
        reference::ReferenceTraining mirror(problem.inputs, problem.dy, options, problem.options);
        EXPECT_EQ(ours->stages().back(), Stage::kExpertsOptimizer);
        for (int run = 0; run < 2; ++run) {
          ours->run(L2State::kWarm);
          mirror.run(L2State::kWarm);
          mirror.run(L2State::kWarm);
        }
        const ExpertStep a = ours->expert_step();
        const ExpertStep b = mirror.expert_step();
        EXPECT_LE(off_the_way(a.w_in, b.w_in, problem.inputs.experts->w_in), 1e-4);
        EXPECT_LE(off_the_way(a.w_out, b.w_out, problem.inputs.experts->w_out), 1e-4);
        EXPECT_EQ(ours->gradients().touched_experts, mirror.gradients().touched_experts);
        std::int64_t planned = 0;
        for (const MemoryTerm& term : ours->plan().terms) {
          planned += term.bytes;
        }
        EXPECT_EQ(planned, dynamic_cast<const cuda::CudaTraining&>(*ours).allocated_bytes());
      }
    }
  }
}

/// The graph of the whole layer adds as the stages do.
TEST_F(CudaTrainingGpu, AddsInItsGraphs) {
  auto shape = test::make_shape(130, 72, 24, 40, 33, 48);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 4);
  for (const char* schedule : kSchedules) {
    problem.options.form = GradientForm::kStored;
    const auto stored =
        backend_->prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
    stored->run(L2State::kWarm);
    problem.options.form = GradientForm::kAdded;
    const auto added =
        backend_->prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
    added->run(L2State::kWarm);
    added->run(L2State::kWarm);
    const HostTensor& once = stored->gradients().w_in;
    const HostTensor& sum = added->gradients().w_in;
    for (std::int64_t i = 0; i < once.size(); ++i) {
      ASSERT_NEAR(sum.f32().data[i], 4 * once.f32().data[i], 1e-4) << schedule << " " << i;
    }
  }
}

TEST_F(CudaTrainingGpu, TimesItsStagesAndTheWhole) {
  auto shape = test::make_shape(256, 128, 32, 32, 8, 64);
  shape.dtype = Dtype::kBF16;
  test::TrainingProblem problem(shape, 4);
  problem.options.save = SaveMode::kMinimal;
  const auto step = backend_->prepare_training(problem.inputs, problem.dy, parse_schedule("token_centric"),
                                               problem.options);
  const auto times = step->run(L2State::kCold);
  ASSERT_EQ(times.size(), step->stages().size() + 1);
  for (const StageTime& time : times) {
    EXPECT_GT(time.time_s, 0) << to_string(time.stage);
  }
  EXPECT_EQ(times.back().stage, Stage::kLayer);
  EXPECT_NE(step->kernels(Stage::kLayer).find("experts_wgrad<pairs>"), std::string::npos);
}

TEST_F(CudaTrainingGpu, RefusesWhatItCannotRun) {
  auto shape = test::make_shape(64, 40, 16, 12, 11);
  shape.dtype = Dtype::kF32;
  test::TrainingProblem problem(shape, 3);
  const auto refusal = [&](const char* schedule) {
    return test::error_text<InvalidArgument>([&] {
      backend_->prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
    });
  };
  EXPECT_NE(refusal("sparse_library").find("cuSPARSE"), std::string::npos);
  problem.options.gradients = Dtype::kBF16;
  EXPECT_NE(refusal("token_centric").find("gradients"), std::string::npos);
  problem.options.gradients = std::nullopt;
  problem.inputs.router.row.f32().row(3)[5] = std::numeric_limits<float>::infinity();
  EXPECT_NE(refusal("token_centric").find("row_logits"), std::string::npos);
  problem.dy = HostTensor::zeros(Dtype::kBF16, 64, 40);
  EXPECT_NE(refusal("token_centric").find("dy"), std::string::npos);
}

}  // namespace
}  // namespace moescope
