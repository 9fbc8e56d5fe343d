// Stage token_dispatch: a home's tokens to all ranks, and on each what is its own of all tokens.
//
// X goes as it lies, in 16-byte pieces, while the router works; so do the log-probabilities, made from the logits a
// second time, because the selection that makes them too ends much later. Thresholds and covers follow it. No pair is
// listed: with S_r + S_c > threshold every rank tells for itself which experts of its strips a token has.
#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/ranks/rank_links.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/router/strip_plan.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 1024;
/// Enough for the links' rate, few enough to leave the router its multiprocessors (docs/performance/ranks.md).
constexpr unsigned kPushBlocks = 16;

struct Segments {
  RankSegment each[kMostSegments];
};

/// blockIdx.y: the rank; blocks of one share each segment.
__global__ void __launch_bounds__(kThreads) rank_push(const RankLinks links, const Segments segments, bool also_own,
                                                      int phase) {
  std::byte* const arena = links.arenas[blockIdx.y];
  if (also_own || blockIdx.y != links.rank) {
    const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
    const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    for (const RankSegment& segment : segments.each) {
      const auto* const from = static_cast<const std::byte*>(segment.from);
      std::byte* const to = arena + segment.to;
      const auto places = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) |
                          static_cast<std::uintptr_t>(segment.bytes);
      if (places % sizeof(uint4) == 0) {
        const auto* const wide = reinterpret_cast<const uint4*>(from);
#pragma unroll 4
        for (std::int64_t i = first; i < segment.bytes / 16; i += stride) {
          reinterpret_cast<uint4*>(to)[i] = wide[i];
        }
      } else {
        for (std::int64_t i = first; i < segment.bytes / 4; i += stride) {
          reinterpret_cast<unsigned*>(to)[i] = reinterpret_cast<const unsigned*>(from)[i];
        }
      }
    }
  }
  signal_behind_grid(links, phase);
}

/// `count` floats of shared memory to a row of all ranks' arenas, by one warp.
__device__ void push_row(const RankLinks& links, const float* row, int count, std::int64_t to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t rank = 0; rank < links.group.ranks; ++rank) {
    auto* const target = reinterpret_cast<float*>(links.arenas[rank] + to);
    if (count % 4 == 0) {
      for (int i = lane; i < count / 4; i += kWarp) {
        reinterpret_cast<float4*>(target)[i] = reinterpret_cast<const float4*>(row)[i];
      }
    } else {
      for (int i = lane; i < count; i += kWarp) {
        target[i] = row[i];
      }
    }
  }
}

/// A warp per token and stride. Shared memory: the warps' rows and columns, `row_stride` and `stride` - `row_stride`
/// floats.
__global__ void push_log_probs(const RankLinks links, const float* logits, std::int64_t num_tokens, int rows, int cols,
                               int row_stride, int stride, std::int64_t to_rows, std::int64_t to_cols) {
  extern __shared__ __align__(16) float log_probs[];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  float* const row = log_probs + static_cast<int>(threadIdx.x) / kWarp * stride;
  float* const col = row + row_stride;
  for (std::int64_t token = std::int64_t{blockIdx.x} * warps + threadIdx.x / kWarp; token < num_tokens;
       token += std::int64_t{gridDim.x} * warps) {
    bool finite = true;  // of a token that is not, no strip is taken
    const float* const from = logits + token * (std::int64_t{rows} + cols);
    (void)log_softmax(from, rows, row, finite);
    (void)log_softmax(from + rows, cols, col, finite);
    __syncwarp();
    push_row(links, row, rows, to_rows + token * rows * 4);
    push_row(links, col, cols, to_cols + token * cols * 4);
    __syncwarp();
  }
  signal_behind_grid(links, static_cast<int>(RankPhase::kLogProbs));
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

__global__ void __launch_bounds__(kThreads) take_strips(const RankLinks links, const TakeArguments args) {
  wait_for_ranks(links, static_cast<int>(RankPhase::kLogProbs), static_cast<int>(RankPhase::kSelection));
  if (blockIdx.x == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < args.num_strips; i += kThreads) {
      args.home_counts[i] = 0;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kWarps = kThreads / kWarp;
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
    const float* const from = args.strips.row_log_probs + token * args.rows;
    float* const left = args.strips.uncovered_rows + token * args.rows;
    for (int i = lane; i < args.rows; i += kWarp) {
      left[i] = from[i];
    }
    __syncwarp();
    for (int e = lane; e < size; e += kWarp) {
      if (cover[e] < args.rows) {
        left[cover[e]] = -INFINITY;
      }
    }
  }
}

}  // namespace

void launch_rank_push(const RankLinks& links, const std::array<RankSegment, kMostSegments>& segments, bool also_own,
                      RankPhase phase, cudaStream_t stream) {
  const StageRange range(Stage::kTokenDispatch);
  Segments all{};
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    all.each[i] = segments[i];
    largest = std::max(largest, segments[i].bytes);
  }
  constexpr std::int64_t kBlockBytes = std::int64_t{16} * kThreads;
  const auto blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>((largest + kBlockBytes - 1) / kBlockBytes, 1, kPushBlocks));
  rank_push<<<dim3(blocks, static_cast<unsigned>(links.group.ranks)), kThreads, 0, stream>>>(
      links, all, also_own, static_cast<int>(phase));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_push_log_probs(const RankLinks& links, const LayerShape& shape, const RankArena& arena, HomeTokens home,
                           const float* logits, cudaStream_t stream) {
  const StageRange range(Stage::kTokenDispatch);
  const int rows = static_cast<int>(shape.grid_rows);
  const int cols = static_cast<int>(shape.grid_cols);
  const int row_stride = static_cast<int>(round_up(rows, 4));
  const int stride = row_stride + static_cast<int>(round_up(cols, 4));
  constexpr std::int64_t kMostShared = std::int64_t{96} << 10;
  const std::int64_t warps = std::clamp<std::int64_t>(kMostShared / (stride * std::int64_t{4}), 1, kThreads / kWarp);
  const std::int64_t shared_bytes = warps * stride * 4;
  if (shared_bytes > std::int64_t{227} << 10) {
    throw InvalidArgument("grid", shape.label(), "rows and columns of a grid on several GPUs are at most 58,000 in all");
  }
  MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(push_log_probs, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes)));
  const std::int64_t blocks = std::clamp<std::int64_t>((home.count + warps - 1) / warps, 1, 2 * kPushBlocks);
  push_log_probs<<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * kWarp),
                   static_cast<std::size_t>(shared_bytes), stream>>>(
      links, logits, home.count, rows, cols, row_stride, stride, arena.row_log_probs + home.first * rows * 4,
      arena.col_log_probs + home.first * cols * 4);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_take_strips(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                        std::int64_t max_cover, const std::int32_t* owner, DeviceStrips strips, std::byte* home_scratch,
                        cudaStream_t stream) {
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
      .home_counts = reinterpret_cast<std::int32_t*>(home_scratch + scratch.strip_counts),  // the same for any L
      .num_strips = static_cast<int>(shape.grid_rows + shape.grid_cols)};
  constexpr std::int64_t kWarps = kThreads / kWarp;
  const std::int64_t blocks = std::min((shape.num_tokens + kWarps - 1) / kWarps, 2 * current_gpu().num_sms);
  take_strips<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(links, args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
