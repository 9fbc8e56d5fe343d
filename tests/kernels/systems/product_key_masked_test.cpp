// PKM and PEER as products with all experts: the choice between that and the gather, its memory, and on the
// GPU both forms against the fp64 oracle wherever the masked one has an edge of its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "core/tiling/chunks.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/systems/product_key_form.hpp"
#include "kernels/systems/system_plan.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

using namespace cuda;

/// Of the first device that has them.
ProductKeyRates rates() {
  return *read_gpu_rates(test::source_path("data/devices/h100-sxm/rates.json")).product_keys;
}

constexpr std::array kProductKeys = {System::kPkm, System::kPeer};

SystemShape key_shape(System system, std::int64_t num_tokens, std::int64_t hidden_size,
                      std::int64_t num_experts, std::int64_t top_k, std::int64_t heads, Dtype dtype) {
  SystemShape shape = test::system_shape(system, num_tokens, hidden_size, num_experts, top_k, heads);
  shape.dtype = dtype;
  return shape;
}

SystemInputs inputs_of(const SystemShape& shape, ScheduleKind schedule, std::uint64_t seed) {
  SystemInputs inputs = make_system_inputs(shape, 1, seed);
  inputs.schedule = schedule;
  return inputs;
}

// Arithmetic on shapes: no GPU.

TEST(ProductKeyForm, TableAIsMaskedSmallLayersAndFewPairsAreGathered) {
  for (const System system : kProductKeys) {
    for (const SystemPreset& preset : system_presets(system)) {
      EXPECT_EQ(choose_product_key_form(preset.shape, rates()).masked(), preset.name != "small")
          << to_string(system) << " " << preset.name;
    }
    SystemShape shape = find_system_preset(system, "table-a").shape;
    shape.top_k = 100;
    EXPECT_FALSE(choose_product_key_form(shape, rates()).masked());
    shape.top_k = 2500;
    shape.num_tokens = 1;
    EXPECT_FALSE(choose_product_key_form(shape, rates()).masked());
  }
}

/// By hand, with the rates of the file: 4.0e12 requested bytes, 2.95e12 bytes and 777e12 FLOP a second.
TEST(ProductKeyForm, PredictsFromBytesAndFlop) {
  const ProductKeyForms peer =
      choose_product_key_form(find_system_preset(System::kPeer, "table-a").shape, rates());
  EXPECT_NEAR(peer.gather_s, 1.1e-5 + 2.0 * 1024 * 1250 * 2048 / 4.0e12, 1e-9);
  EXPECT_NEAR(peer.masked_s,
              5.6e-5 + 2 * (2.0 * 1024 * 102400 * 1024 / 777e12) + (1024.0 * 102400 * (4 + 2)) / 2.95e12,
              1e-9);
  EXPECT_EQ(peer.explanation.substr(0, 24), "dense_masked, predicted ");
  const ProductKeyForms pkm =
      choose_product_key_form(find_system_preset(System::kPkm, "table-a").shape, rates());
  EXPECT_NEAR(pkm.masked_s, 5.6e-5 + 2.0 * 1024 * 197136 * 1024 / 777e12 + (1024.0 * 197136 * 2) / 2.95e12,
              1e-9);
}

TEST(ProductKeyForm, ADesignHasWhatWasAskedForOrTheModelsChoice) {
  const SystemShape shape = test::small_system(System::kPeer, Dtype::kF32);
  const auto design = [&](ScheduleKind asked) {
    return design_system(inputs_of(shape, asked, 1), test::large_gpu(), rates());
  };
  EXPECT_TRUE(design(ScheduleKind::kDenseMasked).masked);
  EXPECT_EQ(design(ScheduleKind::kDenseMasked).explanation, "");
  EXPECT_FALSE(design(ScheduleKind::kTokenCentric).masked);
  EXPECT_FALSE(design(ScheduleKind::kAuto).masked);
  EXPECT_NE(design(ScheduleKind::kAuto).explanation, "");
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { design(ScheduleKind::kStaircase); }),
            "schedule = staircase: must be one of auto, token_centric, dense_masked for peer");
}

