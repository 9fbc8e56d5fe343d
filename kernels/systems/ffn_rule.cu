// Stage schedule of FFN experts under a rule for tokens (core/schedule/token_assignment.hpp). The pairs are
// permuted by expert as without one (ffn_schedule.cu); a block lays out the rows that the rule leaves; then a
// block per expert keeps the best of its pairs and, where the rule rounds up, of the other tokens. Best is
// found as a radix selection: four histograms of a key's bytes, ties to the lower token. Floor: gates and ids
// of the pairs once; with probabilities the logits once, and [N, L] of them written and read.
#include <algorithm>

#include "core/base/error.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/ffn_launch.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;  ///< and values of a byte
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxExperts = static_cast<int>(kMaxFfnExperts);
using B = Block<kThreads>;

struct FfnRuleArguments {
  DeviceRouting routing;
  const float* logits;
  FfnRuledRows rows;
  const std::int32_t* counts;     ///< [parts, N] pairs of each expert, by consecutive parts of the batch
  const std::int32_t* by_expert;  ///< [L*K] tokens, pairs of an expert together
  std::int32_t* first_chosen;     ///< [N + 1] where an expert's begin there
  std::int32_t* pairs;            ///< [L*K] the pairs in that order
  unsigned* keys;                 ///< [L*K] the better, the larger
  float* probabilities;           ///< [N, L]; of tokens that chose the expert -1
  std::int32_t parts;
  std::int32_t num_tokens;
  std::int32_t num_experts;
  std::int32_t top_k;
  std::int32_t capacity;  ///< 0: rounding
  std::int32_t tile;
  RoundTo round_to;
};

/// rounded_tokens() of core.
__device__ __forceinline__ int rounded(const FfnRuleArguments& args, int count) {
  const int whole = count / args.tile;
  const int rest = count % args.tile;
  bool up = rest > 0 && args.round_to == RoundTo::kUp;
  if (args.round_to == RoundTo::kNearest) {
    up = 2 * std::int64_t{rest} > args.tile || (2 * std::int64_t{rest} == args.tile && whole % 2 == 1);
  }
  return static_cast<int>(
      min((std::int64_t{whole} + (up ? 1 : 0)) * args.tile, std::int64_t{args.num_tokens}));
}

/// Probabilities of 32 tokens, transposed; no token has a row yet.
__global__ void __launch_bounds__(kThreads) ffn_probabilities_kernel(const FfnRuleArguments args) {
  __shared__ float shift[kWarp];
  __shared__ float tile[kWarp][kWarp + 1];
  release_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t first = std::int64_t{blockIdx.x} * kWarp;
  const int num_experts = args.num_experts;
  const auto row_of = [&](int t) { return args.logits + (first + t) * num_experts; };
  for (int t = warp; t < kWarp && first + t < args.num_tokens; t += kWarps) {
    const float* const row = row_of(t);
    float best = -INFINITY;
    for (int e = lane; e < num_experts; e += kWarp) {
      best = fmaxf(best, row[e]);
    }
    best = warp_max(best);
    float sum = 0;
    for (int e = lane; e < num_experts; e += kWarp) {
      sum += expf(row[e] - best);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      shift[t] = best + logf(sum);
    }
  }
  for (int column = 0; column < num_experts; column += kWarp) {
    __syncthreads();
    const int e = column + lane;
    for (int t = warp; t < kWarp; t += kWarps) {
      if (first + t < args.num_tokens && e < num_experts) {
        tile[t][lane] = expf(row_of(t)[e] - shift[t]);
        args.rows.token_rows[(first + t) * num_experts + e] = -1;
      }
    }
    __syncthreads();
    for (int i = warp; i < kWarp && column + i < num_experts; i += kWarps) {
      if (first + lane < args.num_tokens) {
        args.probabilities[(column + i) * std::int64_t{args.num_tokens} + first + lane] = tile[lane][i];
      }
    }
  }
}

