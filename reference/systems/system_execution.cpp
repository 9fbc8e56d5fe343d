#include "reference/systems/system_execution.hpp"

#include <algorithm>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/systems/system_cost.hpp"
#include "reference/systems/host_needs.hpp"

namespace moescope::reference {

SystemExecution::SystemExecution(const SystemInputs& inputs)
    : CpuExecution(inputs.shape.dtype), inputs_(inputs) {
  inputs.validate();
  stages_ = system_stages(shape().system, inputs.fixed_routing.has_value());
  if (inputs.fixed_routing) {
    routing_ = *inputs.fixed_routing;
    return;
  }
  const LayerShape row = shape().row_shape();
  routing_.num_tokens = shape().num_queries();
  routing_.grid_rows = row.grid_rows;
  routing_.grid_cols = row.grid_cols;
  routing_.token_offsets.assign(static_cast<std::size_t>(routing_.num_tokens) + 1, 0);
}

std::vector<StageMemory> SystemExecution::that_run(std::vector<StageMemory> memory) const {
  std::erase_if(
      memory, [&](const StageMemory& one) { return std::ranges::find(stages_, one.stage) == stages_.end(); });
  return memory;
}

std::int64_t y_bytes(const SystemShape& shape) {
  return shape.num_tokens * shape.hidden_size * dtype_bytes(Dtype::kF32);
}

std::int64_t gated_mlp_workspace_bytes(const SystemShape& shape) {
  const auto hidden = shape.num_tokens * shape.shared_size;
  // The activations in fp32 beside their rounded copy, while up is gone; before that gate and up.
  return 2 * hidden * dtype_bytes(Dtype::kF32) + y_bytes(shape);
}

std::unique_ptr<LayerExecution> make_system_execution(const SystemInputs& inputs) {
  if (inputs.shape.has_product_keys() && inputs.schedule == ScheduleKind::kDenseMasked) {
    throw InvalidArgument("schedule", to_string(inputs.schedule), "the cpu backend gathers");
  }
  const auto make = [&] {
    switch (inputs.shape.system) {
      case System::kDenseMlp:
        return make_dense_mlp(inputs);
      case System::kGShard:
        return make_gshard(inputs);
      case System::kDeepSeekMoe:
        return make_deepseekmoe(inputs);
      case System::kPkm:
        return make_pkm(inputs);
      case System::kPeer:
        return make_peer(inputs);
      case System::kOmniMoe:
        break;
    }
    throw InvalidArgument("system", to_string(inputs.shape.system), "is prepared from LayerInputs");
  };
  const HostNeeds needs = cpu_system_needs(inputs.shape, inputs.fixed_routing.has_value(), inputs.tokens);
  require_host_memory(inputs.shape.label(), needs.kept + needs.passing);
  return make();
}

}  // namespace moescope::reference
