#pragma once

#include <memory>
#include <vector>

#include "core/systems/system.hpp"
#include "reference/stages/cpu_execution.hpp"

/// The baseline systems on the CPU, one file each: dense_mlp.cpp, gshard.cpp, deepseekmoe.cpp, pkm.cpp,
/// peer.cpp.
namespace moescope::reference {

/// A baseline layer. A derived class says what each of system_stages() does.
class SystemExecution : public CpuExecution {
 public:
  Routing routing() override { return routing_; }

 protected:
  /// Throws InvalidArgument when inputs do not fit, OutOfMemory when a run would not.
  explicit SystemExecution(const SystemInputs& inputs);

  /// Those of the stages that run: a fixed routing skips the router's.
  std::vector<StageMemory> that_run(std::vector<StageMemory> memory) const;

  const SystemShape& shape() const { return inputs_.shape; }
  const SystemWeights& weights() const { return *inputs_.weights; }

  const SystemInputs& inputs_;
  RouterLogits logits_;  ///< from router_project to router_select
  Routing routing_;      ///< [num_queries] rows; without pairs for dense_mlp
};

/// [L,d] fp32: the sum before it is rounded.
std::int64_t y_bytes(const SystemShape& shape);
/// The dense branch's hidden activations, and its result.
std::int64_t gated_mlp_workspace_bytes(const SystemShape& shape);

/// The class of inputs.shape.system. Throws InvalidArgument or OutOfMemory. Keeps a reference to `inputs`.
std::unique_ptr<LayerExecution> make_system_execution(const SystemInputs& inputs);

std::unique_ptr<LayerExecution> make_dense_mlp(const SystemInputs& inputs);
std::unique_ptr<LayerExecution> make_gshard(const SystemInputs& inputs);
std::unique_ptr<LayerExecution> make_deepseekmoe(const SystemInputs& inputs);
std::unique_ptr<LayerExecution> make_pkm(const SystemInputs& inputs);
std::unique_ptr<LayerExecution> make_peer(const SystemInputs& inputs);

}  // namespace moescope::reference