/// How many rows every expert gets, where they begin, and their tiles. One block.
__global__ void __launch_bounds__(kThreads) ffn_plan_rows_kernel(const FfnRuleArguments args) {
  __shared__ std::int32_t chosen[kMaxExperts];
  __shared__ std::int32_t rows[kMaxExperts];
  __shared__ std::int32_t first_tile[kMaxExperts];
  release_successor();
  wait_for_predecessor();
  const int num_experts = args.num_experts;
  const auto tiles_of = [](int count) { return (count + kGroupedTileRows - 1) / kGroupedTileRows; };
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) {
    int count = 0;
#pragma unroll 8
    for (int part = 0; part < args.parts; ++part) {
      count += args.counts[part * std::int64_t{num_experts} + e];
    }
    const int with_pair = args.capacity > 0 ? min(count, args.capacity) : rounded(args, count);
    args.rows.expert_pairs[e] = with_pair;
    chosen[e] = count;
    rows[e] = args.capacity > 0 ? args.capacity : with_pair;
    first_tile[e] = static_cast<std::int32_t>(tiles_of(rows[e]));
  }
  __syncthreads();
  B::scan_array<false>(chosen, num_experts);
  B::scan_array<false>(rows, num_experts);
  B::scan_array<false>(first_tile, num_experts);
  const auto before = [](const std::int32_t* sums, int e) { return e > 0 ? sums[e - 1] : 0; };
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) {
    args.first_chosen[e + 1] = chosen[e];
    args.rows.expert_rows[e + 1] = rows[e];
    constexpr int kRows = static_cast<int>(kGroupedTileRows);
    int tile = before(first_tile, e);
    for (int row = before(rows, e); row < rows[e]; row += kRows) {
      args.rows.tiles[tile++] = {.expert = e, .first_row = row, .count = min(rows[e] - row, kRows)};
    }
    if (e + 1 == num_experts) {
      *args.rows.num_tiles = tile;
      args.first_chosen[0] = 0;
      args.rows.expert_rows[0] = 0;
    }
  }
}

/// Which keys are taken: those above `key`, and the first `ties` of those equal to it.
struct Cut {
  unsigned key;
  int ties;
};

/// The cut that takes `wanted` of key(0) .. key(count - 1). By the whole block.
template <class Key>
__device__ Cut find_cut(int count, int wanted, Key key) {
  __shared__ int histogram[kThreads];
  __shared__ Cut found;
  if (wanted <= 0) {
    return {~0U, 0};
  }
  if (wanted >= count) {
    return {0U, count};
  }
  const int thread = static_cast<int>(threadIdx.x);
  Cut cut{0U, wanted};
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    histogram[thread] = 0;
    __syncthreads();
    const unsigned above = shift == 24 ? 0U : ~0U << (shift + 8);
    for (int i = thread; i < count; i += kThreads) {
      const unsigned k = key(i);
      if (((k ^ cut.key) & above) == 0) {
        atomicAdd(&histogram[k >> shift & 0xffU], 1);
      }
    }
    __syncthreads();
    const int digit = kThreads - 1 - thread;  // the largest first
    const int own = histogram[digit];
    int all;
    const int upto = B::inclusive_scan(own, all);
    if (upto >= cut.ties && upto - own < cut.ties) {
      found = {cut.key | static_cast<unsigned>(digit) << shift, cut.ties - (upto - own)};
    }
    __syncthreads();
    cut = found;
  }
  return cut;
}

/// put(i, taken, how many were taken before it) for i in [0, count), in order. By the whole block.
template <class Key, class Put>
__device__ void take_in_order(int count, Cut cut, Key key, Put put) {
  int ties_before = 0;
  int taken_before = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const unsigned k = i < count ? key(i) : 0U;
    const bool tie = i < count && k == cut.key;
    int ties;
    const int tie_rank = B::inclusive_scan(tie ? 1 : 0, ties);
    const bool taken = i < count && (k > cut.key || (tie && ties_before + tie_rank <= cut.ties));
    int all;
    const int rank = B::inclusive_scan(taken ? 1 : 0, all);
    if (i < count) {
      put(i, taken, taken_before + rank - 1);
    }
    ties_before += ties;
    taken_before += all;
  }
}

