// The mirror's training step as a whole: repeatable over threads, its memory as planned, its refusals.
#include <gtest/gtest.h>
#include <omp.h>

#include <set>

#include "core/base/error.hpp"
#include "core/cost/memory_plan.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/backend/reference_training.hpp"
#include "reference/oracle/stage_compare.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

constexpr std::array kSchedules = {"token_centric", "expert_centric", "staircase", "staircase:rows",
                                   "dense_masked"};

class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ThreadCount() { omp_set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

test::TrainingProblem problem_of(Dtype dtype, std::uint64_t seed) {
  auto shape = test::make_shape(300, 40, 16, 12, 11, 24);
  shape.dtype = dtype;
  test::TrainingProblem problem(shape, seed);
  problem.options.losses = {.balance = 1, .z = 1};
  return problem;
}

TEST(TrainingStep, IsBitIdenticalWhateverTheNumberOfThreads) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    auto problem = problem_of(dtype, 4);
    problem.options.batch_norm = BatchNorm{};
    for (const char* name : kSchedules) {
      const auto run = [&](int threads) {
        const ThreadCount count(threads);
        auto step = std::make_unique<reference::ReferenceTraining>(problem.inputs, problem.dy,
                                                                   parse_schedule(name), problem.options);
        step->run(L2State::kWarm);
        return step;
      };
      const auto one = run(1);
      const auto three = run(3);
      const LayerGradients& a = one->gradients();
      const LayerGradients& b = three->gradients();
      EXPECT_TRUE(same_bits(a.hidden_states, b.hidden_states)) << name;
      EXPECT_TRUE(same_bits(a.w_in, b.w_in)) << name;
      EXPECT_TRUE(same_bits(a.w_out, b.w_out)) << name;
      EXPECT_TRUE(same_bits(a.router_row, b.router_row)) << name;
      EXPECT_TRUE(same_bits(a.router_col, b.router_col)) << name;
      EXPECT_TRUE(same_bits(a.shared->gate, b.shared->gate)) << name;
      EXPECT_TRUE(same_bits(a.shared->down, b.shared->down)) << name;
      EXPECT_TRUE(same_bits(one->output(), three->output())) << name;
      EXPECT_EQ(a.gates, b.gates) << name;
    }
  }
}

TEST(TrainingStep, SaveModesGiveTheSameGradients) {
  auto problem = problem_of(Dtype::kF32, 3);
  std::vector<std::unique_ptr<reference::ReferenceTraining>> steps;
  for (const SaveMode save : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
    problem.options.save = save;
    steps.push_back(std::make_unique<reference::ReferenceTraining>(
        problem.inputs, problem.dy, parse_schedule("staircase"), problem.options));
    steps.back()->run(L2State::kWarm);
  }
  for (const auto& step : steps) {  // in fp32 z that is saved is z that is computed again
    EXPECT_TRUE(same_bits(step->gradients().w_in, steps.front()->gradients().w_in));
    EXPECT_TRUE(same_bits(step->gradients().router_row, steps.front()->gradients().router_row));
    EXPECT_TRUE(same_bits(step->gradients().hidden_states, steps.front()->gradients().hidden_states));
  }
}

std::int64_t bytes_of(const LayerGradients& g, bool fixed) {
  std::int64_t bytes = g.hidden_states.bytes() + g.w_in.bytes() + g.w_out.bytes() +
                       4 * std::ssize(g.touched_experts) + g.router_row.bytes() + g.router_col.bytes() +
                       4 * (std::ssize(g.row_bias) + std::ssize(g.col_bias));
  if (g.shared) {
    bytes += g.shared->gate.bytes() + g.shared->up.bytes() + g.shared->down.bytes();
  }
  return bytes + (fixed ? 4 * std::ssize(g.gates) : 0);
}

