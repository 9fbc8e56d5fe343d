// Stage schedule of the FFN-expert systems: tokens permuted by expert. The pairs are cut into at most
// kMaxBlocks consecutive parts. Kernel 1 counts each part's pairs per expert; kernel 2, by the same parts,
// adds up the counts before its own (at most kMaxBlocks x N, from L2) and places its pairs: a warp walks its
// share in order and finds a pair's rank among its 32 with a match of the ids, so that pairs of an expert
// keep their order. Floor: expert ids read twice, two numbers written per pair.
#include <algorithm>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr std::int64_t kMaxBlocks = 128;
constexpr std::int64_t kMinPairs = 1024;  ///< of a block
constexpr int kMaxExperts = static_cast<int>(kMaxFfnExperts);

/// How pairs are cut into blocks: `pairs` consecutive ones each.
struct FfnParts {
  std::int64_t pairs;
  std::int64_t blocks;
};
FfnParts cut(std::int64_t num_pairs) {
  const std::int64_t pairs =
      std::max(kMinPairs, round_up(ceil_div(num_pairs, kMaxBlocks), std::int64_t{kThreads}));
  return {pairs, ceil_div(num_pairs, pairs)};
}

struct FfnScheduleArguments {
  const std::int32_t* expert_ids;
  std::int32_t* counts;  ///< [blocks, N]
  FfnPermutation permutation;
  std::int64_t num_pairs;
  std::int64_t part;  ///< pairs of a block
  std::int32_t num_experts;
  std::int32_t top_k;
};

__global__ void __launch_bounds__(kThreads) count_pairs_kernel(const FfnScheduleArguments args) {
  __shared__ std::int32_t counts[kMaxExperts];
  release_successor();
  for (int e = static_cast<int>(threadIdx.x); e < args.num_experts; e += kThreads) {
    counts[e] = 0;
  }
  __syncthreads();
  wait_for_predecessor();
  const std::int64_t begin = blockIdx.x * args.part;
  const std::int64_t end = min(begin + args.part, args.num_pairs);
  for (std::int64_t p = begin + threadIdx.x; p < end; p += kThreads) {
    atomicAdd(&counts[args.expert_ids[p]], 1);
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < args.num_experts; e += kThreads) {
    args.counts[std::int64_t{blockIdx.x} * args.num_experts + e] = counts[e];
  }
}

/// Tiles of all experts; first_row and first_tile [N] are exclusive sums over the experts.
__device__ void write_tiles(const FfnScheduleArguments& args, const std::int32_t* first_row,
                            const std::int32_t* first_tile) {
  const int num_experts = args.num_experts;
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += kThreads) {
    const int end = e + 1 < num_experts ? first_row[e + 1] : static_cast<int>(args.num_pairs);
    constexpr int kRows = static_cast<int>(kGroupedTileRows);
    int tile = first_tile[e];
    for (int row = first_row[e]; row < end; row += kRows) {
      args.permutation.tiles[tile++] = {.expert = e, .first_row = row, .count = min(end - row, kRows)};
    }
    if (e + 1 == num_experts) {
      *args.permutation.num_tiles = tile;
    }
  }
}

__global__ void __launch_bounds__(kThreads) place_pairs_kernel(const FfnScheduleArguments args) {
  __shared__ std::int32_t first_row[kMaxExperts];
  __shared__ std::int32_t next[kWarps][kMaxExperts];  ///< a warp's next row of each expert
  using B = Block<kThreads>;
  release_successor();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int num_experts = args.num_experts;
  for (int e = thread; e < num_experts; e += kThreads) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      next[w][e] = 0;
    }
  }
  __syncthreads();
  wait_for_predecessor();

  // How many this warp has of each expert.
  const std::int64_t share = args.part / kWarps;  // a multiple of 32
  const std::int64_t begin = blockIdx.x * args.part + warp * share;
  const std::int64_t end = min(begin + share, args.num_pairs);
  for (std::int64_t p = begin + lane; p < end; p += kWarp) {
    atomicAdd(&next[warp][args.expert_ids[p]], 1);
  }
  // Pairs of each expert in all blocks, and in the blocks before this one.
  constexpr int kOwn = kMaxExperts / kThreads;
  int before[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int e = thread + i * kThreads;
    before[i] = 0;
    if (e < num_experts) {
      int total = 0;
#pragma unroll 8
      for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
        const int count = args.counts[std::int64_t{b} * num_experts + e];
        before[i] += b < static_cast<int>(blockIdx.x) ? count : 0;
        total += count;
      }
      first_row[e] = total;
    }
  }
  __syncthreads();
  if (blockIdx.x == 0) {
    __shared__ std::int32_t first_tile[kMaxExperts];
    for (int e = thread; e < num_experts; e += kThreads) {
      first_tile[e] = static_cast<std::int32_t>(ceil_div(std::int64_t{first_row[e]}, kGroupedTileRows));
    }
    __syncthreads();
    B::scan_array<true>(first_tile, num_experts);
    B::scan_array<true>(first_row, num_experts);
    write_tiles(args, first_row, first_tile);
  } else {
    B::scan_array<true>(first_row, num_experts);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int e = thread + i * kThreads;
    if (e < num_experts) {
      int row = first_row[e] + before[i];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const int count = next[w][e];
        next[w][e] = row;
        row += count;
      }
    }
  }
  __syncthreads();
  for (std::int64_t p = begin + lane; p - lane < end; p += kWarp) {
    const bool has_pair = p < end;
    const int expert = has_pair ? args.expert_ids[p] : -1 - lane;  // matches no one
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const int rank = __popc(same & ((1U << lane) - 1));
    const int row = has_pair ? next[warp][expert] + rank : 0;
    __syncwarp();
    if (has_pair) {
      if (rank == 0) {
        next[warp][expert] = row + __popc(same);
      }
      args.permutation.row_tokens[row] = static_cast<std::int32_t>(p / args.top_k);
      args.permutation.pair_rows[p] = row;
    }
    __syncwarp();
  }
}

}  // namespace

std::int64_t ffn_schedule_workspace_bytes(std::int64_t num_pairs, std::int64_t num_experts) {
  return cut(num_pairs).blocks * num_experts * static_cast<std::int64_t>(sizeof(std::int32_t));
}

void launch_ffn_schedule(const SystemShape& shape, DeviceRouting routing, const FfnPermutation& permutation,
                         void* workspace, cudaStream_t stream) {
  if (shape.num_experts > kMaxFfnExperts) {
    throw InvalidArgument("num_experts", fmt::to_string(shape.num_experts),
                          fmt::format("at most {} on the GPU", kMaxFfnExperts));
  }
  const StageRange range(Stage::kSchedule);
  const std::int64_t num_pairs = shape.num_tokens * shape.top_k;
  const FfnParts parts = cut(num_pairs);
  const FfnScheduleArguments args{.expert_ids = routing.expert_ids,
                                  .counts = static_cast<std::int32_t*>(workspace),
                                  .permutation = permutation,
                                  .num_pairs = num_pairs,
                                  .part = parts.pairs,
                                  .num_experts = static_cast<std::int32_t>(shape.num_experts),
                                  .top_k = static_cast<std::int32_t>(shape.top_k)};
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(parts.blocks)), .block = dim3(kThreads)};
  launch_dependent(count_pairs_kernel, launch, stream, args);
  launch_dependent(place_pairs_kernel, launch, stream, args);
}

}  // namespace moescope::cuda
