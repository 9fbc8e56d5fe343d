// Every baseline system on the GPU: whole layers as graphs against the fp64 oracle over awkward shapes and
// skew, the golden files, what they promise of their runs, accounted memory, and every refusal.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/systems/system_cost.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/systems/cuda_system_layer.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/golden/golden.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr std::array kBaselines = {System::kDenseMlp, System::kGShard, System::kDeepSeekMoe, System::kPkm,
                                   System::kPeer};

/// system_shape() with what the kernels ask for: experts a multiple of 8 wide.
SystemShape gpu_shape(System system, std::int64_t num_tokens, std::int64_t hidden_size,
                      std::int64_t num_experts, std::int64_t top_k, std::int64_t heads, Dtype dtype) {
  SystemShape shape = test::system_shape(system, num_tokens, hidden_size, num_experts, top_k, heads);
  shape.dtype = dtype;
  if (shape.has_ffn_experts()) {
    shape.expert_size = 24;
  }
  return shape;
}
SystemShape small(System system, Dtype dtype) { return gpu_shape(system, 37, 40, 49, 6, 3, dtype); }

bool equal_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::equal(a.data(), a.data() + a.bytes(), b.data());
}

// Arithmetic on shapes: no GPU.

SystemDesign design(const SystemShape& shape) {
  return {.shape = shape,
          .has_norm = shape.system == System::kPkm,
          .fused_mlp = shape.shared_size > 0 && shape.dtype == Dtype::kBF16};
}

TEST(SystemMemory, NoStageNeedsMoreThanTheLayerHolds) {
  for (const System system : kBaselines) {
    for (const SystemPreset& preset : system_presets(system)) {
      const SystemMemoryPlan plan = plan_system_memory(design(preset.shape));
      ASSERT_EQ(plan.stages.back().stage, Stage::kLayer);
      ASSERT_EQ(plan.stages.size(), system_stages(system).size() + 1);
      for (const StageMemory& stage : plan.stages) {
        EXPECT_LE(stage.workspace_bytes, plan.stages.back().workspace_bytes)
            << preset.name << " " << to_string(stage.stage);
      }
      EXPECT_GT(plan.total_bytes(), preset.shape.weight_bytes());
    }
  }
}

TEST(SystemMemory, TheStagesAreCoresWithTheSharedExpertFirst) {
  for (const System system : kBaselines) {
    auto stages = system_layer_stages(system);
    const auto experts = std::find(stages.begin(), stages.end(), Stage::kExperts);
    if (experts != stages.end()) {
      EXPECT_EQ(std::next(experts), stages.end()) << to_string(system);
    }
    auto expected = system_stages(system);
    std::sort(stages.begin(), stages.end());
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(stages, expected) << to_string(system);
  }
}

TEST(SystemDesigns, RefusesWhatTheKernelsCannotDo) {
  const auto refusal = [](const SystemShape& shape, std::int64_t compute_capability) {
    const SystemInputs inputs = make_system_inputs(shape, 1, 1);
    return test::error_text<InvalidArgument>(
        [&] { (void)design_system(inputs, test::large_gpu(compute_capability)); });
  };
  EXPECT_EQ(refusal(test::system_shape(System::kGShard, 3, 20, 4, 2), 90),
            "hidden_size = 20: must be a multiple of 8 on the GPU");
  EXPECT_EQ(refusal(test::system_shape(System::kGShard, 3, 16, 4, 2), 90),
            "expert_size = 12: must be a multiple of 8 on the GPU");
  EXPECT_EQ(refusal(gpu_shape(System::kGShard, 3, 16, 1025, 2, 1, Dtype::kF32), 90),
            "num_experts = 1025: at most 1024 on the GPU");
  EXPECT_EQ(refusal(gpu_shape(System::kDeepSeekMoe, 3, 16, 4, 2, 1, Dtype::kBF16), 80),
            "dtype = bf16: deepseekmoe in bf16 needs a GPU of compute capability 9.0 and a build for it");
  EXPECT_EQ(refusal(gpu_shape(System::kPeer, 1, 4104, 4, 2, 1, Dtype::kF32), 90),
            "hidden_size = 4104: at most 4096 in fp32 on the GPU");
  const SystemInputs fits = make_system_inputs(gpu_shape(System::kGShard, 3, 16, 4, 2, 1, Dtype::kF32), 1, 1);
  EXPECT_NO_THROW((void)design_system(fits, test::large_gpu(80)));
}

