#pragma once

#include <cstdint>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/stage.hpp"
#include "kernels/layer/expert_path.hpp"

/// What a layer on the GPU runs and holds, from its path: arithmetic, no device needed.
namespace moescope::cuda {

/// The stages of a layer in the order they depend on each other, without kLayer; the shared MLP comes before
/// the experts, whose last kernel adds it.
std::vector<Stage> layer_stages(const ExpertPath& path);

/// Device memory of one layer in bytes, before anything is allocated.
struct LayerMemoryPlan {
  std::int64_t hidden_states = 0;
  std::int64_t router = 0;
  std::int64_t experts = 0;  ///< W, V and the shared MLP
  PathMemory path;
  std::int64_t output = 0;  ///< [L,d] in storage dtype; with fp32 storage it is the accumulators
  /// One buffer that holds the logits and the selection's workspace, and after these the experts' sums.
  std::int64_t working = 0;
  std::int64_t shared_result = 0;   ///< of the shared MLP, [L,d] fp32: it may run beside all the rest
  std::int64_t shared_scratch = 0;  ///< of the shared MLP
  std::int64_t scratch = 0;         ///< one buffer that schedule and expert stages use in turn
  std::int64_t library = 0;         ///< cuBLASLt's workspace, of the router and the path
  std::int64_t shared_library = 0;  ///< cuBLASLt's workspace, of the shared MLP
  std::vector<StageMemory> stages;  ///< the extra memory that each stage uses; kLayer: all of it, held

  /// Where the selection's workspace begins in the working buffer.
  std::int64_t select_workspace_offset = 0;

  std::int64_t total_bytes() const;
};
LayerMemoryPlan plan_layer_memory(const ExpertPath& path);

}  // namespace moescope::cuda
