#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "core/files/safetensors.hpp"
#include "core/systems/system.hpp"

namespace moescope {

/// Writes a layer with FFN experts as the snapshot that workload `snapshot:FILE` reads: a safetensors file of
///   hidden_states       [num_tokens, hidden_size]
///   router.weight       [num_experts, hidden_size]
///   experts.gate_up     [num_experts, 2 * expert_size, hidden_size], an expert's gate rows, then its up rows
///   experts.down        [num_experts, hidden_size, expert_size]
///   shared.gate.weight, shared.up.weight [shared_size, hidden_size], shared.down.weight [hidden_size,
///   shared_size]
/// (bf16, f16 or f32, [out, in] as torch.nn.Linear keeps them) with metadata system, top_k, activation and
/// gates of `shape`, and `more` beside it. The file appears whole or not at all. Throws InvalidArgument when
/// it does not end in .safetensors or a tensor does not fit `shape`.
void write_system_snapshot(const SystemShape& shape, const std::map<std::string, FileArray>& arrays,
                           const std::map<std::string, std::string>& more, const std::filesystem::path& file);

}  // namespace moescope
