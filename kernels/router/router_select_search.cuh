#pragma once

#include <cstdint>

#include "kernels/device/block_ops.cuh"
#include "kernels/router/router_select_marginals.cuh"

/// Finds a token's K-th largest score, exactly, from its sorted columns: no score is ever listed.
///
/// For one row, the number of columns with S >= t is a binary search in the sorted columns, because the fp32
/// sum is monotone in p_c. Their total over the rows is monotone in t. The block brackets the K-th score, low
/// <= it < high, and narrows the bracket by guesses: ln(count) is nearly linear in t. When no more than a
/// warp's width of scores lies in the bracket they are gathered and sorted. Where guesses fail, the bracket
/// is halved on the floats mapped to integers that order alike, so that the search ends whatever the scores
/// are.
namespace moescope::cuda {

/// What the search works on, in shared memory (or global memory for large grids).
template <class Count>
struct SearchMemory {
  const float* sorted;  ///< columns, descending
  float* rows;          ///< scores of the rows in play, by id
  Count* row_ids;       ///< their ids
  Count* above;         ///< per row in play: columns with S >= high
  Count* probe;
  float* gathered;  ///< [kWarp]
  int* num_gathered;
};

/// Rows and columns that can have a selected pair.
struct InPlay {
  int rows;
  int cols;
};

/// The threshold, and which of the scores equal to it are selected.
struct Threshold {
  float score;   ///< the K-th largest
  int ties;      ///< how many of the scores equal to it are selected, those with the lowest ids
  bool limited;  ///< whether there are more of them
};

/// How a lane's value ranks among the warp's.
struct WarpRank {
  int larger;  ///< lanes with a larger value
  int equal;   ///< lanes with an equal one, this lane among them
};
/// Counting takes 32 shuffles that do not wait for one another; sorting 15 that do.
__device__ __forceinline__ WarpRank rank_in_warp(float value) {
  WarpRank rank{0, 0};
#pragma unroll
  for (int l = 0; l < kWarp; ++l) {
    const float other = __shfl_sync(kAllLanes, value, l);
    rank.larger += other > value ? 1 : 0;
    rank.equal += other == value ? 1 : 0;
  }
  return rank;
}

/// A lower bound of the K-th score: the a best rows and b best columns have a * b >= K scores down to their
/// corner. Of the rows it takes the best of every lane, of which there are at most a warp's width.
__device__ inline float corner_bound(float best_row_of_lane, const float* sorted, int cols, int top_k) {
  const WarpRank rank = rank_in_warp(best_row_of_lane);
  const int rows = rank.larger + rank.equal;  // that are no lower
  const int needed = (top_k - 1) / rows + 1;
  return warp_max(needed <= cols ? best_row_of_lane + sorted[needed - 1] : -INFINITY);
}

/// Columns with S >= t of kRows rows per lane from `first` on, no fewer than in `above` and at most `length`
/// more; they go to `probe`, their sum is returned.
template <int kRows, class Count>
__device__ __forceinline__ int count_rows(const SearchMemory<Count>& memory, InPlay in_play, int first,
                                          float t, int length) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float row[kRows];
  int count[kRows];
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int i = first + u * kWarp + lane;
    row[u] = i < in_play.rows ? memory.rows[i] : 0.0F;
    count[u] = i < in_play.rows ? min(static_cast<int>(memory.above[i]), in_play.cols - length) : 0;
  }
  for (int rest = length; rest > 1;) {
    const int half = rest / 2;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (row[u] + memory.sorted[count[u] + half - 1] >= t) {
        count[u] += half;
      }
    }
    rest -= half;
  }
  int total = 0;
#pragma unroll
  for (int u = 0; u < kRows; ++u) {
    const int i = first + u * kWarp + lane;
    if (row[u] + memory.sorted[count[u]] >= t) {
      ++count[u];
    }
    if (i < in_play.rows) {
      memory.probe[i] = static_cast<Count>(count[u]);
      total += count[u];
    }
  }
  return total;
}

/// Scores >= t, counted by all warps of the block; kWarps > 1 share the rows and meet at one barrier. `turn`
/// alternates.
template <int kWarps, class Count>
__device__ __forceinline__ int count_scores(const SearchMemory<Count>& memory, InPlay in_play, float t,
                                            int length, int turn) {
  int total = 0;
  if constexpr (kWarps == 1) {
    int first = 0;
#pragma unroll 1
    for (; first + 2 * kWarp < in_play.rows; first += 4 * kWarp) {
      total += count_rows<4>(memory, in_play, first, t, length);
    }
#pragma unroll 1
    for (; first < in_play.rows; first += kWarp) {
      total += count_rows<1>(memory, in_play, first, t, length);
    }
    return __reduce_add_sync(kAllLanes, total);
  } else {
    __shared__ int partial[2][kWarps];
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
    for (int first = warp * kWarp; first < in_play.rows; first += kWarps * kWarp) {
      total += count_rows<1>(memory, in_play, first, t, length);
    }
    partial[turn][warp] = __reduce_add_sync(kAllLanes, total);
    __syncthreads();
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      total += partial[turn][w];
    }
    return total;
  }
}

