#pragma once

#include "core/moe_backend.hpp"
#include "core/system.hpp"

/// What PKM and PEER share: heads that each select K / heads of N = n^2 experts by two sets of n sub-keys.
namespace moescope::reference {

/// Half queries [L, 2 * heads * key_size] in storage dtype: x queries^T, and of pkm the layer norm of every
/// half.
HostTensor product_key_queries(const SystemInputs& inputs);

/// Scores of all sub-keys, [L * heads, n] fp32 for either half: row i of the grid is q[0] . key[i, 0], column
/// j is q[1] . key[j, 1].
RouterLogits product_key_scores(const SystemInputs& inputs, const HostTensor& queries);

/// The K / heads largest sums of every query, ties to the lower id, among all N: the same set as the top K of
/// the products of both top Ks that the papers form. Gates: softmax over the selected, or max(S, 0).
Routing product_key_select(const SystemShape& shape, const RouterLogits& scores);

/// Pairs of all heads of a token: they lie together.
struct TokenPairs {
  std::span<const std::int32_t> expert_ids;
  std::span<const float> gates;
};
TokenPairs pairs_of_token(const SystemShape& shape, const Routing& routing, std::int64_t token);

/// Workspace of router_project and router_select.
std::vector<StageMemory> product_key_memory(const SystemShape& shape);

}  // namespace moescope::reference
