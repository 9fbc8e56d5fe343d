#pragma once

#include <cstdint>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"
#include "core/tiling/strip_tiles.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/contract/strips.hpp"

/// What a layer on the GPU runs and holds, from its shape alone: arithmetic, no device needed.
namespace moescope::cuda {

/// What decides which kernels a layer runs. `options.kind` is not kAuto.
struct LayerDesign {
  LayerShape shape;
  ScheduleOptions options;
  bool fixed_routing = false;  ///< recorded routing: no router stages
  /// staircase straight from the router's scores (experts_staircase.cu): no pair is listed. Otherwise from
  /// pairs (schedule.cu, experts_tiles.cu).
  bool on_strips = false;

  /// Of the strips: what the experts are summed in.
  StaircaseSums sums() const {
    return strips_sum_in_fp16(shape, options) ? StaircaseSums::kFp16 : StaircaseSums::kFixedPoint;
  }
};

/// The design on a device of `compute_capability` (10 * major + minor): on strips where the kernel runs and
/// the router's scores are there.
LayerDesign design_layer(const LayerShape& shape, const ScheduleOptions& options, bool fixed_routing,
                         std::int64_t compute_capability);

/// The pairs are grouped on the device (expert_centric, staircase without strips).
bool groups_pairs(const LayerDesign& design);
/// The experts' kernel itself adds the shared MLP and rounds (token_centric): nothing is left to do after it.
bool finishes_layer(const LayerDesign& design);

/// The stages of a layer in the order they depend on each other, without kLayer; the shared MLP comes before
/// the experts, whose last kernel adds it. A fused kernel reports kExperts: all schedules but the
/// deterministic staircase from pairs, which combines apart from the scores.
std::vector<Stage> layer_stages(const LayerDesign& design);

/// Device memory of one layer in bytes, before anything is allocated.
struct LayerMemoryPlan {
  std::int64_t hidden_states = 0;
  std::int64_t router = 0;
  std::int64_t experts = 0;  ///< W, V and the shared MLP
  std::int64_t routing = 0;  ///< none on strips
  std::int64_t output = 0;   ///< [L,d] in storage dtype; with fp32 storage it is the accumulators
  /// One buffer that holds the logits and the selection's workspace, and after these the experts' sums.
  std::int64_t working = 0;
  std::int64_t shared_result = 0;   ///< of the shared MLP, [L,d] fp32: it may run beside all the rest
  std::int64_t shared_scratch = 0;  ///< of the shared MLP
  std::int64_t schedule = 0;   ///< arrays of the device schedule, strips, or cuSPARSE's copies and buffers
  std::int64_t exponents = 0;  ///< of the sums on strips
  std::int64_t scratch = 0;    ///< one buffer that schedule and expert stages use in turn
  std::int64_t token_workspace = 0;  ///< of token_centric
  std::int64_t library = 0;          ///< cuBLASLt's workspace, of the router and dense_masked
  std::int64_t shared_library = 0;   ///< cuBLASLt's workspace, of the shared MLP
  std::vector<StageMemory> stages;   ///< the extra memory that each stage uses; kLayer: all of it, held

  /// Where the selection's workspace begins in the working buffer.
  std::int64_t select_workspace_offset = 0;

  std::int64_t total_bytes() const;
};
LayerMemoryPlan plan_layer_memory(const LayerDesign& design);

}  // namespace moescope::cuda