/// The next guess inside (low, high): where the count should be `aim`.
struct Guess {
  float score;
  float log_count;
};
__device__ inline float next_guess(Guess last, Guess before, float log_aim) {
  return last.score + __fdividef((log_aim - last.log_count) * (before.score - last.score),
                                 before.log_count - last.log_count);
}

/// Puts the scores in [low, high) into memory.gathered, in no particular order; there are at most kWarp.
/// `above` holds the counts at high. By all warps of the block, each for the rows that it counted.
template <int kWarps, class Count>
__device__ __forceinline__ void gather(const SearchMemory<Count>& memory, InPlay in_play, float low) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < in_play.rows; i += kWarps * kWarp) {
    const float row = memory.rows[i];
    for (int next = memory.above[i]; next < in_play.cols; ++next) {
      const float score = row + memory.sorted[next];
      if (score < low) {
        break;
      }
      memory.gathered[atomicAdd(memory.num_gathered, 1)] = score;
    }
  }
}

/// The K-th score's bracket: `inside` scores lie in [low, high), `wanted` of them are selected.
struct Bracket {
  float low;
  int inside;
  int wanted;
};

/// Brackets the K-th score, by all warps of the block: until no more than kWarp scores are inside, or only
/// equal ones. memory.above must be 0 for every row in play; on return it holds the counts at high. At least
/// K scores are no lower than `low_bound`, none is higher than `best_score`.
template <int kWarps, class Count>
__device__ Bracket find_bracket(SearchMemory<Count>& memory, InPlay in_play, int top_k, float low_bound,
                                float best_score) {
  constexpr int kMaxGuesses = 8;  // then every other step halves the bracket; 4 to 6 are usual
  const auto log_of = [](int count) { return __log2f(fmaxf(static_cast<float>(count), 0.5F)); };
  unsigned low = to_key(low_bound);
  unsigned high = to_key(best_score) + 1;
  unsigned middle = low;
  int count_low = 0;
  int count_high = 0;
  int length = in_play.cols;
  if (threadIdx.x == 0) {
    *memory.num_gathered = 0;
  }
  Guess last{best_score, 0.0F};
  for (int step = 1;; ++step) {
    const int count = count_scores<kWarps>(memory, in_play, from_key(middle), length, step % 2);
    if (count >= top_k) {
      low = middle;
      count_low = count;
    } else {
      high = middle;
      count_high = count;
      Count* const old = memory.above;
      memory.above = memory.probe;
      memory.probe = old;
    }
    const int inside = count_low - count_high;
    if (inside <= kWarp || high - low <= 1) {
      break;
    }
    length = min(in_play.cols, inside);
    // Aim a little past K when the bracket's other side is near enough already.
    constexpr int kNear = kWarp / 2;
    const int aim = count_low - top_k <= kNear    ? top_k - kNear / 2
                    : top_k - count_high <= kNear ? top_k + kNear / 2
                                                  : top_k;
    const Guess here{from_key(middle), log_of(count)};
    const float low_score = from_key(low);
    const float high_score = from_key(high);
    float next;
    if (inside < top_k / 4) {
      next = high_score + __fdividef((low_score - high_score) * static_cast<float>(aim - count_high),
                                     static_cast<float>(inside));
    } else {
      next = next_guess(here, last, log_of(aim));
    }
    last = here;
    middle = low + (high - low) / 2;
    if (next > low_score && next < high_score && (step <= kMaxGuesses || step % 2 == 0)) {
      middle = to_key(next);
    }
    __syncwarp();
  }
  __syncwarp();
  return {from_key(low), count_low - count_high, top_k - count_high};
}

/// The threshold in a bracket, by all warps of the block.
template <int kWarps, class Count>
__device__ Threshold find_threshold(const SearchMemory<Count>& memory, InPlay in_play, Bracket bracket) {
  if (bracket.inside <= kWarp) {
    gather<kWarps>(memory, in_play, bracket.low);
  }
  Block<kWarps * kWarp>::sync();
  if (bracket.inside > kWarp) {
    return {bracket.low, bracket.wanted, bracket.wanted < bracket.inside};  // all of them equal `low`
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool real = lane < bracket.inside;
  const float score = real ? memory.gathered[lane] : -INFINITY;
  const WarpRank rank = rank_in_warp(score);
  const bool holds = real && rank.larger < bracket.wanted && bracket.wanted <= rank.larger + rank.equal;
  const int holder = __ffs(static_cast<int>(__ballot_sync(kAllLanes, holds))) - 1;
  const int ties = bracket.wanted - __shfl_sync(kAllLanes, rank.larger, holder);
  const int equal = __popc(__ballot_sync(kAllLanes, holds));
  return {__shfl_sync(kAllLanes, score, holder), ties, ties < equal};
}

}  // namespace moescope::cuda
