#pragma once

#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"

/// The dense_masked schedule: every expert for every token, unselected gates zero. Chunked over experts so
/// that memory is bounded: a chunk's W and V rows in fp32 and one block of scores per thread, never the L x N
/// scores.
namespace moescope::reference {

/// X W^T in full, of which the selected entries are kept: gate * sigma per pair, CSR order [M].
std::vector<float> dense_scores(const LayerInputs& inputs, const Routing& routing);
/// P V in full, P zero where nothing was selected: [L,d] fp32.
HostTensor dense_combine(const LayerInputs& inputs, const Routing& routing, std::span<const float> scores);

/// Scratch of either of the two above with `threads` threads.
std::int64_t dense_workspace_bytes(const LayerShape& shape, int threads);

}  // namespace moescope::reference
