// Layers of Hugging Face folders (tests/data/import/make.py).
#include "core/import/checkpoint.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/import/snapshot_writer.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::contains;
using test::message_of;

fs::path model_file(const std::string& name) { return test::source_path("tests/data/import/" + name); }

/// A copy of a folder that a test may change.
class CheckpointCopy : public testing::Test {
 protected:
  fs::path copy(const std::string& name) {
    const fs::path to = folder_.path(name);
    fs::remove_all(to);
    fs::copy(model_file(name), to);
    return to;
  }
  void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::ifstream in(file, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    std::ofstream(file, std::ios::binary) << text;
  }
  std::string config_error(const std::string& from, const std::string& to,
                           const std::string& name = "mixtral") {
    const fs::path folder = copy(name);
    replace(folder / "config.json", from, to);
    return message_of<FileError>([&] { read_checkpoint_layer(folder, 1, {}); });
  }
  test::TempFolder folder_;
};

TEST(Checkpoint, StacksTheExpertsOfALayerFromItsShards) {
  const CheckpointLayer layer = read_checkpoint_layer(model_file("mixtral"), 1, {});
  EXPECT_EQ(layer.config.layer.system, System::kGShard);
  EXPECT_EQ(layer.config.layer.gate_mode, GateMode::kSoftmax);
  EXPECT_EQ(layer.arrays.at("router.weight").shape, (std::vector<std::int64_t>{8, 12}));
  EXPECT_EQ(layer.arrays.at("experts.gate_up").shape, (std::vector<std::int64_t>{8, 10, 12}));
  EXPECT_EQ(layer.arrays.at("experts.down").shape, (std::vector<std::int64_t>{8, 12, 5}));
  EXPECT_EQ(layer.arrays.at("experts.down").dtype, "bf16");
  // Expert 3's up rows are the second half of its part.
  const FileArray& all = layer.arrays.at("experts.gate_up");
  const auto where = [&](const fs::path& file) {
    return read_safetensors(file,
                            [](std::string_view name) { return name.ends_with("experts.3.w3.weight"); });
  };
  ArrayFile shard = where(model_file("mixtral") / "model-00001-of-00002.safetensors");
  if (shard.arrays.empty()) {
    shard = where(model_file("mixtral") / "model-00002-of-00002.safetensors");
  }
  ASSERT_EQ(shard.arrays.size(), 1U);
  const std::vector<std::byte>& up = shard.arrays.begin()->second.bytes;
  const auto first = all.bytes.begin() + (3 * 10 + 5) * 12 * 2;
  EXPECT_TRUE(std::equal(up.begin(), up.end(), first));
}

TEST(Checkpoint, KnowsTheFamiliesByTheirConfig) {
  const ModelConfig deepseek = read_model_config(model_file("deepseek"));
  EXPECT_EQ(deepseek.layer.system, System::kGShard);  // this one has no shared expert
  EXPECT_EQ(deepseek.layer.gate_mode, GateMode::kProbability);
  EXPECT_EQ(deepseek.routed_scale, 16);
  EXPECT_EQ(deepseek.dense_layers, (std::vector<std::int64_t>{0}));
  const ModelConfig qwen = read_model_config(model_file("qwen"));
  EXPECT_EQ(qwen.layer.system, System::kDeepSeekMoe);
  EXPECT_EQ(qwen.layer.shared_size, 7);
  const ModelConfig olmoe = parse_model_config(
      R"({"model_type": "olmoe", "hidden_size": 8, "intermediate_size": 4, "num_experts": 4, "num_experts_per_tok": 2,
          "num_hidden_layers": 3, "norm_topk_prob": false, "hidden_act": "silu"})",
      "c");
  EXPECT_EQ(olmoe.architecture, "OlmoeForCausalLM");
  EXPECT_EQ(olmoe.layer.gate_mode, GateMode::kProbability);
  const ModelConfig v2 = parse_model_config(
      R"({"architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 8, "moe_intermediate_size": 4,
          "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "num_hidden_layers": 3,
          "first_k_dense_replace": 1, "topk_method": "greedy", "norm_topk_prob": false})",
      "c");
  EXPECT_EQ(v2.layer.system, System::kDeepSeekMoe);
  EXPECT_EQ(v2.layer.shared_size, 8);
}

TEST_F(CheckpointCopy, RefusesRoutersThatNoSystemHas) {
  EXPECT_TRUE(contains(config_error("MixtralForCausalLM", "DeepseekV3ForCausalLM"),
                       {"architectures", "scores by sigmoid", "must be one of MixtralForCausalLM"}));
  EXPECT_TRUE(contains(config_error("\"softmax\"", "\"sigmoid\"", "deepseek"),
                       {"scoring_func: \"sigmoid\"", "softmax"}));
  EXPECT_TRUE(contains(config_error("\"greedy\"", "\"group_limited_greedy\"", "deepseek"),
                       {"topk_method", "groups"}));
  EXPECT_TRUE(
      contains(config_error("16.0", "2.5", "deepseek"), {"routed_scaling_factor: 2.5", "a power of two"}));
  EXPECT_TRUE(contains(config_error("\"silu\"", "\"tanh\""), {"hidden_act: \"tanh\""}));
}

