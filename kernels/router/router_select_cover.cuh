#pragma once

#include <climits>
#include <cstdint>

#include "kernels/device/block_ops.cuh"
#include "kernels/router/router_select_search.cuh"

/// From a token's threshold to its smallest strip cover (core::minimal_strip_cover), by one warp.
///
/// A row that selects n columns selects the n best: that is what makes the set a staircase. Only where scores
/// tie at the threshold can one row, the last to take ties, hold some of its tied columns and not others; it
/// is called partial. Rows longer than k are strips, and the columns that the others need are the `longest of
/// them` best ones, so strips(k) follows from a histogram of row lengths; the smallest k of the fewest strips
/// wins.
namespace moescope::cuda {

/// The row that takes the last of the ties, when the ties are limited.
struct LimitRow {
  int id;        ///< grid row; rows before it take all their ties, rows after it none
  float score;   ///< its p_r
  int sure;      ///< columns above the threshold
  int length;    ///< columns selected
  bool partial;  ///< it leaves some of its ties
  int tie_id;    ///< the last expert id it takes; the token's tie_limit

  /// When all ties are taken.
  static __device__ LimitRow none() { return {INT_MAX, 0, 0, 0, false, INT_MAX}; }
};

struct Lengths {
  int num_rows;  ///< rows with a selected column
  int longest;
};

/// Row lengths go to memory.probe, the number of columns that count towards the sum of exponentials to
/// memory.above (without ties when those are limited), the histogram of lengths 1..max_length to `histogram`,
/// zeroed before. By `warps` warps, of which this one is `warp`: one, when ties are limited, for ties go to
/// rows in order. Returned is what this warp's rows have.
template <class Count>
__device__ Lengths find_lengths(const SearchMemory<Count>& memory, InPlay in_play, Threshold threshold,
                                int* histogram, int max_length, LimitRow& limit, int warp, int warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int num_rows = 0;
  int longest = 0;
  int ties_before = 0;
  int limit_at = 0;  // index among the rows in play
#pragma unroll 1
  for (int first = warp * kWarp; first < in_play.rows; first += warps * kWarp) {
    const int i = first + lane;
    const bool real = i < in_play.rows;
    const float row = real ? memory.rows[i] : 0.0F;
    int sure = real ? static_cast<int>(memory.above[i]) : in_play.cols;
    while (sure < in_play.cols && row + memory.sorted[sure] > threshold.score) {
      ++sure;
    }
    int length = sure;
    while (length < in_play.cols && row + memory.sorted[length] == threshold.score) {
      ++length;
    }
    length = real ? length : 0;
    sure = real ? sure : 0;
    if (threshold.limited) {
      int total;
      const int ties = length - sure;
      const int before = ties_before + Block<kWarp>::inclusive_scan(ties, total) - ties;
      ties_before += total;
      const int taken = min(max(threshold.ties - before, 0), ties);
      length = sure + taken;
      const unsigned takers = __ballot_sync(kAllLanes, taken > 0);
      if (takers != 0) {
        const int last = kWarp - 1 - __clz(static_cast<int>(takers));
        limit_at = first + last;
        limit.score = __shfl_sync(kAllLanes, row, last);
        limit.sure = __shfl_sync(kAllLanes, sure, last);
        limit.length = __shfl_sync(kAllLanes, length, last);
        limit.partial = __shfl_sync(kAllLanes, ties, last) > limit.length - limit.sure;
      }
    }
    if (real) {
      memory.above[i] = static_cast<Count>(threshold.limited ? sure : length);
      memory.probe[i] = static_cast<Count>(length);
      if (length > 0 && length <= max_length) {
        atomicAdd(&histogram[length], 1);
      }
    }
    num_rows += __popc(__ballot_sync(kAllLanes, length > 0));
    longest = max(longest, length);
  }
  __syncwarp();
  if (threshold.limited) {
    limit.id = memory.row_ids[limit_at];
  }
  return {num_rows, static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(longest)))};
}

/// The last expert that the limit row takes. Ties are rare: one pass over the token's columns.
__device__ inline void locate_limit(LimitRow& limit, const float* col_log_probs, int cols, float threshold) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int last_col = cols - 1;
  int wanted = limit.length - limit.sure;
#pragma unroll 1
  for (int first = 0; limit.partial && first < cols; first += kWarp) {
    const bool tied = first + lane < cols && limit.score + col_log_probs[first + lane] == threshold;
    unsigned mask = __ballot_sync(kAllLanes, tied);
    if (wanted <= __popc(mask)) {
      for (; wanted > 1; --wanted) {
        mask &= mask - 1;
      }
      last_col = first + __ffs(static_cast<int>(mask)) - 1;
      break;
    }
    wanted -= __popc(mask);
  }
  limit.tie_id = limit.id * cols + last_col;
}

/// A cover: rows longer than `k`, the `prefix` best columns, and with `partial` the columns of the partial
/// row.
struct Cover {
  int k;
  int prefix;
  bool partial;
};

/// The smallest cover. `num_lengths` is the length of `histogram`; no k from there on can be best.
__device__ inline Cover find_cover(const int* histogram, int num_lengths, int num_rows, const LimitRow& limit,
                                   const float* sorted, const float* col_log_probs, int cols,
                                   float threshold) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Cover best{0, 0, false};
  int fewest = num_rows;  // k = 0: all rows
  int rows_before = num_rows;
  int prefix_before = 0;
#pragma unroll 1
  for (int first = 1; first < num_lengths; first += kWarp) {
    const int k = first + lane;
    const int count = k < num_lengths ? histogram[k] : 0;
    int total;
    const int rows = rows_before - Block<kWarp>::inclusive_scan(count, total);
    rows_before -= total;
    const unsigned present = __ballot_sync(kAllLanes, count > (limit.partial && k == limit.length ? 1 : 0));
    const unsigned up_to_here = present & (kAllLanes >> (kWarp - 1 - lane));
    int prefix = up_to_here != 0 ? first + kWarp - 1 - __clz(static_cast<int>(up_to_here)) : prefix_before;
    prefix_before = present != 0 ? first + kWarp - 1 - __clz(static_cast<int>(present)) : prefix_before;
    int scattered = 0;  // columns of the partial row that lie beyond the prefix
    if (limit.partial) {
      const bool needed = k >= limit.length;
      prefix = needed ? max(prefix, limit.sure) : prefix;
      const int last_col = limit.tie_id - limit.id * cols;
#pragma unroll 1
      for (int begin = 0; begin <= last_col; begin += kWarp) {
        const int j = begin + lane;
        const float p = j <= last_col ? col_log_probs[j] : 0.0F;
        for (unsigned picks = __ballot_sync(kAllLanes, j <= last_col && limit.score + p == threshold);
             picks != 0; picks &= picks - 1) {
          const float pick = __shfl_sync(kAllLanes, p, __ffs(static_cast<int>(picks)) - 1);
          scattered += needed && (prefix == 0 || pick < sorted[prefix - 1]) ? 1 : 0;
        }
      }
    }
    const int strips = k < num_lengths ? rows + prefix + scattered : INT_MAX;
    const int chunk_best = static_cast<int>(__reduce_min_sync(kAllLanes, static_cast<unsigned>(strips)));
    if (chunk_best < fewest) {
      fewest = chunk_best;
      const int winner = __ffs(static_cast<int>(__ballot_sync(kAllLanes, strips == chunk_best))) - 1;
      best.k = first + winner;
      best.prefix = __shfl_sync(kAllLanes, prefix, winner);
      best.partial = limit.partial && best.k >= limit.length;
    }
  }
  return best;
}

}  // namespace moescope::cuda
