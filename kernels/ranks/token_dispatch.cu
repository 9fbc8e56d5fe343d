// Stage token_dispatch: a home's tokens to all ranks, and on each what is its own of all tokens.
//
// X goes as it lies, in 16-byte pieces, while the router works; log-probabilities, thresholds and covers as
// the selection makes them (router_select_ranks.cu). No pair is listed: with S_r + S_c > threshold every rank
// tells for itself which experts of its strips a token has.
#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/ranks/rank_links.cuh"
#include "kernels/router/strip_plan.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 1024;
/// Enough for the links' rate, few enough to leave the router its multiprocessors
/// (docs/performance/ranks.md).
constexpr unsigned kPushBlocks = 8;

/// blockIdx.y: the rank. bytes: a multiple of 16.
__global__ void __launch_bounds__(kThreads)
    push_rows(const RankLinks links, std::int64_t rows, std::int64_t bytes) {
  if (blockIdx.y != links.rank && !is_silent(links, RankPhase::kRows)) {
    const auto* const from = reinterpret_cast<const uint4*>(links.own + rows);
    auto* const to = reinterpret_cast<uint4*>(links.arenas[blockIdx.y] + rows);
    const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
#pragma unroll 4
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < bytes / 16; i += stride) {
      to[i] = from[i];
    }
  }
  signal_behind_grid(links, static_cast<int>(RankPhase::kRows));
}

struct TakeArguments {
  std::int64_t num_tokens;
  std::int64_t own_first;  ///< this rank's home tokens
  std::int64_t own_end;
  std::int64_t rank;
  int rows;
  int max_cover;
  const std::int32_t* owner;
  const std::int32_t* cover_sizes;  ///< as the homes have them
  const std::int32_t* cover;
  DeviceStrips strips;
  std::int32_t* strip_counts;
  std::int32_t* cover_ranks;
  std::int32_t* home_counts;  ///< [num_strips] to be cleared
  int num_strips;
};

constexpr int kTakeThreads = 256;

/// By one warp, with several loads in flight.
__device__ __forceinline__ void copy_row(const float* __restrict__ from, float* __restrict__ to, int count,
                                         int lane) {
  if (count % 4 != 0) {
    for (int i = lane; i < count; i += kWarp) {
      to[i] = from[i];
    }
    return;
  }
  constexpr int kInFlight = 3;  // 320 rows: 80 pieces of 16 bytes
  for (int first = lane; first < count / 4; first += kInFlight * kWarp) {
    float4 piece[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (first + u * kWarp < count / 4) {
        piece[u] = reinterpret_cast<const float4*>(from)[first + u * kWarp];
      }
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (first + u * kWarp < count / 4) {
        reinterpret_cast<float4*>(to)[first + u * kWarp] = piece[u];
      }
    }
  }
}

__global__ void __launch_bounds__(kTakeThreads, 8) take_strips(const TakeArguments args) {
  wait_for_predecessor();
  if (blockIdx.x == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < args.num_strips; i += kTakeThreads) {
      args.home_counts[i] = 0;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kWarps = kTakeThreads / kWarp;
  for (std::int64_t token = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; token < args.num_tokens;
       token += std::int64_t{gridDim.x} * kWarps) {
    const bool at_home = token >= args.own_first && token < args.own_end;
    const int size = args.cover_sizes[token];
    const std::int32_t* const cover = args.cover + token * args.max_cover;
    std::int32_t* const kept_cover = args.strips.cover + token * args.max_cover;
    int kept = 0;
    bool has_column = false;
    for (int first = 0; first < size; first += kWarp) {
      const bool real = first + lane < size;
      const int strip = real ? cover[first + lane] : 0;
      const int owner = real ? args.owner[strip] : 0;
      const bool mine = real && (owner < 0 ? at_home : owner == args.rank);
      const unsigned mask = __ballot_sync(kAllLanes, mine);
      if (mine) {
        const int place = kept + __popc(mask & ((1U << lane) - 1));
        kept_cover[place] = strip;
        args.cover_ranks[token * args.max_cover + place] = atomicAdd(args.strip_counts + strip, 1);
      }
      kept += __popc(mask);
      has_column = has_column || __any_sync(kAllLanes, mine && strip >= args.rows);
    }
    if (lane == 0) {
      args.strips.cover_sizes[token] = kept;
    }
    if (!has_column) {
      continue;  // nobody reads which rows are left
    }
    float* const left = args.strips.uncovered_rows + token * args.rows;
    copy_row(args.strips.row_log_probs + token * args.rows, left, args.rows, lane);
    __syncwarp();
    for (int e = lane; e < size; e += kWarp) {
      if (cover[e] < args.rows) {
        left[cover[e]] = -INFINITY;
      }
    }
  }
}

}  // namespace

void launch_push_rows(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                      HomeTokens home, cudaStream_t stream) {
  const StageRange range(Stage::kTokenDispatch);
  const std::int64_t row = shape.hidden_size * 2;
  const std::int64_t bytes = home.count * row;
  const auto blocks = static_cast<unsigned>(
      std::clamp<std::int64_t>(ceil_div(bytes, std::int64_t{16} * kThreads), 1, kPushBlocks));
  push_rows<<<dim3(blocks, static_cast<unsigned>(links.group.ranks)), kThreads, 0, stream>>>(
      links, arena.hidden_states + home.first * row, bytes);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_take_strips(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                        std::int64_t max_cover, const std::int32_t* owner, DeviceStrips strips,
                        std::byte* home_scratch, cudaStream_t stream) {
  const StageRange range(Stage::kTokenDispatch);
  const HomeTokens own = HomeTokens::of(links.group, links.rank, shape.num_tokens);
  const StripScratch scratch = strip_scratch(shape, max_cover, current_gpu());
  const TakeArguments args{
      .num_tokens = shape.num_tokens,
      .own_first = own.first,
      .own_end = own.first + own.count,
      .rank = links.rank,
      .rows = static_cast<int>(shape.grid_rows),
      .max_cover = static_cast<int>(max_cover),
      .owner = owner,
      .cover_sizes = reinterpret_cast<const std::int32_t*>(links.own + arena.cover_sizes),
      .cover = reinterpret_cast<const std::int32_t*>(links.own + arena.cover),
      .strips = strips,
      .strip_counts = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.strip_counts),
      .cover_ranks = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.cover_ranks),
      .home_counts =
          reinterpret_cast<std::int32_t*>(home_scratch + scratch.strip_counts),  // the same for any L
      .num_strips = static_cast<int>(shape.grid_rows + shape.grid_cols)};
  const std::int64_t blocks =
      std::min(ceil_div(shape.num_tokens, kTakeThreads / kWarp), 8 * current_gpu().num_sms);
  launch_dependent(take_strips, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kTakeThreads)},
                   stream, args);
}

}  // namespace moescope::cuda
