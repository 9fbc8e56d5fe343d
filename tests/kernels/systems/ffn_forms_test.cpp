// FFN experts on the GPU in every order of work, and under rules for tokens: rows on the device equal to
// core's assignment, layers against the fp64 oracle, bits from run to run, counts on a recorded routing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/error.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_workload.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/systems/ffn_experts.hpp"
#include "kernels/systems/system_plan.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "reference/stages/router_select.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/router_logits.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr std::array kRules = {"padded:0.3",
                               "padded:1",
                               "padded:1.25",
                               "padded:40",
                               "token_rounding:down:8",
                               "token_rounding:up:16",
                               "token_rounding:up",
                               "token_rounding:nearest:1",
                               "token_rounding:nearest:32",
                               "token_rounding:nearest:7",
                               "token_rounding",
                               "token_rounding:down"};
constexpr std::array kFormsOfWork = {"expert_centric", "token_centric", "dense_masked"};

SystemShape ffn_shape(System system, std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                      Dtype dtype) {
  SystemShape shape = test::system_shape(system, num_tokens, 40, num_experts, top_k);
  shape.dtype = dtype;
  shape.expert_size = 24;
  return shape;
}

SystemInputs inputs_of(const SystemShape& shape, const char* workload, const char* schedule) {
  SystemInputs inputs = make_workload(WorkloadSpec::parse(workload), shape, 3);
  inputs.set_schedule(parse_schedule(schedule));
  return inputs;
}

bool equal_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::equal(a.data(), a.data() + a.bytes(), b.data());
}

// Arithmetic on shapes: no GPU.

TEST(FfnForms, HoldRoomForWhatARuleCanLeave) {
  const SystemShape shape = ffn_shape(System::kGShard, 300, 10, 3, Dtype::kBF16);
  const auto rows = [&](const char* rule) { return max_ruled_rows(shape, *parse_token_rule(rule)); };
  EXPECT_EQ(rows("padded:1.25"), 10 * 113);  // ceil(1.25 * 900 / 10)
  EXPECT_EQ(rows("padded:100"), 10 * 300);   // no more than there are tokens
  EXPECT_EQ(rows("token_rounding:down"), 900);
  EXPECT_EQ(rows("token_rounding:up:16"), 900 + 10 * 15);
  EXPECT_EQ(rows("token_rounding:nearest:16"), 900 + 10 * 8);
  EXPECT_EQ(rows("token_rounding:up:1048576"), 3000);
}

TEST(FfnForms, HaveAScheduleWhereItFollowsFromTheRouting) {
  for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kDenseMasked}) {
    const auto stages = system_layer_stages(System::kGShard, false, kind);
    EXPECT_EQ(stages, (std::vector{Stage::kRouterProject, Stage::kRouterSelect, Stage::kExperts}));
    const SystemMemoryPlan plan =
        plan_system_memory({.shape = find_system_preset(System::kGShard, "small").shape, .ffn_kind = kind});
    EXPECT_EQ(plan.stages.size(), stages.size() + 1);
    EXPECT_EQ(plan.schedule_scratch, 0);
  }
}

TEST(FfnForms, AreRefusedWhereTheyCannotRun) {
  const auto refusal = [](SystemInputs inputs, std::int64_t compute_capability) {
    return test::error_text<InvalidArgument>(
        [&] { (void)design_system(inputs, test::large_gpu(compute_capability)); });
  };
  const SystemShape shape = ffn_shape(System::kGShard, 64, 10, 3, Dtype::kBF16);
  for (const char* schedule : {"padded:1", "dense_masked"}) {
    EXPECT_EQ(refusal(inputs_of(shape, "gaussian:1", schedule), 80),
              "dtype = bf16: gshard in bf16 needs a GPU of compute capability 9.0 and a build for it");
  }
  EXPECT_NO_THROW((void)design_system(inputs_of(shape, "gaussian:1", "token_centric"), test::large_gpu(80)));
  SystemInputs recorded = inputs_of(shape, "gaussian:1", "token_rounding");
  recorded.fixed_routing = inputs_of(shape, "uniform", "expert_centric").fixed_routing;
  ASSERT_TRUE(recorded.fixed_routing);
  EXPECT_EQ(refusal(std::move(recorded), 90),
            "schedule = token_rounding: adds tokens by the router's probabilities, which a fixed routing has "
            "not; token_rounding:down needs the recorded gates alone");
}

// On the GPU.

struct RuledCase {
  std::int64_t num_tokens;
  std::int64_t num_experts;
  std::int64_t top_k;
};
std::vector<RuledCase> cases() {
  return {{1, 1, 1},   {5, 8, 2},     {130, 33, 7},  {300, 12, 12},
          {77, 64, 1}, {1027, 40, 4}, {700, 256, 8}, {9, 1024, 100}};
}

