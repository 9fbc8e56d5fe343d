#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/files/safetensors.hpp"
#include "core/import/model_config.hpp"

namespace moescope {

/// One layer of a checkpoint, as snapshots hold it (snapshot_writer.hpp).
struct CheckpointLayer {
  ModelConfig config;
  std::map<std::string, FileArray> arrays;  ///< router.weight, experts.gate_up, experts.down, shared.*
  std::vector<std::string> notes;           ///< lines for people
};

/// Reads layer `layer` of a Hugging Face folder: config.json, model.safetensors.index.json with its shards,
/// or model.safetensors alone. Of the shards only this layer's tensors are read; they keep their type.
/// `ignored` names tensors of the layer ("shared_expert_gate") that no system here computes with and that may
/// be left out. Throws FileError naming file and tensor, InvalidArgument for a layer that is not there or has
/// no experts.
CheckpointLayer read_checkpoint_layer(const std::filesystem::path& folder, std::int64_t layer,
                                      const std::vector<std::string>& ignored);

}  // namespace moescope
