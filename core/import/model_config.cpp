#include "core/import/model_config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/reader.hpp"

namespace moescope {
namespace {

using detail::kLimit;

/// How one architecture calls things; sources: the models' config.json and transformers' modelling files.
struct Architecture {
  std::string_view name;        ///< of "architectures"
  std::string_view model_type;  ///< of "model_type"
  std::string_view num_experts;
  std::string_view expert_size;
  bool renormalised;       ///< gates, where the config does not say norm_topk_prob
  std::string_view names;  ///< of its tensors
};

constexpr std::array kArchitectures = {
    Architecture{"MixtralForCausalLM", "mixtral", "num_local_experts", "intermediate_size", true, "mixtral"},
    Architecture{"Qwen2MoeForCausalLM", "qwen2_moe", "num_experts", "moe_intermediate_size", false, "qwen"},
    Architecture{"Qwen3MoeForCausalLM", "qwen3_moe", "num_experts", "moe_intermediate_size", false, "mlp"},
    Architecture{"OlmoeForCausalLM", "olmoe", "num_experts", "intermediate_size", false, "mlp"},
    Architecture{"DeepseekForCausalLM", "deepseek", "n_routed_experts", "moe_intermediate_size", false,
                 "deepseek"},
    Architecture{"DeepseekV2ForCausalLM", "deepseek_v2", "n_routed_experts", "moe_intermediate_size", false,
                 "deepseek"},
};

void set_names(ModelConfig& config, std::string_view names) {
  if (names == "mixtral") {
    config.router = "model.layers.{}.block_sparse_moe.gate.weight";
    config.gate = "model.layers.{}.block_sparse_moe.experts.{}.w1.weight";
    config.up = "model.layers.{}.block_sparse_moe.experts.{}.w3.weight";
    config.down = "model.layers.{}.block_sparse_moe.experts.{}.w2.weight";
    return;
  }
  config.router = "model.layers.{}.mlp.gate.weight";
  config.gate = "model.layers.{}.mlp.experts.{}.gate_proj.weight";
  config.up = "model.layers.{}.mlp.experts.{}.up_proj.weight";
  config.down = "model.layers.{}.mlp.experts.{}.down_proj.weight";
  if (names == "qwen") {
    config.shared_gate = "model.layers.{}.mlp.shared_expert.gate_proj.weight";
    config.shared_up = "model.layers.{}.mlp.shared_expert.up_proj.weight";
    config.shared_down = "model.layers.{}.mlp.shared_expert.down_proj.weight";
  } else if (names == "deepseek") {
    config.shared_gate = "model.layers.{}.mlp.shared_experts.gate_proj.weight";
    config.shared_up = "model.layers.{}.mlp.shared_experts.up_proj.weight";
    config.shared_down = "model.layers.{}.mlp.shared_experts.down_proj.weight";
  }
}

const Architecture& find_architecture(const JsonField& root, std::string_view path) {
  std::string name;
  if (root.has("architectures")) {
    const std::vector<std::string> names = root.member("architectures").texts();
    name = names.empty() ? "" : names.front();
  }
  const std::string type = root.has("model_type") ? root.member("model_type").text() : "";
  const auto* found = std::ranges::find_if(kArchitectures, [&](const Architecture& each) {
    return name.empty() ? each.model_type == type : each.name == name;
  });
  if (found == kArchitectures.end()) {
    std::vector<std::string_view> known;
    for (const Architecture& each : kArchitectures) {
      known.push_back(each.name);
    }
    throw FileError(
        path, "architectures",
        fmt::format("'{}' {}: must be one of {}", shown(nlohmann::json(name.empty() ? type : name)),
                    name.starts_with("DeepseekV3") ? "scores by sigmoid and groups, which no system "
                                                     "here does"
                                                   : "is not known here",
                    fmt::join(known, ", ")));
  }
  return *found;
}

/// A member that has to have one value where it is there.
template <class Value, class Read>
void require_value(const JsonField& root, const char* key, const Value& wanted, const Read& read,
                   std::string_view why) {
  if (root.has(key) && !root.member(key).is_null() && read(root.member(key)) != wanted) {
    root.member(key).fail(why);
  }
}

bool flag(const JsonField& root, const char* key, bool otherwise) {
  return root.has(key) && !root.member(key).is_null() ? root.member(key).boolean() : otherwise;
}

std::int64_t number(const JsonField& root, const char* key, std::int64_t otherwise, std::int64_t low = 0) {
  return root.has(key) && !root.member(key).is_null() ? root.member(key).integer(low, kLimit - 1) : otherwise;
}

/// Routers of the DeepSeek family that are not the plain one.
void require_plain_router(const JsonField& root) {
  const auto text = [](const JsonField& field) { return field.text(); };
  require_value(root, "scoring_func", std::string("softmax"), text,
                "must be softmax: no system here has others");
  require_value(root, "topk_method", std::string("greedy"), text,
                "must be greedy: no system here selects groups of experts first");
  if (number(root, "n_group", 1) > 1 && number(root, "topk_group", 1) < number(root, "n_group", 1) &&
      !root.has("topk_method")) {
    root.member("n_group").fail("must be 1: no system here selects groups of experts first");
  }
}

/// Layers that have a plain MLP.
void set_dense_layers(const JsonField& root, ModelConfig& config) {
  const std::int64_t first = number(root, "first_k_dense_replace", 0);
  const std::int64_t frequency = number(root, "moe_layer_freq", 1, 1);
  const std::int64_t step = number(root, "decoder_sparse_step", 1, 1);
  std::vector<std::int64_t> listed;
  if (root.has("mlp_only_layers") && !root.member("mlp_only_layers").is_null()) {
    for (const JsonField& layer : root.member("mlp_only_layers").elements()) {
      listed.push_back(layer.integer(0, kLimit - 1));
    }
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (layer < first || layer % frequency != 0 || (layer + 1) % step != 0 ||
        std::ranges::find(listed, layer) != listed.end()) {
      config.dense_layers.push_back(layer);
    }
  }
}

double routed_scale(const JsonField& root, bool renormalised) {
  if (!root.has("routed_scaling_factor") || root.member("routed_scaling_factor").is_null()) {
    return 1;
  }
  const JsonField field = root.member("routed_scaling_factor");
  const double scale = field.number();
  int exponent = 0;
  if (!(scale > 0) || std::frexp(scale, &exponent) != 0.5 || std::abs(exponent) > 16) {
    field.fail("must be a power of two: others do not fold into bfloat16 weights without rounding");
  }
  if (renormalised && scale != 1) {
    field.fail("must be 1 beside norm_topk_prob: versions of the model's code differ here");
  }
  return scale;
}

}  // namespace

ModelConfig parse_model_config(std::string_view text, const std::string& path) {
  const auto document = parse_json<nlohmann::json>(text, {path, ""});
  const JsonField root(document, path);
  const Architecture& architecture = find_architecture(root, path);
  ModelConfig config;
  config.path = path;
  config.architecture = architecture.name;
  set_names(config, architecture.names);
  SystemShape& layer = config.layer;
  layer.system = config.shared_gate.empty() ? System::kGShard : System::kDeepSeekMoe;
  const auto extent = [&](std::string_view key) { return root.member(key).integer(1, kLimit - 1); };
  layer.hidden_size = extent("hidden_size");
  layer.num_experts = extent(architecture.num_experts);
  layer.expert_size = extent(architecture.expert_size);
  layer.top_k = extent("num_experts_per_tok");
  if (layer.top_k > layer.num_experts) {
    root.member("num_experts_per_tok").fail(fmt::format("must not exceed {} experts", layer.num_experts));
  }
  if (architecture.names == "qwen") {
    layer.shared_size = extent("shared_expert_intermediate_size");
  } else if (architecture.names == "deepseek") {
    const std::int64_t shared = number(root, "n_shared_experts", 0);
    if (shared == 0) {
      layer.system = System::kGShard;
      config.shared_gate = config.shared_up = config.shared_down = "";
    }
    layer.shared_size = shared * layer.expert_size;  // both below 2^31
    if (layer.shared_size >= kLimit) {
      root.member("n_shared_experts").fail("times the width of an expert must be below 2^31");
    }
  }
  require_plain_router(root);
  const bool renormalised = flag(root, "norm_topk_prob", architecture.renormalised);
  layer.gate_mode = renormalised ? GateMode::kSoftmax : GateMode::kProbability;
  config.routed_scale = routed_scale(root, renormalised);
  const std::string act = root.has("hidden_act") ? root.member("hidden_act").text() : "silu";
  try {
    layer.activation = parse_activation(act);
  } catch (const InvalidArgument&) {
    root.member("hidden_act").fail("must be silu, gelu or relu");
  }
  constexpr std::int64_t kMostLayers = 1 << 16;
  config.num_layers = root.member("num_hidden_layers").integer(1, kMostLayers);
  set_dense_layers(root, config);
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& path) {
  constexpr std::string_view kWanted =
      "wanted is the config.json of a model of Hugging Face transformers, or the folder with it";
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path file = is_folder ? path / "config.json" : path;
  if (is_folder && !std::filesystem::exists(file, error)) {
    throw FileError(path.string(), "", fmt::format("this folder has no config.json; {}", kWanted));
  }
  if (!std::filesystem::exists(file, error)) {
    throw FileError(path.string(), "",
                    fmt::format("no such file or folder; {}. Names of models are not looked up", kWanted));
  }
  return parse_model_config(read_text(file), file.string());
}

}  // namespace moescope
