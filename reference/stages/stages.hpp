#pragma once

#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"

/// Every stage of the layer on the CPU, one file per stage. Host memory, fp32 accumulation from inputs in
/// storage dtype, OpenMP. All are deterministic: bit-identical whatever the number of threads, because every
/// output element is accumulated by one thread in the schedule's order.
namespace moescope::reference {

/// Eq. 9: logits [L,Nr], [L,Nc] fp32 = hidden_states @ weight^T + bias.
RouterLogits router_project(const LayerInputs& inputs);

/// Eqs. 10-11 for the whole batch (router_select.hpp has one token). Throws InvalidArgument naming row_logits
/// or col_logits, [token, index] and value when a logit is NaN or infinite, or extents do not fit `shape`.
Routing router_select(const LayerShape& shape, const RouterLogits& logits);

/// False with a reason when no CPU code runs `kind`.
bool supports_schedule(ScheduleKind kind, std::string& why);
/// Builds the schedule; throws InvalidArgument when supports_schedule() refuses it. kAuto must be resolved by
/// choose_schedule() with cpu_rates() first.
Schedule build(const Routing& routing, const ScheduleOptions& options);

/// Whether P is rounded to storage before the second product: where the GPU feeds it to tensor cores.
bool rounds_scores(ScheduleKind kind, Dtype dtype);

/// First half of eq. 7: gate * sigma(x . w_in[e]) per pair, fp32, in CSR order [M].
std::vector<float> expert_scores(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule);

/// Second half of eq. 7: y = sum of scores * w_out[e], [L,d] fp32 before rounding to storage.
HostTensor expert_combine(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule,
                          std::span<const float> scores);

/// Both halves, without keeping the scores where is_fused(schedule.kind); bit-identical to
/// expert_combine(expert_scores()).
HostTensor experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule);

/// (act(x gate^T) * (x up^T)) down^T, [L,d] fp32 before rounding to storage. The hidden activation is rounded
/// to the storage of x before the last product.
HostTensor gated_mlp(const HostTensor& x, const SharedMlpWeights& weights, Activation activation);
/// The layer's. Throws InvalidArgument when it has no shared MLP.
HostTensor shared_mlp(const LayerInputs& inputs);

}  // namespace moescope::reference