/// The pair of a token that chose `expert`.
__device__ __forceinline__ int pair_of(const FfnRuleArguments& args, int token, int expert) {
  int low = token * args.top_k;
  int high = low + args.top_k - 1;
  while (low < high) {  // ids ascend
    const int middle = (low + high) / 2;
    if (args.routing.expert_ids[middle] < expert) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Under a capacity first choices come first; otherwise the larger gate.
__device__ __forceinline__ unsigned key_of(const FfnRuleArguments& args, int token, int pair) {
  const float gate = args.routing.gates[pair];
  if (args.capacity == 0) {
    return to_key(gate);
  }
  unsigned choice = 0;
  for (int other = token * args.top_k; other < (token + 1) * args.top_k; ++other) {
    const float its = args.routing.gates[other];
    choice += its > gate || (its == gate && other < pair) ? 1U : 0U;
  }
  return ~choice;
}

__global__ void __launch_bounds__(kThreads) ffn_rule_kernel(const FfnRuleArguments args) {
  release_successor();
  wait_for_predecessor();
  const auto expert = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int first = args.first_chosen[expert];
  const int count = args.first_chosen[expert + 1] - first;
  const int first_row = args.rows.expert_rows[expert];
  const int with_pair = args.rows.expert_pairs[expert];
  unsigned* const keys = args.keys + first;
  std::int32_t* const pairs = args.pairs + first;
  for (int i = thread; i < count; i += kThreads) {
    const int token = args.by_expert[first + i];
    pairs[i] = pair_of(args, token, expert);
    keys[i] = key_of(args, token, pairs[i]);
  }
  __syncthreads();
  const auto own_key = [&](int i) { return keys[i]; };
  const auto put_row = [&](int slot, int token, float gate) {
    args.rows.row_tokens[first_row + slot] = token;
    args.rows.row_gates[first_row + slot] = gate;
    if (args.rows.token_rows != nullptr) {
      args.rows.token_rows[token * std::int64_t{args.num_experts} + expert] = first_row + slot;
    }
  };
  take_in_order(count, find_cut(count, with_pair, own_key), own_key, [&](int i, bool taken, int slot) {
    const int pair = pairs[i];
    if (args.rows.pair_rows != nullptr) {
      args.rows.pair_rows[pair] = taken ? first_row + slot : -1;
    }
    if (taken) {
      put_row(slot, args.by_expert[first + i], args.routing.gates[pair]);
    }
  });
  if (with_pair > count) {  // rounded up
    float* const probabilities = args.probabilities + expert * std::int64_t{args.num_tokens};
    for (int i = thread; i < count; i += kThreads) {
      probabilities[args.by_expert[first + i]] = -1.0F;
    }
    __syncthreads();
    const auto key = [&](int token) { return to_key(probabilities[token]); };
    take_in_order(args.num_tokens, find_cut(args.num_tokens, with_pair - count, key), key,
                  [&](int token, bool taken, int slot) {
                    if (taken) {
                      put_row(count + slot, token, probabilities[token]);
                    }
                  });
  }
  // Rows of a capacity that nobody came for: whatever they multiply, no token adds it.
  const int end = args.rows.expert_rows[expert + 1];
  for (int row = first_row + with_pair + thread; row < end; row += kThreads) {
    args.rows.row_tokens[row] = 0;
    args.rows.row_gates[row] = 0.0F;
  }
}

/// Where the launchers' arrays stand in the workspace; without memory its bytes alone.
struct FfnRuleWorkspace {
  FfnPermutation chosen;
  std::byte* counts = nullptr;
  std::int32_t* first_chosen = nullptr;
  std::int32_t* pairs = nullptr;
  unsigned* keys = nullptr;
  float* probabilities = nullptr;
  std::int64_t bytes = 0;
};

FfnRuleWorkspace lay_out(const SystemShape& shape, const TokenRule& rule, void* memory) {
  FfnRuleWorkspace workspace;
  const std::int64_t num_pairs = shape.num_tokens * shape.top_k;
  const auto take = [&](std::int64_t bytes) {
    std::byte* const at = memory == nullptr ? nullptr : static_cast<std::byte*>(memory) + workspace.bytes;
    workspace.bytes += round_up(bytes, 256);
    return at;
  };
  const auto ids = [&](std::int64_t count) { return reinterpret_cast<std::int32_t*>(take(count * 4)); };
  workspace.chosen.row_tokens = ids(num_pairs);
  workspace.chosen.pair_rows = ids(num_pairs);
  workspace.chosen.tiles = reinterpret_cast<GroupedTile*>(
      take(max_grouped_tiles(num_pairs, shape.num_experts) * static_cast<std::int64_t>(sizeof(GroupedTile))));
  workspace.chosen.num_tiles = ids(1);
  workspace.counts = take(ffn_schedule_workspace_bytes(num_pairs, shape.num_experts));
  workspace.first_chosen = ids(shape.num_experts + 1);
  workspace.pairs = ids(num_pairs);
  workspace.keys = reinterpret_cast<unsigned*>(take(num_pairs * 4));
  if (needs_probabilities(rule)) {
    workspace.probabilities = reinterpret_cast<float*>(take(shape.num_tokens * shape.num_experts * 4));
  }
  return workspace;
}

}  // namespace

std::int64_t max_ruled_rows(const SystemShape& shape, const TokenRule& rule) {
  const std::int64_t num_pairs = shape.num_tokens * shape.top_k;
  const std::int64_t all = shape.num_tokens * shape.num_experts;
  if (rule.kind == TokenRuleKind::kCapacity) {
    return shape.num_experts *
           expert_capacity(rule.capacity_factor, num_pairs, shape.num_experts, shape.num_tokens);
  }
  const std::int64_t gained = rule.round_to == RoundTo::kDown ? 0
                              : rule.round_to == RoundTo::kUp ? rule.tile - 1
                                                              : rule.tile / 2;
  return std::min(num_pairs + shape.num_experts * gained, all);
}

std::int64_t ffn_rule_workspace_bytes(const SystemShape& shape, const TokenRule& rule) {
  return lay_out(shape, rule, nullptr).bytes;
}

void launch_ffn_rule(const SystemShape& shape, const TokenRule& rule, DeviceRouting routing,
                     const float* logits, const FfnRuledRows& rows, void* workspace, cudaStream_t stream) {
  const FfnRuleWorkspace own = lay_out(shape, rule, workspace);
  launch_ffn_schedule(shape, routing, own.chosen, own.counts, stream);
  const StageRange range(Stage::kSchedule);
  const std::int64_t num_pairs = shape.num_tokens * shape.top_k;
  const bool capped = rule.kind == TokenRuleKind::kCapacity;
  const FfnRuleArguments args{
      .routing = routing,
      .logits = logits,
      .rows = rows,
      .counts = reinterpret_cast<const std::int32_t*>(own.counts),
      .by_expert = own.chosen.row_tokens,
      .first_chosen = own.first_chosen,
      .pairs = own.pairs,
      .keys = own.keys,
      .probabilities = own.probabilities,
      .parts = static_cast<std::int32_t>(ffn_schedule_workspace_bytes(num_pairs, shape.num_experts) /
                                         (shape.num_experts * 4)),
      .num_tokens = static_cast<std::int32_t>(shape.num_tokens),
      .num_experts = static_cast<std::int32_t>(shape.num_experts),
      .top_k = static_cast<std::int32_t>(shape.top_k),
      .capacity = capped ? static_cast<std::int32_t>(expert_capacity(rule.capacity_factor, num_pairs,
                                                                     shape.num_experts, shape.num_tokens))
                         : 0,
      .tile = static_cast<std::int32_t>(rule.tile),
      .round_to = rule.round_to};
  if (own.probabilities != nullptr) {
    launch_dependent(ffn_probabilities_kernel,
                     {.grid = dim3(static_cast<unsigned>(ceil_div(shape.num_tokens, std::int64_t{kWarp}))),
                      .block = dim3(kThreads)},
                     stream, args);
  }
  launch_dependent(ffn_plan_rows_kernel, {.grid = dim3(1), .block = dim3(kThreads)}, stream, args);
  launch_dependent(ffn_rule_kernel,
                   {.grid = dim3(static_cast<unsigned>(shape.num_experts)), .block = dim3(kThreads)}, stream,
                   args);
}

}  // namespace moescope::cuda
