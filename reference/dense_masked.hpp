#pragma once

#include <span>
#include <vector>

#include "core/layer_inputs.hpp"
#include "core/routing.hpp"

/// The dense_masked schedule: every expert for every token, unselected gates zero. Chunked over experts so
/// that memory is bounded: a chunk's W and V rows in fp32 and one block of scores per thread, never the L x N
/// scores.
namespace moescope::reference {

std::vector<float> dense_scores(const LayerInputs& inputs, const Routing& routing);
HostTensor dense_combine(const LayerInputs& inputs, const Routing& routing, std::span<const float> scores);
HostTensor dense_experts(const LayerInputs& inputs, const Routing& routing);

/// Scratch of the three above for d = hidden_size and `threads` threads.
std::int64_t dense_workspace_bytes(std::int64_t hidden_size, int threads);

}  // namespace moescope::reference