class FfnRulesGpu : public testing::TestWithParam<RuledCase> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Shapes, FfnRulesGpu, testing::ValuesIn(cases()), [](const auto& test) {
  return "L" + std::to_string(test.param.num_tokens) + "_N" + std::to_string(test.param.num_experts) + "_K" +
         std::to_string(test.param.top_k);
});

/// Logits whose log-softmax is exact, with many ties: what is kept and added equals core's assignment.
TEST_P(FfnRulesGpu, LeaveThePairsThatCoreLeaves) {
  const auto [num_tokens, num_experts, top_k] = GetParam();
  const SystemShape shape = ffn_shape(System::kGShard, num_tokens, num_experts, top_k, Dtype::kF32);
  for (const double levels : {1.0, 3.0, 100.0}) {
    const auto joined = test::exact_logits(shape.row_shape(), static_cast<std::uint64_t>(levels), levels);
    RouterLogits logits{HostTensor::zeros(Dtype::kF32, num_tokens, 1),
                        HostTensor(Dtype::kF32, num_tokens, num_experts)};
    HostTensor probabilities(Dtype::kF32, num_tokens, num_experts);
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      for (std::int64_t e = 0; e < num_experts; ++e) {
        const float logit = joined[static_cast<std::size_t>(token * (num_experts + 1) + 1 + e)];
        logits.col.f32().row(token)[e] = logit;
        probabilities.f32().row(token)[e] = std::exp(logit);
      }
    }
    const Routing chosen =
        reference::select_rows(logits, top_k, GateMode::kProbability, reference::Marginals::kLogSoftmax);
    const Stream stream;
    const RoutingBuffers device(shape.row_shape(), chosen, stream.get());
    const Bytes device_logits = upload(logits.col, stream.get());
    for (const char* name : kRules) {
      const TokenRule rule = *parse_token_rule(name);
      const TokenAssignment expected = assign_tokens(chosen, rule, &probabilities);
      FfnExperts experts({.shape = shape, .tokens = rule}, stream.get());
      TokenAssignment actual;
      for (int run = 0; run < 2; ++run) {  // a schedule leaves nothing behind that the next one minds
        experts.enqueue_schedule(device.view(), reinterpret_cast<const float*>(device_logits.get()),
                                 stream.get());
        actual = experts.assignment(chosen, stream.get());
      }
      ASSERT_NO_THROW(validate(actual, chosen, nullptr)) << name;
      EXPECT_EQ(actual.routing.token_offsets, expected.routing.token_offsets) << name << " " << levels;
      ASSERT_EQ(actual.routing.expert_ids, expected.routing.expert_ids) << name << " " << levels;
      EXPECT_EQ(actual.dropped_pairs, expected.dropped_pairs) << name;
      EXPECT_EQ(actual.added_pairs, expected.added_pairs) << name;
      EXPECT_EQ(actual.tokens_without, expected.tokens_without) << name;
      EXPECT_EQ(actual.capacity, expected.capacity) << name;
      for (std::size_t i = 0; i < expected.routing.gates.size(); ++i) {
        ASSERT_NEAR(actual.routing.gates[i], expected.routing.gates[i], 4e-6F * expected.routing.gates[i]);
      }
    }
  }
}

class FfnFormsGpu : public testing::Test {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  bool runs(const SystemInputs& inputs) const {
    return inputs.schedule == ScheduleKind::kTokenCentric ||
           grouped_gemm_supported(inputs.shape.dtype, current_gpu());
  }
  void expect_correct(const SystemInputs& inputs) {
    if (!runs(inputs)) {
      return;
    }
    const SystemCheck check =
        check_system(*backend_, inputs, std::min<std::int64_t>(inputs.shape.num_tokens, 64));
    EXPECT_TRUE(check.passed()) << to_string(inputs.schedule_options()) << " " << inputs.shape.label() << " "
                                << to_string(inputs.shape.dtype) << " " << inputs.workload << ": "
                                << check.describe();
    EXPECT_EQ(check.ran, inputs.schedule_options().kind);
  }
  std::unique_ptr<MoeBackend> backend_;
};

TEST_F(FfnFormsGpu, AgreeWithTheOracleUnderEveryRule) {
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const char* rule : kRules) {
        expect_correct(inputs_of(ffn_shape(system, 150, 10, 3, dtype), "zipf:1", rule));
      }
      expect_correct(inputs_of(ffn_shape(system, 700, 40, 5, dtype), "hot:0.5,2", "padded:1.25"));
      expect_correct(inputs_of(ffn_shape(system, 700, 40, 5, dtype), "gaussian:1", "token_rounding"));
      expect_correct(inputs_of(ffn_shape(system, 1, 16, 4, dtype), "gaussian:1", "padded:1"));
      expect_correct(inputs_of(ffn_shape(system, 1, 16, 4, dtype), "gaussian:1", "token_rounding:up"));
      expect_correct(inputs_of(ffn_shape(system, 300, 9, 1, dtype), "uniform", "token_rounding:down:16"));
    }
  }
}

