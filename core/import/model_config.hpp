#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/systems/system.hpp"

namespace moescope {

/// What a Hugging Face config.json says of a model with FFN experts, in the terms of the systems here.
struct ModelConfig {
  std::string path;          ///< of the config.json
  std::string architecture;  ///< "MixtralForCausalLM"
  SystemShape layer;         ///< of every MoE layer; num_tokens is 0
  std::int64_t num_layers = 0;
  std::vector<std::int64_t> dense_layers;  ///< layers without experts
  /// Factor of the routed experts' output (DeepSeek's routed_scaling_factor); a power of two.
  double routed_scale = 1;

  /// Names of a layer's tensors, with {} for the layer, then the expert.
  std::string_view router;
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  std::string_view shared_gate;  ///< empty: no shared expert
  std::string_view shared_up;
  std::string_view shared_down;
};

/// Reads FOLDER/config.json, or the file itself. Known: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek and
/// DeepSeek-V2 (greedy). Throws FileError for other architectures, and for routers that no system here has
/// (sigmoid scores, groups of experts), saying which.
ModelConfig read_model_config(const std::filesystem::path& path);
/// The same from memory.
ModelConfig parse_model_config(std::string_view text, const std::string& path);

}  // namespace moescope
