// FFN experts as dense_masked: all experts multiply every token, and a token adds the results of those that
// it selected. Rows and tiles follow from the shape; the routing says which results count.
#include <algorithm>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/ffn_launch.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void all_rows_kernel(const FfnAllRows rows, std::int64_t num_rows, std::int64_t num_tokens,
                                std::int32_t tiles_of_expert, std::int32_t num_tiles) {
  release_successor();
  wait_for_predecessor();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < num_rows) {
    rows.row_tokens[i] = static_cast<std::int32_t>(i % num_tokens);
  }
  if (i < num_tiles) {
    const auto expert = static_cast<std::int32_t>(i) / tiles_of_expert;
    const std::int64_t first = i % tiles_of_expert * kGroupedTileRows;
    rows.tiles[i] = {.expert = expert,
                     .first_row = static_cast<std::int32_t>(expert * num_tokens + first),
                     .count = static_cast<std::int32_t>(min(num_tokens - first, kGroupedTileRows))};
  }
  if (i == 0) {
    *rows.num_tiles = num_tiles;
  }
}

__global__ void pair_rows_kernel(const std::int32_t* expert_ids, std::int32_t* pair_rows,
                                 std::int64_t num_pairs, std::int32_t num_tokens, std::int32_t top_k) {
  release_successor();
  wait_for_predecessor();
  const std::int64_t pair = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair < num_pairs) {
    pair_rows[pair] = expert_ids[pair] * num_tokens + static_cast<std::int32_t>(pair / top_k);
  }
}

unsigned blocks_of(std::int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); }

}  // namespace

void launch_ffn_all_rows(const SystemShape& shape, const FfnAllRows& rows, cudaStream_t stream) {
  const std::int64_t num_rows = shape.num_tokens * shape.num_experts;
  const std::int64_t tiles = ceil_div(shape.num_tokens, kGroupedTileRows);
  launch_dependent(all_rows_kernel, {.grid = dim3(blocks_of(num_rows)), .block = dim3(kThreads)}, stream,
                   rows, num_rows, shape.num_tokens, static_cast<std::int32_t>(tiles),
                   static_cast<std::int32_t>(tiles * shape.num_experts));
}

void launch_ffn_pair_rows(const SystemShape& shape, DeviceRouting routing, const FfnAllRows& rows,
                          cudaStream_t stream) {
  const std::int64_t pairs = shape.num_tokens * shape.top_k;
  launch_dependent(pair_rows_kernel, {.grid = dim3(blocks_of(pairs)), .block = dim3(kThreads)}, stream,
                   static_cast<const std::int32_t*>(routing.expert_ids), rows.pair_rows, pairs,
                   static_cast<std::int32_t>(shape.num_tokens), static_cast<std::int32_t>(shape.top_k));
}

}  // namespace moescope::cuda
