#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/schedule/token_rule.hpp"
#include "core/systems/system.hpp"
#include "kernels/contract/grouped_gemm.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/contract/system_launch.hpp"

/// Launchers of FFN experts' orders of work beside the plain permutation (system_launch.hpp): rules for
/// tokens, each token its experts, all experts for every token. Conventions as in launch.hpp.
namespace moescope::cuda {

/// What a rule for tokens left of the router's choice, in order of experts: rows of grouped products. Of a
/// token's pairs either pair_rows tells the rows, or token_rows where the rule also adds pairs.
struct FfnRuledRows {
  std::int32_t* expert_rows = nullptr;   ///< [N + 1] first row of each expert
  std::int32_t* expert_pairs = nullptr;  ///< [N] rows with a pair; those behind them are filled up
  std::int32_t* row_tokens = nullptr;    ///< [rows] token of each row; 0 in rows that are filled up
  float* row_gates = nullptr;            ///< [rows]
  std::int32_t* pair_rows = nullptr;     ///< [L*K] row of each pair of the router, -1: dropped; or null
  std::int32_t* token_rows = nullptr;    ///< [L, N] row of each token under an expert, -1: none; or null
  GroupedTile* tiles = nullptr;          ///< [max_grouped_tiles(rows, N)]
  std::int32_t* num_tiles = nullptr;     ///< [1]
};

/// Rows that a rule can leave, whatever the routing: those that FfnRuledRows' arrays hold.
std::int64_t max_ruled_rows(const SystemShape& shape, const TokenRule& rule);

// ffn_rule.cu, stage schedule: assign_tokens() of core/schedule/token_assignment.hpp on the device. `logits`
// [L, N], as router_project left them; read by rules that need probabilities alone. An expert's rows are the
// tokens that chose it in their order, then what was added, likewise. Deterministic. Throws InvalidArgument
// for more than kMaxFfnExperts experts.
std::int64_t ffn_rule_workspace_bytes(const SystemShape& shape, const TokenRule& rule);
void launch_ffn_rule(const SystemShape& shape, const TokenRule& rule, DeviceRouting routing,
                     const float* logits, const FfnRuledRows& rows, void* workspace, cudaStream_t stream);

// ffn_combine.cu: y_t = sum over the token's rows, experts ascending, of gate * results[row], plus
// output.addend. Belongs to its caller's stage. Deterministic.
void launch_ruled_sums(const SystemShape& shape, const void* results, const FfnRuledRows& rows,
                       DeviceRouting routing, ExpertOutput output, cudaStream_t stream);

/// FFN experts' weights: [N, 2 f, d] and [N, d, f].
struct FfnMatrices {
  const void* gate_up = nullptr;
  const void* down = nullptr;
};

// ffn_token_centric.cu, stage experts: every pair reads its expert's matrices. hidden [L*K, f] in storage
// dtype. Deterministic.
void launch_ffn_token_centric(const SystemShape& shape, const void* hidden_states, const FfnMatrices& weights,
                              DeviceRouting routing, void* hidden, ExpertOutput output, cudaStream_t stream);

/// All experts for every token as grouped products: expert e has rows [e L, (e + 1) L), one for each token.
struct FfnAllRows {
  std::int32_t* row_tokens = nullptr;  ///< [N*L]
  std::int32_t* pair_rows = nullptr;   ///< [L*K] row of each pair
  GroupedTile* tiles = nullptr;        ///< [max_grouped_tiles(N*L, N)]
  std::int32_t* num_tiles = nullptr;   ///< [1]
};
// ffn_all_rows.cu: what no routing changes, once; and where a token's pairs stand, each run.
void launch_ffn_all_rows(const SystemShape& shape, const FfnAllRows& rows, cudaStream_t stream);
void launch_ffn_pair_rows(const SystemShape& shape, DeviceRouting routing, const FfnAllRows& rows,
                          cudaStream_t stream);

}  // namespace moescope::cuda