// Layers on the GPU.

class SystemsGpu : public testing::TestWithParam<System> {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  bool runs(const SystemShape& shape) const {
    return !shape.has_ffn_experts() || grouped_gemm_supported(shape.dtype, current_gpu());
  }
  void expect_correct(const SystemShape& shape, double deviation, std::uint64_t seed) {
    if (!runs(shape)) {
      return;
    }
    const SystemInputs inputs = make_system_inputs(shape, deviation, seed);
    const SystemCheck check = check_system(*backend_, inputs, std::min<std::int64_t>(shape.num_tokens, 48));
    EXPECT_TRUE(check.passed()) << shape.label() << ", " << shape.heads << " heads, "
                                << to_string(shape.dtype) << ", gaussian:" << deviation << ": "
                                << check.describe();
  }
  std::unique_ptr<MoeBackend> backend_;
};
INSTANTIATE_TEST_SUITE_P(Systems, SystemsGpu, testing::ValuesIn(kBaselines),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST_P(SystemsGpu, AgreeWithTheOracleOnAwkwardShapes) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const System system = GetParam();
    expect_correct(gpu_shape(system, 37, 40, 49, 6, 3, dtype), 1, 1);
    expect_correct(gpu_shape(system, 1, 32, 16, 4, 1, dtype), 1, 2);   // one token
    expect_correct(gpu_shape(system, 300, 24, 9, 1, 1, dtype), 1, 3);  // K = 1; more than a tile of rows
    expect_correct(gpu_shape(system, 5, 24, 16, 16, 1, dtype), 1, 4);  // K = N
    expect_correct(gpu_shape(system, 9, 48, 64, 16, 8, dtype), 1, 5);  // eight heads
    expect_correct(gpu_shape(system, 4, 16, 1, 1, 1, dtype), 1, 6);    // a single expert
    expect_correct(gpu_shape(system, 130, 1000, 225, 20, 2, dtype), 1, 7);
  }
}

TEST_P(SystemsGpu, AgreeWithTheOracleOnWiderExperts) {
  SystemShape shape = gpu_shape(GetParam(), 520, 256, 64, 8, 4, Dtype::kBF16);
  if (shape.has_ffn_experts()) {
    shape.expert_size = 200;
  }
  if (shape.shared_size > 0) {
    shape.shared_size = 328;
  }
  if (shape.has_product_keys()) {
    shape.key_size = 64;
  }
  expect_correct(shape, 1, 8);
}

/// Gates of nearly one expert, scores far from 0. Further in bf16 the rounding of a query alone moves pkm's
/// gates by more than the tolerance.
TEST_P(SystemsGpu, AgreeWithTheOracleUnderSkew) {
  expect_correct(gpu_shape(GetParam(), 200, 64, 36, 6, 2, Dtype::kBF16), 4, 9);
  expect_correct(gpu_shape(GetParam(), 200, 64, 36, 6, 2, Dtype::kF32), 4, 9);
  expect_correct(gpu_shape(GetParam(), 200, 64, 36, 6, 2, Dtype::kF32), 40, 9);
}

/// Every token the same, so that all choose the same experts: a few hold all rows, the rest none.
TEST_P(SystemsGpu, AgreeWithTheOracleWhenAllTokensChooseTheSame) {
  const SystemShape shape = gpu_shape(GetParam(), 700, 64, 100, 4, 2, Dtype::kBF16);
  if (!runs(shape)) {
    return;
  }
  SystemInputs inputs = make_system_inputs(shape, 1, 10);
  for (std::int64_t token = 1; token < shape.num_tokens; ++token) {
    std::copy_n(inputs.hidden_states.bf16().row(0), shape.hidden_size,
                inputs.hidden_states.bf16().row(token));
  }
  const SystemCheck check = check_system(*backend_, inputs, 5);
  EXPECT_TRUE(check.passed()) << check.describe();
  if (GetParam() != System::kGShard) {
    return;  // of a dense branch cuBLASLt may sum the rows of one tile otherwise than of another
  }
  const auto execution = backend_->prepare_system(inputs);
  execution->run(L2State::kWarm);
  const HostTensor out = execution->output();
  for (std::int64_t token = 1; token < shape.num_tokens;
       ++token) {  // a row's place in its tile changes no bit
    ASSERT_TRUE(equal_bits(out.slice_rows(token, 1), out.slice_rows(0, 1))) << token;
  }
}

