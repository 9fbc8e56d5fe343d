// The mirror's backward against the oracle under every schedule, dtype, kind of gates and skew; and that the
// check sees what is wrong.
#include "reference/oracle/training_check.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <array>

#include "core/base/error.hpp"
#include "reference/backend/reference_backend.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

using test::RoutingCase;
using test::RoutingSkew;

constexpr std::array kSaves = {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores};
constexpr std::array kSchedules = {"token_centric",  "expert_centric",    "staircase",
                                   "staircase:rows", "staircase:atomics", "dense_masked"};

void expect_passed(const LayerCheck& check, std::size_t at_least, const std::string& where) {
  EXPECT_GE(check.stages.size(), at_least) << where;
  for (const StageCheck& stage : check.stages) {
    EXPECT_TRUE(stage.passed) << where << ": " << stage.what << ": " << stage.detail;
  }
}

struct CheckedCase {
  RoutingSkew skew;
  Dtype dtype;
  GateMode gates;
};

class MirrorsBackward : public testing::TestWithParam<CheckedCase> {};

/// Given routings of every skew: all tokens on one expert, experts without tokens, ties.
TEST_P(MirrorsBackward, OfGivenRoutingsIsTheOracles) {
  auto shape = test::make_shape(70, 48, 12, 10, 9, 20);
  shape.dtype = GetParam().dtype;
  ReferenceBackend backend;
  for (const std::int64_t top_k : {1, 9}) {
    shape.top_k = top_k;
    test::TrainingProblem problem(shape, 4);
    problem.inputs.fixed_routing = test::make_routing({shape, GetParam().skew}, 5);
    for (const char* schedule : kSchedules) {
      expect_passed(
          check_training_modes(backend, problem.inputs, problem.dy, parse_schedule(schedule), kSaves, 9), 27,
          schedule);
    }
  }
}

TEST_P(MirrorsBackward, ThroughTheRouterIsTheOracles) {
  auto shape = test::make_shape(40, 48, 12, 10, 9, 20);
  shape.dtype = GetParam().dtype;
  shape.gate_mode = GetParam().gates;
  ReferenceBackend backend;
  for (const std::uint64_t seed : {3, 4}) {  // with and without biases, the latter with batch norm
    test::TrainingProblem problem(shape, seed);
    if (GetParam().skew == RoutingSkew::kTies) {  // rows and columns in equal pairs
      for (auto* side : {&problem.inputs.router.row, &problem.inputs.router.col}) {
        const auto row_bytes = static_cast<std::size_t>(side->cols() * dtype_bytes(side->dtype()));
        for (std::size_t r = 0; r + 1 < static_cast<std::size_t>(side->rows()); r += 2) {
          std::memcpy(side->data() + (r + 1) * row_bytes, side->data() + r * row_bytes, row_bytes);
        }
      }
    }
    for (const char* schedule : kSchedules) {
      expect_passed(
          check_training_modes(backend, problem.inputs, problem.dy, parse_schedule(schedule), kSaves, 9), 50,
          schedule);
    }
  }
}

std::vector<CheckedCase> checked_cases() {
  std::vector<CheckedCase> cases;
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    for (const RoutingSkew skew : test::kRoutingSkews) {
      cases.push_back({skew, dtype, cases.size() % 2 == 0 ? GateMode::kSoftmax : GateMode::kProbability});
    }
  }
  cases.push_back({RoutingSkew::kTies, Dtype::kBF16, GateMode::kProbability});
  cases.push_back({RoutingSkew::kTies, Dtype::kF32, GateMode::kProbability});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases, MirrorsBackward, testing::ValuesIn(checked_cases()), [](const auto& test) {
  return test::to_string(test.param.skew) + "_" + std::string(to_string(test.param.dtype)) + "_" +
         std::string(to_string(test.param.gates));
});

/// The mirror with something wrong in its gradients.
class WrongTraining final : public TrainingExecution {
 public:
  using Spoil = std::function<void(LayerGradients&)>;
  WrongTraining(std::unique_ptr<TrainingExecution> right, Spoil spoil)
      : right_(std::move(right)), spoil_(std::move(spoil)) {}
  std::vector<StageTime> run(L2State l2) override {
    auto times = right_->run(l2);
    // Only the last owner may change what a run leaves.
    spoil_(
        const_cast<LayerGradients&>(right_->gradients()));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
    return times;
  }
  HostTensor output() override { return right_->output(); }
  Routing routing() override { return right_->routing(); }
  std::vector<StageMemory> memory() const override { return right_->memory(); }
  ScheduleOptions schedule_options() const override { return right_->schedule_options(); }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return right_->stages(); }
  void enqueue(Stage stage) override { right_->enqueue(stage); }
  void synchronize() override {}
  void empty_cache() override {}
  const LayerGradients& gradients() const override { return right_->gradients(); }
  void set_gradients(const LayerGradients& start) override { right_->set_gradients(start); }
  ExpertStep expert_step() const override { return right_->expert_step(); }
  RunningNorm row_norm() const override { return {}; }
  RunningNorm col_norm() const override { return {}; }
  std::int64_t saved_bytes() const override { return 0; }
  MemoryPlan plan() const override { return right_->plan(); }

 private:
  std::unique_ptr<TrainingExecution> right_;
  Spoil spoil_;
};