TEST(MaskedMemory, HoldsScoresAndSumsInTheRoutersBuffer) {
  for (const System system : kProductKeys) {
    for (const SystemPreset& preset : system_presets(system)) {
      const auto plan_of = [&](bool masked) {
        return plan_system_memory(
            {.shape = preset.shape, .has_norm = false, .masked = masked, .gpu = test::large_gpu()});
      };
      const SystemMemoryPlan gather = plan_of(false);
      const SystemMemoryPlan masked = plan_of(true);
      const std::int64_t workspace = masked_product_keys_workspace_bytes(preset.shape, test::large_gpu());
      EXPECT_GE(workspace, DenseChunks::plan(preset.shape.row_shape(), system == System::kPeer).bytes +
                               preset.shape.num_tokens * preset.shape.hidden_size * 4);
      EXPECT_LE(workspace, DenseChunks::kMaxWorkspaceBytes + 256 +
                               std::max(DenseSplits::tiles_to_fill(test::large_gpu()) * 128 * 256,
                                        preset.shape.num_tokens * preset.shape.hidden_size) *
                                   4);
      EXPECT_EQ(masked.working, std::max(gather.working, workspace)) << preset.name;
      EXPECT_EQ(masked.token_workspace, 0);
      const Stage stage = system == System::kPeer ? Stage::kExperts : Stage::kExpertCombine;
      const auto experts = std::ranges::find(masked.stages, stage, &StageMemory::stage);
      ASSERT_NE(experts, masked.stages.end());
      EXPECT_EQ(experts->workspace_bytes, workspace + masked.library);
      EXPECT_LE(experts->workspace_bytes, masked.stages.back().workspace_bytes);
    }
  }
}

TEST(DenseSplits, PartsFillTheDeviceAndAddUpToAChunk) {
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 1024, 1024, 98816), 4);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 4096, 1024, 30000), 1);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 1, 8, 1089), 2);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 1, 8, 49), 1);
  EXPECT_EQ(DenseSplits::count(test::large_gpu(), 1, 1024, 197136), 32);
  EXPECT_EQ(DenseSplits::part(1089, 2), 512);
  EXPECT_EQ(DenseSplits::part(1089, 1), 1088);
  EXPECT_EQ(DenseSplits::part(5, 1), 5);
  EXPECT_EQ(DenseSplits::part(50, 2), 0);
}

// Layers on the GPU, forced into either form.

class MaskedGpu : public testing::TestWithParam<System> {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  /// Both forms against the oracle; each is run twice and must give the same bits.
  void expect_both_correct(SystemInputs inputs) {
    for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kDenseMasked}) {
      inputs.schedule = kind;
      const SystemCheck check =
          check_system(*backend_, inputs, std::min<std::int64_t>(inputs.shape.num_tokens, 32));
      EXPECT_EQ(check.ran, kind);
      EXPECT_TRUE(check.passed()) << inputs.shape.label() << ", " << inputs.shape.heads << " heads, "
                                  << to_string(inputs.shape.dtype) << ", " << to_string(kind) << ": "
                                  << check.describe();
    }
  }
  void expect_both_correct(const SystemShape& shape, std::uint64_t seed) {
    expect_both_correct(make_system_inputs(shape, 1, seed));
  }
  std::unique_ptr<MoeBackend> backend_;
};
INSTANTIATE_TEST_SUITE_P(Systems, MaskedGpu, testing::ValuesIn(kProductKeys),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST_P(MaskedGpu, BothFormsAgreeWithTheOracle) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const System system = GetParam();
    expect_both_correct(key_shape(system, 37, 40, 49, 6, 3, dtype), 1);
    expect_both_correct(key_shape(system, 1, 8, 1089, 12, 1, dtype), 2);  // one token, two parts, a rest
    expect_both_correct(key_shape(system, 1, 96, 16, 4, 1, dtype), 3);
    expect_both_correct(key_shape(system, 300, 96, 2025, 40, 10, dtype), 4);   // S in storage; ten heads
    expect_both_correct(key_shape(system, 300, 8, 64, 48, 4, dtype), 5);       // rows of 16 bytes
    expect_both_correct(key_shape(system, 21, 96, 10000, 2000, 2, dtype), 6);  // more pairs than threads
    expect_both_correct(key_shape(system, 21, 24, 10000, 380, 19, dtype), 7);  // more heads than one search
    expect_both_correct(key_shape(system, 520, 256, 4096, 512, 8, dtype), 8);
  }
}