TEST(TrainingStep, TakesTheMemoryThatWasPlannedBefore) {
  for (const bool fixed : {false, true}) {
    for (const bool norm : {false, true}) {
      for (const SaveMode save : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
        for (const char* name : kSchedules) {
          auto problem = problem_of(Dtype::kBF16, norm ? 4 : 3);
          problem.options.save = save;
          problem.options.gradients = norm ? Dtype::kF32 : Dtype::kBF16;
          if (fixed) {
            problem.options.losses = {};
            problem.fix_routing();
          } else if (norm) {
            problem.options.batch_norm = BatchNorm{};
          }
          const auto& inputs = problem.inputs;
          reference::ReferenceTraining step(inputs, problem.dy, parse_schedule(name), problem.options);
          const Routing routing = step.routing();
          const MemoryPlan plan =
              training_memory_plan(inputs.shape, routing, build_schedule(routing, parse_schedule(name)),
                                   fixed, !inputs.router.row_bias.empty(), problem.options, kMirrorLayout);
          EXPECT_EQ(plan.bytes(MemoryPart::kSaved), step.saved_bytes()) << name << to_string(save);
          step.run(L2State::kWarm);
          EXPECT_EQ(plan.bytes(MemoryPart::kSaved), step.saved_bytes()) << name << to_string(save);
          EXPECT_EQ(plan.bytes(MemoryPart::kGradient), bytes_of(step.gradients(), fixed))
              << name << to_string(save);
          EXPECT_EQ(plan.stages, std::vector<Stage>(step.stages().begin(), step.stages().end()));
        }
      }
    }
  }
}

TEST(TrainingStep, TimesItsStagesAndTheWhole) {
  const auto problem = problem_of(Dtype::kBF16, 3);
  ReferenceBackend backend;
  const auto step =
      backend.prepare_training(problem.inputs, problem.dy, parse_schedule("staircase"), problem.options);
  const auto times = step->run(L2State::kCold);
  ASSERT_EQ(times.size(), step->stages().size() + 1);
  EXPECT_EQ(times.back().stage, Stage::kLayer);
  double sum = 0;
  for (const StageTime& time : times) {
    if (time.stage != Stage::kLayer) {
      EXPECT_EQ(direction_of(time.stage), Direction::kBackward);
      sum += time.time_s;
    }
  }
  EXPECT_LE(sum, times.back().time_s);
  EXPECT_NE(step->kernels(Stage::kExpertsWgrad).find("staircase"), std::string::npos);
}

TEST(TrainingStep, RunningAveragesFollowTheBatch) {
  auto problem = problem_of(Dtype::kF32, 4);
  problem.options.batch_norm = BatchNorm{.eps = 1e-5, .momentum = 0.3};
  const auto truth = oracle_training(problem.inputs, problem.dy, nullptr, problem.options, {});
  reference::ReferenceTraining step(problem.inputs, problem.dy, parse_schedule("staircase"), problem.options);
  const RunningNorm fresh{std::vector<double>(16, 0.0), std::vector<double>(16, 1.0)};
  const RunningNorm expected = updated_norm(fresh, truth.row, 300, 0.3);
  const RunningNorm ours = step.row_norm();
  for (std::size_t r = 0; r < 16; ++r) {
    EXPECT_NEAR(ours.mean[r], expected.mean[r], 1e-6);
    EXPECT_NEAR(ours.variance[r], expected.variance[r], 1e-5);
  }
}

TEST(TrainingStep, RefusesWhatItCannotRun) {
  auto problem = problem_of(Dtype::kF32, 3);
  ReferenceBackend backend;
  const auto refusal = [&](const char* schedule) {
    return test::error_text<InvalidArgument>([&] {
      backend.prepare_training(problem.inputs, problem.dy, parse_schedule(schedule), problem.options);
    });
  };
  EXPECT_NE(refusal("sparse_library").find("cuSPARSE"), std::string::npos);
  problem.dy = HostTensor::zeros(Dtype::kBF16, 300, 40);
  EXPECT_NE(refusal("staircase").find("dy"), std::string::npos);
}

}  // namespace
}  // namespace moescope
