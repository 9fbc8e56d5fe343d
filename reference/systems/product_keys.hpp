#pragma once

#include <span>

#include "core/systems/system_cost.hpp"
#include "reference/systems/system_execution.hpp"

/// What PKM and PEER share: heads that each select K / heads of N = n^2 experts by two sets of n sub-keys.
namespace moescope::reference {

/// Rows of one product of queries with keys; fixed, so that bits do not depend on threads.
inline constexpr std::int64_t kKeyBlockTokens = 64;

/// Pairs of all heads of a token: they lie together.
struct TokenPairs {
  std::span<const std::int32_t> expert_ids;
  std::span<const float> gates;
};
TokenPairs pairs_of_token(const SystemShape& shape, const Routing& routing, std::int64_t token);

/// The first two stages; a derived class does what follows.
/// router_project: half queries [L, 2 * heads * key_size] in storage dtype, x queries^T, and of pkm the layer
/// norm of every half; then scores of all sub-keys, [L * heads, n] fp32 for either half: row i of the grid is
/// q[0] . key[i, 0], column j is q[1] . key[j, 1].
/// router_select: the K / heads largest sums of every query, ties to the lower id, among all N: the same set
/// as the top K of the products of both top Ks that the papers form. Gates: softmax over the selected, or
/// max(S, 0).
class ProductKeyExecution : public SystemExecution {
 public:
  ScheduleOptions schedule_options() const override { return system_schedule(shape().system); }
  /// Of these two stages.
  std::vector<StageMemory> memory() const override;

 protected:
  /// Throws InvalidArgument when inputs do not fit.
  explicit ProductKeyExecution(const SystemInputs& inputs) : SystemExecution(inputs) {}
  void compute(Stage stage) override;
};

}  // namespace moescope::reference
