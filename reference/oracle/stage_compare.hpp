#pragma once

#include <string>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/layer/tolerance.hpp"
#include "core/schedule/schedule.hpp"
#include "reference/oracle/oracle.hpp"

/// Two backends' results of one stage, one against the other.
namespace moescope {

/// One fp32 or bf16 tensor as the reference of another.
ErrorReport compare_tensors(const HostTensor& ours, const HostTensor& theirs);
HostTensor as_tensor(const std::vector<float>& values);
bool same_bits(const HostTensor& a, const HostTensor& b);

/// Selections from the same fp32 logits. A pair that only one side took is a near-tie when its score is
/// within rounding of the lowest score taken: both sides round p_r, p_c and their sum once, each of magnitude
/// up to |p_r| + |p_c|.
SelectionReport compare_selections(const LayerShape& shape, const RouterLogits& logits, const Routing& ours,
                                   const Routing& theirs);
/// Gates of the pairs that both sides took; no error where there is none. (A near-tie moves the other gates
/// of its token by rounding only.)
ErrorReport compare_gates(const Routing& ours, const Routing& theirs);
/// What experts on `ours`, a selection of their own, are compared on: with gates of `theirs` for the pairs
/// that both sides took, so that wrong gates do not cancel.
Routing judged_routing(const Routing& ours, const Routing& theirs);
/// First difference of two schedules, or empty.
std::string compare_schedules(const Schedule& ours, const Schedule& theirs);

}  // namespace moescope
