// Shapes, presets and inputs of the baseline systems.
#include "core/systems/system.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

std::string refusal(const SystemShape& shape) {
  return test::error_text<InvalidArgument>([&] { shape.validate(); });
}

TEST(System, NamesParseBackAndOthersAreRefusedWithTheList) {
  for (const System system : systems()) {
    EXPECT_EQ(parse_system(to_string(system)), system);
  }
  EXPECT_EQ(test::error_text<InvalidArgument>([] { parse_system("switch"); }),
            "system = switch: must be one of dense_mlp, gshard, deepseekmoe, pkm, peer, omnimoe");
}

TEST(System, PresetsAreTableA) {
  struct Expected {
    System system;
    std::int64_t num_experts;
    std::int64_t expert_size;
    std::int64_t shared_size;
    std::array<std::int64_t, 4> top_k;
  };
  const std::array<Expected, 4> table = {{{System::kGShard, 128, 512, 0, {2, 4, 8, 16}},
                                          {System::kDeepSeekMoe, 256, 256, 1024, {4, 8, 16, 32}},
                                          {System::kPkm, 197136, 0, 0, {2500, 5000, 12500, 25000}},
                                          {System::kPeer, 102400, 0, 0, {1250, 2500, 6250, 12500}}}};
  for (const auto& row : table) {
    const auto check = [&](std::int64_t num_tokens, std::int64_t top_k) {
      const auto name = "table-a-" + std::to_string(num_tokens) + "-" + std::to_string(top_k);
      const SystemShape& shape = find_system_preset(row.system, name).shape;
      EXPECT_EQ(shape.system, row.system);
      EXPECT_EQ(shape.num_tokens, num_tokens);
      EXPECT_EQ(shape.hidden_size, 1024);
      EXPECT_EQ(shape.num_experts, row.num_experts);
      EXPECT_EQ(shape.expert_size, row.expert_size);
      EXPECT_EQ(shape.shared_size, row.shared_size);
      EXPECT_EQ(shape.top_k, top_k);
      EXPECT_EQ(shape.dtype, Dtype::kBF16);
    };
    for (const auto top_k : row.top_k) {
      check(1024, top_k);
    }
    for (const std::int64_t num_tokens : {2048, 4096, 8192, 16384}) {
      check(num_tokens, row.top_k.front());
    }
  }
}

TEST(System, EveryPresetIsValidAndNamedOnce) {
  for (const System system : systems()) {
    if (system == System::kOmniMoe) {
      continue;
    }
    std::set<std::string> names;
    for (const SystemPreset& preset : system_presets(system)) {
      EXPECT_NO_THROW(preset.shape.validate()) << preset.name;
      EXPECT_TRUE(names.insert(preset.name).second) << preset.name;
      EXPECT_FALSE(preset.source.empty());
    }
    EXPECT_TRUE(names.contains("small") && names.contains("table-a")) << to_string(system);
  }
  EXPECT_TRUE(test::error_text<InvalidArgument>([] {
                find_system_preset(System::kPeer, "none");
              }).starts_with("preset = none: for peer must be one of small, table-a, table-a-1024-1250"));
  EXPECT_EQ(test::error_text<InvalidArgument>([] { system_presets(System::kOmniMoe); }),
            "system = omnimoe: has its presets in presets()");
}