TEST_P(SystemsGpu, RunTheirStagesAndAccountForEach) {
  const SystemInputs inputs = make_system_inputs(small(GetParam(), Dtype::kF32), 1, 8);
  std::string why;
  EXPECT_TRUE(backend_->supports_system(GetParam(), why)) << why;
  const auto execution = backend_->prepare_system(inputs);
  EXPECT_EQ(execution->schedule_options(), ReferenceBackend().prepare_system(inputs)->schedule_options());
  const auto times = execution->run(L2State::kCold);
  const auto stages = system_layer_stages(GetParam());
  const auto memory = execution->memory();
  ASSERT_EQ(times.size(), stages.size() + 1);
  double sum = 0;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    EXPECT_EQ(times[s].stage, stages[s]);
    EXPECT_EQ(execution->stages()[s], stages[s]);
    EXPECT_EQ(memory[s].stage, stages[s]);
    EXPECT_GT(times[s].time_s, 0);
    sum += times[s].time_s;
  }
  EXPECT_EQ(times.back().stage, Stage::kLayer);
  EXPECT_LE(times.back().time_s, 1e-5 + 1.05 * sum);
}

TEST_P(SystemsGpu, ReplayEqualsPlainLaunches) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const SystemShape shape = gpu_shape(GetParam(), 300, 64, 49, 6, 3, dtype);
    if (!runs(shape)) {
      continue;
    }
    const SystemInputs inputs = make_system_inputs(shape, 1, 11);
    const auto execution = backend_->prepare_system(inputs);
    EXPECT_TRUE(execution->deterministic());
    execution->run(L2State::kCold);
    const HostTensor replayed = execution->output();
    for (const Stage stage : execution->stages()) {
      execution->enqueue(stage);
    }
    execution->synchronize();
    EXPECT_TRUE(equal_bits(execution->output(), replayed)) << to_string(dtype);
  }
}

TEST_P(SystemsGpu, SelectAsTheReferenceDoes) {
  const SystemInputs inputs = make_system_inputs(small(GetParam(), Dtype::kF32), 1, 12);
  const auto device = backend_->prepare_system(inputs);
  const auto mirror = ReferenceBackend().prepare_system(inputs);
  device->run(L2State::kWarm);
  mirror->run(L2State::kWarm);
  const Routing actual = device->routing();
  const Routing expected = mirror->routing();
  EXPECT_EQ(actual.num_tokens, expected.num_tokens);
  EXPECT_EQ(actual.grid_rows, expected.grid_rows);
  EXPECT_EQ(actual.grid_cols, expected.grid_cols);
  EXPECT_EQ(actual.token_offsets, expected.token_offsets);
  EXPECT_EQ(actual.expert_ids, expected.expert_ids);
  ASSERT_EQ(actual.gates.size(), expected.gates.size());
  for (std::size_t i = 0; i < expected.gates.size(); ++i) {
    ASSERT_NEAR(actual.gates[i], expected.gates[i], 1e-5F * (1 + std::abs(expected.gates[i]))) << i;
  }
}

TEST_P(SystemsGpu, AccountedMemoryIsWhatTheDeviceLoses) {
  SystemShape shape = find_system_preset(GetParam(), "small").shape;
  shape.num_tokens = 4096;
  if (!runs(shape)) {
    return;
  }
  SystemInputs inputs = make_system_inputs(shape, 1, 13);
  const auto warm_up = backend_->prepare_system(inputs);  // modules, library handles
  std::size_t before = 0;
  std::size_t after = 0;
  std::size_t all = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&before, &all));
  const auto layer = backend_->prepare_system(inputs);
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&after, &all));
  if (shape.has_product_keys()) {
    inputs.schedule = layer->schedule_options().kind;  // by this device's rates
  }
  const SystemMemoryPlan plan = plan_system_memory(design_system(inputs, current_gpu()));
  const auto lost = static_cast<double>(before) - static_cast<double>(after);
  constexpr double kGranularity = 32 << 20;  // allocations come in 2 MiB pages; graphs and streams take some
  EXPECT_NEAR(lost, static_cast<double>(plan.total_bytes()), kGranularity);
}