/// Every head chooses every expert, so that each entry of the matrix is a sum over the heads.
TEST_P(MaskedGpu, AllHeadsMayChooseAllExperts) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    expect_both_correct(key_shape(GetParam(), 9, 24, 16, 5 * 16, 5, dtype), 9);
    expect_both_correct(key_shape(GetParam(), 300, 96, 64, 4 * 64, 4, dtype), 10);
    expect_both_correct(key_shape(GetParam(), 3, 16, 1, 6, 6, dtype), 11);
  }
}

/// Heads with the same queries and keys choose the same experts; others none of them in common by chance.
TEST_P(MaskedGpu, TheSameChoiceOfSeveralHeadsAddsUp) {
  const SystemShape shape = key_shape(GetParam(), 70, 64, 1600, 4 * 12, 4, Dtype::kF32);
  SystemInputs inputs = make_system_inputs(shape, 1, 12);
  const auto weights = std::const_pointer_cast<SystemWeights>(inputs.weights);
  const auto repeat_head = [&](HostTensor& tensor, std::int64_t blocks, std::int64_t rows_of_head) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (std::int64_t row = rows_of_head; row < shape.heads * rows_of_head; ++row) {
        const std::int64_t first = block * shape.heads * rows_of_head;
        std::copy_n(tensor.f32().row(first + row % rows_of_head), tensor.cols(),
                    tensor.f32().row(first + row));
      }
    }
  };
  repeat_head(weights->keys->queries, 2, shape.key_size);
  repeat_head(weights->keys->keys, 1, 2 * shape.num_keys());
  expect_both_correct(std::move(inputs));
}

TEST_P(MaskedGpu, SeveralChunksGiveTheSame) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const SystemShape shape = key_shape(GetParam(), 1343, 16, 449 * 449, 80, 4, dtype);
    ASSERT_LT(DenseChunks::plan(shape.row_shape(), GetParam() == System::kPeer).experts, shape.num_experts);
    expect_both_correct(shape, 13);
  }
}

TEST_P(MaskedGpu, ReplayEqualsPlainLaunchesAndAnotherLayer) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const SystemInputs inputs =
        inputs_of(key_shape(GetParam(), 300, 64, 2304, 60, 3, dtype), ScheduleKind::kDenseMasked, 14);
    const auto layer = backend_->prepare_system(inputs);
    EXPECT_TRUE(layer->deterministic());
    EXPECT_EQ(layer->schedule_options().kind, ScheduleKind::kDenseMasked);
    layer->run(L2State::kCold);
    const HostTensor replayed = layer->output();
    const auto same = [&](const HostTensor& other) {
      return std::equal(replayed.data(), replayed.data() + replayed.bytes(), other.data());
    };
    for (const Stage stage : layer->stages()) {
      layer->enqueue(stage);
    }
    layer->synchronize();
    EXPECT_TRUE(same(layer->output())) << to_string(dtype);
    const auto again = backend_->prepare_system(inputs);
    again->run(L2State::kWarm);
    EXPECT_TRUE(same(again->output())) << to_string(dtype);
  }
}

TEST_P(MaskedGpu, ReluGatesAgreeWithTheOracle) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    SystemShape shape = key_shape(GetParam(), 321, 32, 1600, 48, 4, dtype);
    if (GetParam() == System::kPeer) {
      shape.gate_mode = GateMode::kRelu;
      shape.activation = Activation::kRelu;
    }
    expect_both_correct(shape, 15);
  }
}

TEST_P(MaskedGpu, TheBadLogitIsNamed) {
  SystemInputs inputs =
      inputs_of(key_shape(GetParam(), 37, 40, 1225, 6, 3, Dtype::kF32), ScheduleKind::kDenseMasked, 16);
  inputs.hidden_states.f32().row(5)[3] = std::numeric_limits<float>::quiet_NaN();
  const auto layer = backend_->prepare_system(inputs);
  for (int repetition = 0; repetition < 2; ++repetition) {
    EXPECT_NE(test::error_text<InvalidArgument>([&] { layer->run(L2State::kWarm); }), "");
  }
}

}  // namespace
}  // namespace moescope
