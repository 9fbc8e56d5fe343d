// Stages experts and expert_scores of the grouped schedules (expert_centric: paper section 2.3, grouped GEMM
// per group of experts; staircase: strips of the grid).
//
// A tile is up to kTileEntries distinct tokens of one work item (M axis) against the item's experts, taken in
// chunks whose P fits in shared memory and within a chunk kBlockN at a time (N axis):
//   S = X_tile W_block^T over d, P = gate * sigma(S) at the pairs and 0 elsewhere, rounded to storage,
//   y[tokens] += P V_chunk over all d columns, by fp32 reductions in memory.
// Blocks stay resident and take tiles from a counter on the device; the number of tiles is read there too.
// Tiles of one item are neighbours, so they find its W and V in L2.
#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/experts_tiles_bf16.cuh"
#include "kernels/experts/experts_tiles_f32.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

template <class Products, bool kScoresOnly>
__global__ void __launch_bounds__(Products::Tiles::kThreads, Products::kMinBlocks)
    experts_tiles_kernel(const TileArguments args) {
  using Tiles = typename Products::Tiles;
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ Tile shared_tile;
  const TileLayout layout = tile_layout<Tiles>(kScoresOnly ? 0 : args.p_blocks);
  TileShared shared(memory, layout);
  const int thread = static_cast<int>(threadIdx.x);

  while (true) {
    const Tile tile = next_tile(args.schedule, shared_tile);
    if (tile.rows == 0) {
      return;
    }
    const TileItem item = describe_item(args, tile.item);
    shared.rows = tile.rows;
    for (int row = thread; row <= kTileEntries; row += Tiles::kThreads) {
      if (row < kTileEntries) {
        shared.tokens[row] = row < tile.rows ? args.schedule.entry_tokens[tile.entry_begin + row] : -1;
      }
      if (row <= tile.rows) {
        shared.pairs[row] = args.schedule.entry_pair_offsets[tile.entry_begin + row];
      }
    }
    for (int begin = 0; begin < item.num_experts; begin += layout.chunk_experts) {
      const int left = item.num_experts - begin;
      shared.chunk = left < layout.chunk_experts ? left : layout.chunk_experts;
      for (int i = thread; i < layout.chunk_experts; i += Tiles::kThreads) {
        if (i >= shared.chunk) {
          shared.experts[i] = -1;
        } else {
          shared.experts[i] =
              item.list == nullptr ? item.first + (begin + i) * item.stride : item.list[begin + i];
        }
      }
      if constexpr (!kScoresOnly) {
        auto* const p = reinterpret_cast<uint4*>(shared.p);
        const int vectors = Tiles::kBlockM * layout.p_ld * Tiles::kElementBytes / 16;
        for (int i = thread; i < vectors; i += Tiles::kThreads) {
          p[i] = make_uint4(0, 0, 0, 0);
        }
      }
      __syncthreads();
      for (int block = 0; block < shared.chunk; block += Tiles::kBlockN) {
        Products::scores(args, shared, block);
        for_each_pair<Tiles>(args, shared, item, begin, block,
                             [&](std::int32_t pair, int row, int column, float p) {
                               if constexpr (kScoresOnly) {
                                 args.scores[pair] = p;
                               } else {
                                 Products::store_p(shared.p, row * layout.p_ld + block + column, p);
                               }
                             });
        __syncthreads();  // S is overwritten next; P is complete after the last block
      }
      if constexpr (!kScoresOnly) {
        Products::combine(args, shared);
        __syncthreads();  // P, experts and V's stages are overwritten next
      }
    }
  }
}

template <class Products, bool kScoresOnly>
void launch_kernel(TileArguments args, std::int64_t max_experts, const GpuTraits& gpu, cudaStream_t stream) {
  using Tiles = typename Products::Tiles;
  args.p_blocks = kScoresOnly ? 0 : fit_p_blocks<Tiles>(max_experts, gpu.shared_bytes_per_block);
  const auto shared_bytes = static_cast<int>(tile_layout<Tiles>(args.p_blocks).bytes);
  if ((!kScoresOnly && args.p_blocks == 0) || shared_bytes > gpu.shared_bytes_per_block) {
    throw NoDevice(fmt::format("tile kernels need {} bytes of shared memory per block, the device has {}",
                               tile_layout<Tiles>(1).bytes, gpu.shared_bytes_per_block));
  }
  const auto kernel = experts_tiles_kernel<Products, kScoresOnly>;
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  int blocks_per_multiprocessor = 0;
  MOESCOPE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_multiprocessor, kernel,
                                                                    Tiles::kThreads, shared_bytes));
  const std::int64_t resident = gpu.num_sms * std::max(blocks_per_multiprocessor, 1);
  const std::int64_t tiles = max_tiles(args.schedule.max_items, args.schedule.max_entries);
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(args.schedule.counts + 3, 0, sizeof(std::int64_t), stream));
  kernel<<<static_cast<unsigned>(std::min(resident, tiles)), Tiles::kThreads,
           static_cast<std::size_t>(shared_bytes), stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

template <bool kScoresOnly>
void launch(const LayerShape& shape, const ScheduleOptions& options, const void* hidden_states,
            const DeviceWeights& weights, const DeviceRouting& routing, const DeviceSchedule& schedule,
            float* output, cudaStream_t stream) {
  shape.validate();
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const bool strips = options.kind == ScheduleKind::kStaircase;
  const TileArguments args{.hidden_states = hidden_states,
                           .w_in = weights.w_in,
                           .w_out = weights.w_out,
                           .expert_ids = routing.expert_ids,
                           .gates = routing.gates,
                           .schedule = schedule,
                           .y = kScoresOnly ? nullptr : output,
                           .scores = kScoresOnly ? output : nullptr,
                           .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
                           .grid_cols = static_cast<std::int32_t>(shape.grid_cols),
                           .num_row_strips = strips ? shape.grid_rows : 0,
                           .num_strips = strips ? shape.grid_rows + shape.grid_cols : 0,
                           .group_size = options.group_size,
                           .activation = shape.activation};
  const std::int64_t max_experts = max_item_experts(shape, options);
  const GpuTraits& gpu = current_gpu();
  if (shape.dtype == Dtype::kF32) {
    launch_kernel<F32Products, kScoresOnly>(args, max_experts, gpu, stream);
  } else if (prefer_wide_tiles(max_experts, gpu.shared_bytes_per_block)) {
    launch_kernel<Bf16Products<WideTiles>, kScoresOnly>(args, max_experts, gpu, stream);
  } else {
    launch_kernel<Bf16Products<NarrowTiles>, kScoresOnly>(args, max_experts, gpu, stream);
  }
}

}  // namespace

void launch_experts_tiles(const LayerShape& shape, const ScheduleOptions& options, const void* hidden_states,
                          const DeviceWeights& weights, DeviceRouting routing, DeviceSchedule schedule,
                          float* y, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  const auto bytes = static_cast<std::size_t>(shape.num_tokens * shape.hidden_size) * sizeof(float);
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(y, 0, bytes, stream));
  launch<false>(shape, options, hidden_states, weights, routing, schedule, y, stream);
}

void launch_expert_scores_tiles(const LayerShape& shape, const ScheduleOptions& options,
                                const void* hidden_states, const DeviceWeights& weights,
                                DeviceRouting routing, DeviceSchedule schedule, float* scores,
                                cudaStream_t stream) {
  const StageRange range(Stage::kExpertScores);
  launch<true>(shape, options, hidden_states, weights, routing, schedule, scores, stream);
}

}  // namespace moescope::cuda