TEST_F(FfnFormsGpu, AgreeWithTheOracleInEveryOrderOfWork) {
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const char* schedule : kFormsOfWork) {
        expect_correct(inputs_of(ffn_shape(system, 37, 49, 6, dtype), "gaussian:1", schedule));
        expect_correct(inputs_of(ffn_shape(system, 1, 16, 16, dtype), "gaussian:1", schedule));
        expect_correct(inputs_of(ffn_shape(system, 300, 9, 1, dtype), "zipf:1", schedule));
        expect_correct(inputs_of(ffn_shape(system, 5, 1, 1, dtype), "uniform", schedule));
        SystemShape wide = ffn_shape(system, 130, 20, 3, dtype);
        wide.hidden_size = 1000;
        wide.expert_size = 328;
        wide.activation = Activation::kGelu;
        expect_correct(inputs_of(wide, "gaussian:1", schedule));
      }
    }
  }
}

TEST_F(FfnFormsGpu, ReplayEqualsPlainLaunches) {
  for (const char* schedule : {"padded:1.25", "token_rounding:nearest:16", "token_rounding:down:16",
                               "token_centric", "dense_masked"}) {
    const SystemInputs inputs =
        inputs_of(ffn_shape(System::kDeepSeekMoe, 300, 24, 4, Dtype::kBF16), "zipf:1", schedule);
    if (!runs(inputs)) {
      continue;
    }
    const auto execution = backend_->prepare_ruled_system(inputs);
    EXPECT_TRUE(execution->deterministic());
    EXPECT_EQ(execution->schedule_options(), inputs.schedule_options());
    execution->run(L2State::kCold);
    const HostTensor replayed = execution->output();
    for (const Stage stage : execution->stages()) {
      execution->enqueue(stage);
    }
    execution->synchronize();
    EXPECT_TRUE(equal_bits(execution->output(), replayed)) << schedule;
  }
}

TEST_F(FfnFormsGpu, DropWhatNumPyCountsOnARecordedRouting) {
  const std::string file = "tests/data/traces/ffn64_unbalanced.npz";  // of a copy that runs elsewhere
  const std::string text = "trace:" + (std::filesystem::exists(file) ? file : test::source_path(file));
  const SystemShape shape = [] {
    SystemShape some = test::system_shape(System::kGShard, 0, 16, 0, 0);
    some.expert_size = 24;
    return some;
  }();
  // tests/data/token_rules/make.py prints these.
  const std::array<std::tuple<const char*, std::int64_t, std::int64_t, std::int64_t>, 3> counts = {
      {{"padded:1", 8, 411, 17}, {"padded:1.25", 10, 387, 7}, {"padded:4", 32, 199, 0}}};
  for (const auto& [rule, capacity, dropped, without] : counts) {
    SystemInputs inputs = make_workload(WorkloadSpec::parse(text), shape, 1);
    inputs.set_schedule(parse_schedule(rule));
    const auto execution = backend_->prepare_ruled_system(inputs);
    execution->run(L2State::kWarm);
    const TokenAssignment& assignment = *execution->assignment();
    EXPECT_EQ(assignment.capacity, capacity) << rule;
    EXPECT_EQ(assignment.dropped_pairs, dropped) << rule;
    EXPECT_EQ(assignment.tokens_without, without) << rule;
    EXPECT_EQ(execution->routing().num_pairs(), 512) << rule;
    expect_correct(inputs);
  }
  SystemInputs plain = make_workload(WorkloadSpec::parse(text), shape, 1);
  EXPECT_EQ(backend_->prepare_ruled_system(plain)->assignment(), nullptr);
}

TEST_F(FfnFormsGpu, AccountedMemoryIsWhatTheDeviceLoses) {
  SystemShape shape = find_system_preset(System::kGShard, "table-a").shape;
  shape.num_tokens = 4096;
  if (!grouped_gemm_supported(shape.dtype, current_gpu())) {
    return;
  }
  for (const char* schedule : {"padded:1.25", "token_rounding", "token_centric", "dense_masked"}) {
    const SystemInputs inputs = inputs_of(shape, "gaussian:1", schedule);
    const auto warm_up = backend_->prepare_ruled_system(inputs);
    std::size_t before = 0;
    std::size_t after = 0;
    std::size_t all = 0;
    MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&before, &all));
    const auto layer = backend_->prepare_ruled_system(inputs);
    MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&after, &all));
    const SystemMemoryPlan plan = plan_system_memory(design_system(inputs, current_gpu()));
    constexpr double kGranularity = 32 << 20;
    EXPECT_NEAR(static_cast<double>(before) - static_cast<double>(after),
                static_cast<double>(plan.total_bytes()), kGranularity)
        << schedule;
  }
}

}  // namespace
}  // namespace moescope
