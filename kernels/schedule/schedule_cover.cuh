#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include <cstdint>

#include "kernels/schedule/schedule_plan.hpp"

/// Device form of core::minimal_strip_cover: one block per token.
namespace moescope::cuda {

inline constexpr int kCoverThreads = 256;

/// Writes the item of every pair: row strip r, column strip Nr + c, or `no_staircase` for all pairs of a
/// token whose smallest cover is larger than 2 sqrt(K); the experts of those are flagged.
///
/// A row with n selected columns is a strip while k < n; a column is needed once k reaches the length of the
/// shortest row that selects it. So strips(k) is a prefix sum over counts per length, and the smallest k of
/// the smallest value wins (fewest column strips). Counters live in shared memory, or in `global_counters`
/// [gridDim.x, num_counters] for grids too large.
template <class Key>
__global__ void __launch_bounds__(kCoverThreads)
    strip_cover_kernel(CoverShape shape, std::int64_t num_tokens, const std::int32_t* __restrict__ expert_ids,
                       Key no_staircase, Key* __restrict__ keys, std::int32_t* __restrict__ expert_flags,
                       std::int32_t* global_counters) {
  using BlockScan = cub::BlockScan<std::int32_t, kCoverThreads>;
  using BlockReduce = cub::BlockReduce<std::uint64_t, kCoverThreads>;
  __shared__ union {
    typename BlockScan::TempStorage scan;
    typename BlockReduce::TempStorage reduce;
  } temp;
  __shared__ std::int32_t num_rows;
  __shared__ std::uint64_t best_cover;
  extern __shared__ std::int32_t shared_counters[];

  constexpr std::int32_t kUnused = 0x7fffffff;
  std::int32_t* const row_length =
      global_counters == nullptr ? shared_counters : global_counters + blockIdx.x * shape.num_counters();
  std::int32_t* const shortest_row = row_length + shape.grid_rows;
  std::int32_t* const changes = shortest_row + shape.grid_cols;
  const std::int32_t num_thresholds = shape.num_thresholds();
  const auto thread = static_cast<std::int32_t>(threadIdx.x);

  for (std::int64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    const std::int32_t* const ids = expert_ids + token * shape.top_k;
    for (std::int32_t i = thread; i < shape.grid_rows; i += kCoverThreads) {
      row_length[i] = 0;
    }
    for (std::int32_t i = thread; i < shape.grid_cols; i += kCoverThreads) {
      shortest_row[i] = kUnused;
    }
    for (std::int32_t i = thread; i < num_thresholds; i += kCoverThreads) {
      changes[i] = 0;
    }
    if (thread == 0) {
      num_rows = 0;
    }
    __syncthreads();
    for (std::int32_t i = thread; i < shape.top_k; i += kCoverThreads) {
      atomicAdd(&row_length[ids[i] / shape.grid_cols], 1);
    }
    __syncthreads();
    for (std::int32_t i = thread; i < shape.top_k; i += kCoverThreads) {
      const std::int32_t row = ids[i] / shape.grid_cols;
      atomicMin(&shortest_row[ids[i] - row * shape.grid_cols], row_length[row]);
    }
    for (std::int32_t i = thread; i < shape.grid_rows; i += kCoverThreads) {
      if (row_length[i] > 0) {
        atomicAdd(&num_rows, 1);
        atomicSub(&changes[row_length[i]], 1);
      }
    }
    __syncthreads();
    for (std::int32_t i = thread; i < shape.grid_cols; i += kCoverThreads) {
      if (shortest_row[i] != kUnused) {
        atomicAdd(&changes[shortest_row[i]], 1);
      }
    }
    __syncthreads();

    // Smallest (strips(k), k), packed so that one minimum orders both.
    std::uint64_t best = ~std::uint64_t{0};
    std::int32_t strips_before = num_rows;
    for (std::int32_t first = 0; first < num_thresholds; first += kCoverThreads) {
      const std::int32_t k = first + thread;
      std::int32_t sum = 0;
      std::int32_t total = 0;
      BlockScan(temp.scan).InclusiveSum(k < num_thresholds ? changes[k] : 0, sum, total);
      if (k < num_thresholds) {
        const std::uint64_t cover =
            (static_cast<std::uint64_t>(strips_before + sum) << 32) | static_cast<std::uint32_t>(k);
        best = cover < best ? cover : best;
      }
      strips_before += total;
      __syncthreads();  // temp.scan is used again
    }
    const auto smaller = [](std::uint64_t a, std::uint64_t b) { return a < b ? a : b; };
    best = BlockReduce(temp.reduce).Reduce(best, smaller);
    if (thread == 0) {
      best_cover = best;
    }
    __syncthreads();

    const auto strips = static_cast<std::int64_t>(best_cover >> 32);
    const auto threshold = static_cast<std::int32_t>(best_cover & 0xffffffffU);
    const bool staircase = strips * strips <= 4 * std::int64_t{shape.top_k};
    Key* const token_keys = keys + token * shape.top_k;
    for (std::int32_t i = thread; i < shape.top_k; i += kCoverThreads) {
      const std::int32_t id = ids[i];
      if (!staircase) {
        token_keys[i] = no_staircase;
        expert_flags[id] = 1;
        continue;
      }
      const std::int32_t row = id / shape.grid_cols;
      const std::int32_t col = id - row * shape.grid_cols;
      token_keys[i] = static_cast<Key>(row_length[row] > threshold ? std::int64_t{row}
                                                                   : std::int64_t{shape.grid_rows} + col);
    }
    __syncthreads();  // the counters are cleared for the next token
  }
}

}  // namespace moescope::cuda
