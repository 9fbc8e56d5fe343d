#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/tiling/token_split.hpp"
#include "kernels/contract/launch.hpp"

/// Arguments of token_pairs.cuh, and the sums over a token's workers.
namespace moescope::cuda {

/// Where a token's sums go, four columns at a time.
struct SumOutput {
  float4* y = nullptr;             ///< [L, d]; null when `rounded` is given
  const float4* addend = nullptr;  ///< [L, d] added to the sums; null: nothing
  uint2* rounded = nullptr;        ///< [L, d] bf16

  SumOutput() = default;
  explicit SumOutput(const ExpertOutput& output)
      : y(reinterpret_cast<float4*>(output.y)),
        addend(reinterpret_cast<const float4*>(output.addend)),
        rounded(static_cast<uint2*>(output.rounded)) {}

  __device__ __forceinline__ void store(std::int64_t at, float4 sum) const {
    if (addend != nullptr) {
      const float4 more = addend[at];
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    if (rounded == nullptr) {
      y[at] = sum;
    } else {
      const __nv_bfloat162 low = __floats2bfloat162_rn(sum.x, sum.y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(sum.z, sum.w);
      rounded[at] =
          make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
    }
  }
};

struct TokenPairsArgs {
  const void* x = nullptr;                   ///< [L, d]
  const void* w_in = nullptr;                ///< [N, d]
  const void* w_out = nullptr;               ///< [N, d]
  const std::int32_t* expert_ids = nullptr;  ///< [L*K]
  const float* gates = nullptr;              ///< [L*K]
  const float* scores_in = nullptr;          ///< [L*K] p, when only summing
  SumOutput output;
  float4* cluster_sums = nullptr;  ///< [L, clusters, d] when a token has several clusters
  unsigned* arrivals = nullptr;    ///< [L, blocks of a cluster], zero before and after
  std::int64_t num_tokens = 0;
  std::uint32_t top_k = 0;
  std::int32_t hidden_size = 0;
  // TokenSplit's powers of two as exponents.
  std::int32_t team_log2 = 0;
  std::int32_t block_splits_log2 = 0;
  std::int32_t cluster_log2 = 0;
  std::int32_t clusters_log2 = 0;
  Activation activation = Activation::kSilu;

  /// Launched as a dependent of the kernel before it: x, w_in and w_out are read before it has finished.
  static constexpr bool kDependent = true;

  __device__ std::int32_t id(std::int64_t pair) const { return __ldg(expert_ids + pair); }
  /// The gate of a pair with this id.
  static __device__ float checked(std::int32_t, float gate) { return gate; }

  __device__ unsigned splits() const { return 1U << (block_splits_log2 + cluster_log2 + clusters_log2); }
  __device__ int workers_per_block() const { return static_cast<int>(blockDim.x) / 32 >> team_log2; }
  __device__ int tokens_per_block() const { return workers_per_block() >> block_splits_log2; }
  /// First token of this block.
  __device__ std::int64_t first_token() const {
    return static_cast<std::int64_t>(blockIdx.x >> (cluster_log2 + clusters_log2)) * tokens_per_block();
  }
};

/// Waits for the other warps of this warp's team, which take the same pairs; other teams of the block do not.
__device__ __forceinline__ void sync_team(int team_log2) {
  const int team = static_cast<int>(threadIdx.x) / 32 >> team_log2;
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(32 << team_log2) : "memory");  // 0 is __syncthreads()
}

/// Pairs as a caller gives them: ids of either type, any of them outside [0, N). Such a pair has row 0, and a
/// gate that is NaN. An ordinary launch, because nothing stands between it and who wrote the arrays.
struct GivenPairsArgs : TokenPairsArgs {
  const std::int64_t* wide_ids = nullptr;  ///< [L*K]; null: expert_ids
  std::int64_t num_experts = 0;

  static constexpr bool kDependent = false;

  /// -1 for one outside.
  __device__ std::int32_t id(std::int64_t pair) const {
    const std::int64_t given = wide_ids != nullptr
                                   ? __ldg(reinterpret_cast<const long long*>(wide_ids) + pair)
                                   : __ldg(expert_ids + pair);
    return given >= 0 && given < num_experts ? static_cast<std::int32_t>(given) : -1;
  }
  static __device__ float checked(std::int32_t id, float gate) {
    return id < 0 ? __int_as_float(0x7fffffff) : gate;
  }
};

/// Sum over a worker's warps and lanes; every lane gets it. Teams exchange through `slots` [2][warps of the
/// block]: two sets, so that one barrier per call is enough (a set is written again only after the next
/// call's barrier).
__device__ __forceinline__ float worker_sum(float value, float* slots, unsigned& parity, int team_log2) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, offset);
  }
  if (team_log2 == 0) {
    return value;
  }
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* const set = slots + parity * TokenSplit::kWarpsPerBlock;
  parity ^= 1U;
  if (threadIdx.x % 32 == 0) {
    set[warp] = value;
  }
  sync_team(team_log2);
  const float* const of_team = set + (warp >> team_log2 << team_log2);
  value = 0;
