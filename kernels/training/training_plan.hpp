#pragma once

#include <cstdint>
#include <vector>

#include "core/cost/memory_plan.hpp"
#include "core/layer/training.hpp"
#include "kernels/training/backward_path.hpp"

/// What a training step on the GPU runs and holds: arithmetic, no device needed.
namespace moescope::cuda {

/// Elements or bytes of every buffer of the step but for the path's; 0: there is none.
struct TrainingSizes {
  std::int64_t logits = 0;                 ///< fp32
  std::int64_t lse = 0;                    ///< fp32
  std::int64_t statistics = 0;             ///< fp64
  std::int64_t dx_sums = 0;                ///< fp32; in fp32 storage they are dX
  std::int64_t dx_bytes = 0;               ///< rounded
  std::int64_t expert_gradient_bytes = 0;  ///< dW; dV has as many
  std::int64_t logits_gradient = 0;        ///< fp32
  std::int64_t before_norm = 0;            ///< fp32
  std::int64_t router_gradient_bytes = 0;
  std::int64_t bias_gradient = 0;  ///< fp32
  std::int64_t shared_gate_up_bytes = 0;
  std::int64_t shared_down_bytes = 0;
  std::int64_t loads = 0;   ///< int32
  std::int64_t losses = 0;  ///< fp64
  std::int64_t scratch_bytes = 0;
};

/// Stages of the backward in order, those of the forward that run again among them, the optimizer's last.
std::vector<Stage> training_stages(const BackwardPath& path, const TrainingOptions& training);
TrainingSizes training_sizes(const BackwardPath& path, const TrainingOptions& training, bool has_bias);
/// Exact: what the step allocates is the sum of the terms. kWorking is held from the first stage to the last.
MemoryPlan plan_training_memory(const BackwardPath& path, const TrainingOptions& training, bool has_bias);

}  // namespace moescope::cuda