TEST_F(CheckpointCopy, NamesFieldsTensorsAndLayersThatDoNotFit) {
  EXPECT_TRUE(contains(config_error("\"hidden_size\": 12", "\"hidden_size\": 13"),
                       {"shape [8, 12]: must be [8, 13]"}));
  EXPECT_TRUE(contains(config_error("\"num_local_experts\": 8", "\"num_local_experts\": 7"),
                       {"experts.7", "is part of the layer and nothing here computes with it"}));
  EXPECT_TRUE(contains(config_error("\"num_local_experts\": 8", "\"num_local_experts\": 9"),
                       {"experts.8", "missing"}));
  EXPECT_TRUE(contains(config_error("\"num_local_experts\": 8", "\"num_local_experts\": 2000000000"),
                       {"num_experts: 2000000000"}));
  EXPECT_TRUE(contains(config_error("\"num_experts_per_tok\": 3", "\"num_experts_per_tok\": 9"),
                       {"num_experts_per_tok: 9: must not exceed 8"}));
  const auto layer_error = [&](std::int64_t layer, const char* name) {
    return message_of<InvalidArgument>([&] { read_checkpoint_layer(model_file(name), layer, {}); });
  };
  EXPECT_TRUE(contains(layer_error(2, "mixtral"), {"layer = 2: ", "has layers 0 to 1"}));
  EXPECT_TRUE(contains(layer_error(-1, "mixtral"), {"layer = -1: "}));
  EXPECT_TRUE(contains(layer_error(0, "deepseek"), {"layer = 0: is without experts"}));
  EXPECT_TRUE(contains(message_of<FileError>([&] { read_checkpoint_layer(model_file("mixtral"), 0, {}); }),
                       {"of layer 0 the folder has 0 tensors"}));
}

TEST_F(CheckpointCopy, FollowsNoNameOutOfItsFolder) {
  const fs::path folder = copy("mixtral");
  const fs::path index = folder / "model.safetensors.index.json";
  replace(index, "\"model-00001-of-00002.safetensors\"", "\"../secret.safetensors\"");
  EXPECT_TRUE(contains(message_of<FileError>([&] { read_checkpoint_layer(folder, 1, {}); }),
                       {"weight_map.", "must be the name of a file beside the index"}));
  fs::remove(index);
  EXPECT_TRUE(
      contains(message_of<FileError>([&] { read_checkpoint_layer(folder, 1, {}); }), {"holds neither"}));
}

TEST_F(CheckpointCopy, TensorsWithoutAUseAreNamedAndMayBeIgnored) {
  const fs::path folder = copy("qwen");
  const fs::path index = folder / "model.safetensors.index.json";
  replace(index, "\"weight_map\": {",
          "\"weight_map\": {\"model.layers.1.mlp.shared_expert_gate.weight\": "
          "\"model-00001-of-00002.safetensors\",");
  EXPECT_TRUE(contains(message_of<FileError>([&] { read_checkpoint_layer(folder, 1, {}); }),
                       {"mlp.shared_expert_gate.weight", "--ignore"}));
  const CheckpointLayer layer = read_checkpoint_layer(folder, 1, {"shared_expert_gate"});
  EXPECT_TRUE(contains(layer.notes.at(0), {"left out as asked", "shared_expert_gate"}));
}

TEST(SnapshotWriter, RefusesWhatDoesNotFitAndWritesNothing) {
  const test::TempFolder folder;
  CheckpointLayer layer = read_checkpoint_layer(model_file("mixtral"), 1, {});
  SystemShape shape = layer.config.layer;
  shape.num_tokens = 2;
  const auto error = [&] {
    return message_of<InvalidArgument>(
        [&] { write_system_snapshot(shape, layer.arrays, {}, folder.path("s.safetensors")); });
  };
  EXPECT_TRUE(contains(error(), {"hidden_states = absent: must be [2, 12]"}));
  layer.arrays["hidden_states"] = {"f32", {1, 12}, std::vector<std::byte>(48)};
  EXPECT_TRUE(contains(error(), {"hidden_states = [1, 12]: must be [2, 12]"}));
  EXPECT_EQ(folder.file_count(), 0U);
  shape.num_tokens = 1;
  write_system_snapshot(shape, layer.arrays, {{"layer", "1"}}, folder.path("s.safetensors"));
  const ArrayFile written = read_safetensors(folder.path("s.safetensors"));
  EXPECT_EQ(written.metadata.at("system"), "gshard");
  EXPECT_EQ(written.metadata.at("gates"), "softmax");
  EXPECT_EQ(written.metadata.at("top_k"), "3");
  EXPECT_EQ(written.arrays.at("experts.gate_up").bytes, layer.arrays.at("experts.gate_up").bytes);
}

}  // namespace
}  // namespace moescope