#pragma unroll 1  // code size: a cold launch fetches its instructions from HBM
  for (int member = 0; member < 1 << team_log2; ++member) {
    value += of_team[member];
  }
  return value;
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

/// Sum of `count` (1 to 8) values `stride` apart, in order; all are on their way before the first is added.
__device__ __forceinline__ float4 sum_in_order(const float4* first, int stride, int count) {
  constexpr int kMost = 8;
  float4 values[kMost] = {};
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < count) {
      values[i] = first[i * stride];
    }
  }
  float4 sum = values[0];
#pragma unroll
  for (int i = 1; i < kMost; ++i) {
    sum = i < count ? add(sum, values[i]) : sum;
  }
  return sum;
}

/// What a block's sums need to know at the kernel's start: blocks of a cluster write into each other's shared
/// memory at the end, which asks that all have started.
__device__ __forceinline__ void announce_block(const TokenPairsArgs& args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (args.cluster_log2 > 0) {
    cooperative_groups::this_cluster().barrier_arrive();
  }
#endif
}

/// Adds the sums of a token's clusters, columns [first, first + count), and stores them: the block that comes
/// last does it. Which one that is changes nothing, the order is that of the clusters.
__device__ __forceinline__ void sum_clusters(const TokenPairsArgs& args, std::int64_t token, int columns,
                                             int first, int count, unsigned rank) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* const arrivals = args.arrivals + (token << args.cluster_log2) + rank;
    is_last = atomicAdd(arrivals, 1U) + 1 == 1U << args.clusters_log2;
    if (is_last) {
      *arrivals = 0;
    }
  }
  __syncthreads();
  if (!is_last) {
    return;
  }
  __threadfence();
  const float4* const sums = args.cluster_sums + (token << args.clusters_log2) * columns + first;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    args.output.store(token * columns + first + i, sum_in_order(sums + i, columns, 1 << args.clusters_log2));
  }
}

/// Adds the workers' sums and stores them: within a block in order of workers, then of the cluster's blocks,
/// then of clusters. `sums`: [worker][d / 4]; behind them lies room for the share of columns that this block
/// adds for its cluster, from each of its blocks.
__device__ __forceinline__ void sum_workers(float4* sums, const TokenPairsArgs& args) {
  const int columns = args.hidden_size / 4;  // of four floats
  const auto threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first_token = args.first_token();
  const int workers = 1 << args.block_splits_log2;
  __syncthreads();
  if (args.cluster_log2 == 0) {
    const int tokens = args.tokens_per_block();
#pragma unroll 1
    for (int token = 0; token < tokens && first_token + token < args.num_tokens; ++token) {
#pragma unroll 1
      for (int col = thread; col < columns; col += threads) {
        args.output.store((first_token + token) * columns + col,
                          sum_in_order(sums + token * workers * columns + col, columns, workers));
      }
    }
    return;
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  auto cluster = cooperative_groups::this_cluster();
  const int blocks = 1 << args.cluster_log2;
  const int share = (columns + blocks - 1) >> args.cluster_log2;
  const auto rank = static_cast<int>(cluster.block_rank());
  float4* const inbox = sums + args.workers_per_block() * columns;  // [block][share]
  cluster.barrier_wait();                                           // announce_block
#pragma unroll 1
  for (int col = thread; col < columns; col += threads) {
    const int owner = col / share;
    cluster.map_shared_rank(inbox, owner)[rank * share + col - owner * share] =
        sum_in_order(sums + col, columns, workers);
  }
  cluster.sync();
  const int first = rank * share;
  const int count = min(share, columns - first);
  const unsigned which = (blockIdx.x >> args.cluster_log2) & ((1U << args.clusters_log2) - 1);
#pragma unroll 1
  for (int i = thread; i < count; i += threads) {
    const float4 sum = sum_in_order(inbox + i, share, blocks);
    if (args.clusters_log2 == 0) {
      args.output.store(first_token * columns + first + i, sum);
    } else {
      args.cluster_sums[((first_token << args.clusters_log2) + which) * columns + first + i] = sum;
    }
  }
  if (args.clusters_log2 > 0) {
    sum_clusters(args, first_token, columns, first, count, static_cast<unsigned>(rank));
  }
#endif
}

}  // namespace moescope::cuda