TEST(System, ShapesThatCannotWorkAreRefusedByFieldAndValue) {
  SystemShape shape = test::system_shape(System::kPeer, 5, 16, 36, 8, 2);
  EXPECT_EQ(refusal(shape), "(no error)");
  shape.num_experts = 35;
  EXPECT_EQ(refusal(shape), "num_experts = 35: must be a square");
  shape.num_experts = 36;
  shape.top_k = 7;
  EXPECT_EQ(refusal(shape), "top_k = 7: must be a multiple of heads = 2");
  shape.top_k = 74;
  EXPECT_EQ(refusal(shape), "top_k = 74: must not exceed num_experts = 36 for each of 2 heads");
  shape.top_k = 72;
  EXPECT_EQ(refusal(shape), "(no error)");
  shape.gate_mode = GateMode::kProbability;
  EXPECT_EQ(refusal(shape), "gate_mode = probability: peer has softmax and relu");
  shape.gate_mode = GateMode::kSoftmax;
  shape.expert_size = 4;
  EXPECT_EQ(refusal(shape), "expert_size = 4: must be 0: peer has none");

  shape = test::system_shape(System::kGShard, 5, 16, 8, 9);
  EXPECT_EQ(refusal(shape), "top_k = 9: must not exceed num_experts = 8");
  shape.top_k = 2;
  shape.heads = 2;
  EXPECT_EQ(refusal(shape), "heads = 2: must be 1: gshard has none");
  shape.heads = 1;
  shape.gate_mode = GateMode::kRelu;
  EXPECT_EQ(refusal(shape), "gate_mode = relu: gshard has softmax and probability");
  shape.gate_mode = GateMode::kSoftmax;
  shape.num_tokens = 0;
  EXPECT_EQ(refusal(shape), "num_tokens = 0: must be at least 1");

  shape = test::system_shape(System::kDenseMlp, 5, 16, 0, 0);
  shape.shared_size = shape.hidden_size = std::int64_t{1} << 30;
  EXPECT_EQ(refusal(shape),
            "hidden_size = 1073741824: makes 2^57 weights or more together with the other extents");
  shape.system = System::kOmniMoe;
  EXPECT_TRUE(refusal(shape).starts_with("system = omnimoe: ")) << refusal(shape);
}

TEST(SystemInputs, FitTheirShapeAndCountTheirBytes) {
  for (const System system : systems()) {
    if (system == System::kOmniMoe) {
      continue;
    }
    const SystemInputs inputs = make_system_inputs(test::small_system(system, Dtype::kBF16), 1, 3);
    EXPECT_NO_THROW(inputs.validate()) << to_string(system);
    const SystemWeights& w = *inputs.weights;
    std::int64_t bytes = w.router.bytes() + w.w_in.bytes() + w.w_out.bytes();
    if (w.keys) {
      bytes += w.keys->queries.bytes() + w.keys->keys.bytes();
      bytes += static_cast<std::int64_t>((w.keys->norm_weight.size() + w.keys->norm_bias.size()) * 4);
    }
    bytes += w.experts ? w.experts->gate_up.bytes() + w.experts->down.bytes() : 0;
    bytes += w.shared ? w.shared->gate.bytes() + w.shared->up.bytes() + w.shared->down.bytes() : 0;
    EXPECT_EQ(inputs.shape.weight_bytes(), bytes) << to_string(system);
  }
}

TEST(SystemInputs, TensorsThatDoNotFitAreNamed) {
  const auto refusal_of = [](const SystemInputs& inputs) {
    return test::error_text<InvalidArgument>([&] { inputs.validate(); });
  };
  SystemInputs inputs = make_system_inputs(test::system_shape(System::kGShard, 3, 8, 4, 2), 1, 0);
  inputs.shape.num_experts = 5;
  EXPECT_EQ(refusal_of(inputs), "router = [4, 8] fp32: must be [5, 8] fp32 for gshard_L3_d8_N5_K2");
  inputs.shape.num_experts = 4;
  inputs.shape.dtype = Dtype::kBF16;
  EXPECT_TRUE(refusal_of(inputs).starts_with("hidden_states = [3, 8] fp32: must be [3, 8] bf16"));
  inputs = make_system_inputs(test::system_shape(System::kPkm, 3, 8, 16, 4), 1, 0);
  auto weights = std::make_shared<SystemWeights>();
  inputs.weights = weights;
  EXPECT_EQ(refusal_of(inputs), "keys = absent: must be present for pkm_L3_d8_N16_K4");
  inputs.weights = nullptr;
  EXPECT_EQ(refusal_of(inputs), "weights = null: a layer needs weights");
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { make_system_inputs(test::system_shape(System::kPkm, 3, 8, 16, 4), -1, 0); }),
            "score_deviation = -1: must be finite and not negative");
}

}  // namespace
}  // namespace moescope
