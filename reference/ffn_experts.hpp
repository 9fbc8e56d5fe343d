#pragma once

#include "core/moe_backend.hpp"
#include "core/schedule.hpp"
#include "core/system.hpp"

/// What GShard and DeepSeekMoE share: a linear router over N experts and gated FFNs as experts.
namespace moescope::reference {

/// x router^T [L,N] as the columns of a grid with one row, whose logit is 0: the same selection serves.
RouterLogits ffn_router_project(const SystemInputs& inputs);

/// The K largest of softmax(logits), ties to the lower id. Gates: softmax over the selected logits (GShard,
/// Mixtral), or their probabilities among all N (DeepSeekMoE).
Routing ffn_router_select(const SystemShape& shape, const RouterLogits& logits);

/// Tokens permuted by expert: one work item per active expert.
Schedule ffn_schedule(const Routing& routing);

/// y[t] = sum over its experts e of gate * ((act(x gate_e^T) * (x up_e^T)) down_e^T), [L,d] fp32: a grouped
/// GEMM over the schedule's items, then every token adds its K results in the order of expert ids. The
/// hidden activation is rounded to storage.
HostTensor ffn_experts(const SystemInputs& inputs, const Routing& routing, const Schedule& schedule);

/// Workspace of router_project, router_select, schedule and experts.
std::vector<StageMemory> ffn_memory(const SystemShape& shape, const Schedule& schedule);

}  // namespace moescope::reference
