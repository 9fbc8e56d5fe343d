// Stage schedule for the staircase schedule: the tokens of each strip and the tiles they are cut into, from
// the covers and counts that router_select_strips.cu left.
//
// Every block scans the Nr + Nc counts for itself, which is cheaper than a launch: then a token's place in a
// strip is the strip's offset plus the rank that counting gave it. The first block writes offsets and tiles
// instead. The last block to finish clears the counts for the next run.
#include <algorithm>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/strip_plan.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 1024;
/// Offsets in shared memory up to this many strips (48 KiB); beyond, one block works on the global ones.
constexpr std::int64_t kMaxSharedStrips = 12287;
/// Blocks of 1024 threads to a multiprocessor, so that all run at once.
constexpr std::int64_t kBlocksPerSm = 2;

struct StripListArguments {
  std::int64_t num_tokens;
  int num_strips;
  int max_cover;
  int tile_tokens;
  DeviceStrips strips;
  std::int32_t* strip_counts;
  const std::int32_t* cover_ranks;
  unsigned* ticket;
};

__device__ void write_tiles(StripTile* tiles, int strip, int first_entry, int count, int num_tiles,
                            int tile_tokens) {
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int size = strip_tile_tokens(count, tile_tokens, tile);
    tiles[tile] = {.strip = strip, .first_entry = first_entry, .count = size};
    first_entry += size;
  }
}

__global__ void __launch_bounds__(kThreads, 2) list_strips(const StripListArguments args) {
  using B = Block<kThreads>;
  extern __shared__ std::int32_t shared_offsets[];
  __shared__ bool is_last;
  const bool lists = blockIdx.x == 0;
  const bool fills = gridDim.x == 1 || blockIdx.x > 0;
  const bool in_shared = args.num_strips <= kMaxSharedStrips;
  wait_for_predecessor();
  std::int32_t* const offsets = in_shared ? shared_offsets : args.strips.strip_offsets;

  // Entries in the low half, tiles in the high one: one scan for both.
  std::uint64_t before = 0;
  for (int first = 0; first < args.num_strips; first += kThreads) {
    const int strip = first + static_cast<int>(threadIdx.x);
    const int count = strip < args.num_strips ? args.strip_counts[strip] : 0;
    const int num_tiles = (count + args.tile_tokens - 1) / args.tile_tokens;
    const auto both = static_cast<std::uint64_t>(count) | static_cast<std::uint64_t>(num_tiles) << 32;
    std::uint64_t total;
    const std::uint64_t at = before + B::inclusive_scan(both, total) - both;
    before += total;
    const auto entry = static_cast<std::int32_t>(at & 0xffffffffU);
    if (strip < args.num_strips) {
      offsets[strip] = entry;
      if (lists) {
        args.strips.strip_offsets[strip] = entry;
        write_tiles(args.strips.tiles + (at >> 32), strip, entry, count, num_tiles, args.tile_tokens);
      }
    }
  }
  if (lists && threadIdx.x == 0) {
    const auto entries = static_cast<std::int32_t>(before & 0xffffffffU);
    args.strips.strip_offsets[args.num_strips] = entries;
    args.strips.counts[0] = entries;
    args.strips.counts[1] = static_cast<std::int32_t>(before >> 32);
    args.strips.counts[2] = 0;
    args.strips.counts[3] = 0;
  }
  __syncthreads();

  if (fills) {  // a warp per token
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t blocks = gridDim.x == 1 ? 1 : gridDim.x - 1;
    const std::int64_t block = gridDim.x == 1 ? 0 : blockIdx.x - 1;
    for (std::int64_t token = threadIdx.x / kWarp * blocks + block; token < args.num_tokens;
         token += blocks * B::kWarps) {
      const int size = args.strips.cover_sizes[token];
      for (int e = lane; e < size; e += kWarp) {
        const std::int64_t at = token * args.max_cover + e;
        args.strips.strip_tokens[offsets[args.strips.cover[at]] + args.cover_ranks[at]] =
            static_cast<std::int32_t>(token);
      }
    }
  }

  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(args.ticket, gridDim.x - 1) == gridDim.x - 1;  // wraps to 0
  }
  __syncthreads();
  if (is_last) {
    for (int strip = static_cast<int>(threadIdx.x); strip < args.num_strips; strip += kThreads) {
      args.strip_counts[strip] = 0;
    }
  }
}

}  // namespace

void launch_schedule_strips(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens,
                            DeviceStrips strips, cudaStream_t stream) {
  const StageRange range(Stage::kSchedule);
  const GpuTraits& gpu = current_gpu();
  const StripCapacity capacity = strip_capacity(shape, rule, tile_tokens, gpu);
  const StripScratch scratch = strip_scratch(shape, capacity.max_cover, gpu);
  StripListArguments args{};
  args.num_tokens = shape.num_tokens;
  args.num_strips = static_cast<int>(shape.grid_rows + shape.grid_cols);
  args.max_cover = static_cast<int>(capacity.max_cover);
  args.tile_tokens = static_cast<int>(std::min(tile_tokens, shape.num_tokens));
  args.strips = strips;
  args.strip_counts = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.strip_counts);
  args.cover_ranks = reinterpret_cast<const std::int32_t*>(strips.scratch + scratch.cover_ranks);
  args.ticket = reinterpret_cast<unsigned*>(strips.scratch + scratch.ticket);
  std::int64_t blocks = 1;
  std::int64_t shared_bytes = 0;
  if (args.num_strips <= kMaxSharedStrips) {
    blocks = std::min(kBlocksPerSm * gpu.num_sms, 1 + ceil_div(shape.num_tokens, kThreads / kWarp));
    shared_bytes = args.num_strips * std::int64_t{4};
  }
  launch_dependent(list_strips,
                   {.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(kThreads),
                    .shared_bytes = static_cast<std::size_t>(shared_bytes)},
                   stream, args);
}

}  // namespace moescope::cuda