class WrongBackend final : public MoeBackend {
 public:
  explicit WrongBackend(WrongTraining::Spoil spoil) : spoil_(std::move(spoil)) {}
  std::string_view name() const override { return "wrong"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind kind, std::string& why) const override { return right_.supports(kind, why); }
  RouterLogits router_project(const LayerInputs& inputs) override { return right_.router_project(inputs); }
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override {
    return right_.router_select(shape, logits);
  }
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override {
    return right_.schedule(routing, options);
  }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    return right_.prepare(inputs, options);
  }
  std::unique_ptr<TrainingExecution> prepare_training(const LayerInputs& inputs, const HostTensor& dy,
                                                      const ScheduleOptions& options,
                                                      const TrainingOptions& training) override {
    return std::make_unique<WrongTraining>(right_.prepare_training(inputs, dy, options, training), spoil_);
  }

 private:
  ReferenceBackend right_;
  WrongTraining::Spoil spoil_;
};

/// Which comparison fails first when gradients are spoilt so.
std::string first_failure(const WrongTraining::Spoil& spoil) {
  auto shape = test::make_shape(40, 48, 12, 10, 9, 20);
  shape.dtype = Dtype::kF32;
  const test::TrainingProblem problem(shape, 3);
  WrongBackend backend(spoil);
  const LayerCheck check = check_training(backend, problem.inputs, problem.dy, {}, {}, 40, "");
  const StageCheck* failure = check.first_failure();
  return failure == nullptr ? "none" : failure->what;
}

void scale(HostTensor& tensor, float factor) {
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.f32().data[i] *= factor;
  }
}

TEST(TrainingCheck, SeesEveryWrongGradient) {
  EXPECT_EQ(first_failure([](LayerGradients&) {}), "none");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.hidden_states, 1.0001F); }), "dX");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.w_in, 0.9999F); }), "dW");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.w_out, -1); }), "dV");
  EXPECT_EQ(first_failure([](LayerGradients& g) { g.gates[7] = NAN; }), "gates' gradients");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.logits.row, 1.001F); }), "row logits");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.router_col, 1.001F); }), "dWc");
  EXPECT_EQ(first_failure([](LayerGradients& g) { g.col_bias[1] += 1; }), "column bias");
  EXPECT_EQ(first_failure([](LayerGradients& g) { scale(g.shared->down, 2); }), "down matrix");
  EXPECT_EQ(first_failure([](LayerGradients& g) { g.router_row = HostTensor::zeros(Dtype::kF32, 11, 48); }),
            "dWr");
  EXPECT_EQ(first_failure([](LayerGradients& g) { g.touched_experts.pop_back(); }),
            "rows of experts without tokens");
  int runs = 0;
  EXPECT_EQ(first_failure([&](LayerGradients& g) { g.w_in.f32().data[0] += static_cast<float>(runs++); }),
            "second run against the first, bit by bit");
}

TEST(TrainingCheck, SaysWhatABackendWithoutBackwardSays) {
  class Forward final : public MoeBackend {
   public:
    std::string_view name() const override { return "half"; }
    std::string device() const override { return "none"; }
    bool supports(ScheduleKind, std::string&) const override { return true; }
    RouterLogits router_project(const LayerInputs&) override { return {}; }
    Routing router_select(const LayerShape&, const RouterLogits&) override { return {}; }
    Schedule schedule(const Routing&, const ScheduleOptions&) override { return {}; }
    std::unique_ptr<LayerExecution> prepare(const LayerInputs&, const ScheduleOptions&) override {
      return nullptr;
    }
  };
  auto shape = test::make_shape(4, 8, 3, 3, 2);
  const test::TrainingProblem problem(shape, 3);
  Forward backend;
  std::string why;
  EXPECT_FALSE(backend.supports_training(problem.inputs, {}, {}, why));
  EXPECT_NE(why.find("half"), std::string::npos);
  const LayerCheck check = check_training(backend, problem.inputs, problem.dy, {}, {}, 4, "");
  ASSERT_NE(check.first_failure(), nullptr);
  EXPECT_NE(check.first_failure()->detail.find("half"), std::string::npos);
}

TEST(CompareGradient, ToleratesWhatCancellationLeavesAndNoMore) {
  OracleGradient truth(1, 2);
  truth.values = {1e-3, 0};
  truth.term_squares = 1;  // terms a thousand times the sum
  HostTensor ours(Dtype::kF32, 1, 2);
  ours.f32().data[0] = 1e-3F;
  ours.f32().data[1] = 4e-6F;
  EXPECT_TRUE(compare_gradient(ours, truth, Dtype::kF32).passed());
  truth.term_squares = 1e-6;
  EXPECT_FALSE(compare_gradient(ours, truth, Dtype::kF32).passed());
  truth.values = {0, 0};
  truth.term_squares = 1;  // all of it cancels
  ours.f32().data[0] = 1e-7F;
  EXPECT_TRUE(compare_gradient(ours, truth, Dtype::kF32).passed());
  truth.term_squares = 0;  // nothing was added up
  EXPECT_FALSE(compare_gradient(ours, truth, Dtype::kF32).passed());
}

}  // namespace
}  // namespace moescope