TEST_P(SystemsGpu, RefuseInputsThatDoNotFit) {
  SystemInputs inputs = make_system_inputs(small(GetParam(), Dtype::kF32), 1, 9);
  inputs.hidden_states = HostTensor::zeros(Dtype::kF32, 36, 40);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { backend_->prepare_system(inputs); }),
            "hidden_states = [36, 40] fp32: must be [37, 40] fp32 for " + inputs.shape.label());
}

TEST_P(SystemsGpu, NameTheBadLogitAsTheReferenceDoes) {
  if (GetParam() == System::kDenseMlp) {
    return;  // has no logits
  }
  SystemInputs inputs = make_system_inputs(small(GetParam(), Dtype::kF32), 1, 14);
  inputs.hidden_states.f32().row(5)[3] = std::numeric_limits<float>::quiet_NaN();
  const auto layer = backend_->prepare_system(inputs);
  const auto mirror = ReferenceBackend().prepare_system(inputs);
  const auto place = [](const std::string& text) { return text.substr(0, text.find(" = ")); };
  const std::string expected = place(test::error_text<InvalidArgument>([&] { mirror->run(L2State::kWarm); }));
  for (int repetition = 0; repetition < 2; ++repetition) {
    EXPECT_EQ(place(test::error_text<InvalidArgument>([&] { layer->run(L2State::kWarm); })), expected);
  }
}

class SystemsGpuValues : public testing::Test {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  std::unique_ptr<MoeBackend> backend_;
};

TEST_F(SystemsGpuValues, GoldenFilesAreReproduced) {
  for (const std::string name :
       {"deepseekmoe_v2", "gshard_topk_mixtral", "peer_relu", "peer_softmax", "pkm"}) {
    const std::string file = "tests/data/golden/" + name + ".npz";  // of a copy that runs elsewhere
    const std::string path = std::filesystem::exists(file) ? file : test::source_path("") + file;
    const GoldenResult result = replay_golden_system(path, *backend_);
    EXPECT_EQ(result.status, Status::kOk) << name << ": " << result.reason;
    EXPECT_GE(result.max_relative_error, 0) << name;
  }
}

TEST_F(SystemsGpuValues, ReluGatesAgreeWithTheOracle) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    SystemShape shape = gpu_shape(System::kPeer, 121, 32, 64, 12, 4, dtype);
    shape.gate_mode = GateMode::kRelu;
    const SystemCheck check = check_system(*backend_, make_system_inputs(shape, 1, 11), 40);
    EXPECT_TRUE(check.passed()) << check.describe();
  }
}

TEST_F(SystemsGpuValues, FfnGatesOfEitherKindAgreeWithTheOracle) {
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
      SystemShape shape = gpu_shape(system, 121, 32, 10, 3, 1, Dtype::kF32);
      shape.gate_mode = mode;
      const SystemCheck check = check_system(*backend_, make_system_inputs(shape, 1, 12), 40);
      EXPECT_TRUE(check.passed()) << to_string(system) << ": " << check.describe();
    }
  }
}

/// All scores are equal: the K lowest ids.
TEST_F(SystemsGpuValues, TiesGoToTheLowerIds) {
  for (const System system : {System::kGShard, System::kPkm, System::kPeer}) {
    const SystemInputs inputs = make_system_inputs(gpu_shape(system, 3, 16, 49, 6, 1, Dtype::kF32), 0, 1);
    const auto execution = backend_->prepare_system(inputs);
    execution->run(L2State::kWarm);
    const Routing routing = execution->routing();
    routing.validate();
    for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
      for (std::int32_t k = 0; k < 6; ++k) {
        EXPECT_EQ(routing.ids_of(query)[static_cast<std::size_t>(k)], k) << to_string(system);
      }
    }
  }
}

TEST_F(SystemsGpuValues, OmniMoeIsNoBaseline) {
  std::string why;
  EXPECT_FALSE(backend_->supports_system(System::kOmniMoe, why));
  EXPECT_EQ(why, "omnimoe is prepared from LayerInputs");
}

}  // namespace
}  // namespace moescope
