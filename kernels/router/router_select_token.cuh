#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/router_select_cover.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/router/router_select_search.cuh"
#include "kernels/router/strip_plan.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

/// What both forms of the selection (router_select.cu: CSR, router_select_strips.cu: strips) do first with a
/// token, by one warp: log-softmax, sorting, the exact threshold, the number of columns that each row
/// selects.
namespace moescope::cuda {

struct SelectArguments {
  std::int64_t num_tokens;
  int rows;
  int cols;
  int top_k;
  GateMode gate_mode;
  SelectMarginals marginals;
  SelectMemory layout;
  const float* logits;  ///< [L, rows + cols]
  std::byte* memory;    ///< global working memory, or null: shared
};
inline SelectArguments select_arguments(const LayerShape& shape, const SelectMemory& layout,
                                        SelectMarginals marginals, const float* logits, void* memory) {
  return {.num_tokens = shape.num_tokens,
          .rows = static_cast<int>(shape.grid_rows),
          .cols = static_cast<int>(shape.grid_cols),
          .top_k = static_cast<int>(shape.top_k),
          .gate_mode = shape.gate_mode,
          .marginals = marginals,
          .layout = layout,
          .logits = logits,
          .memory = layout.shared ? nullptr : static_cast<std::byte*>(memory)};
}

/// A block's working memory, as SelectMemory lays it out. kPerLane as there.
template <int kPerLane>
struct TokenMemory {
  using Count = std::conditional_t<(kPerLane > 0), std::uint16_t, std::int32_t>;
  float* sorted;
  SearchMemory<Count> search;
  int* lengths;
  std::byte* rest;  ///< from SelectMemory::common_bytes on

  __device__ TokenMemory(const SelectArguments& args, std::byte* shared) {
    std::byte* at = shared;
    if constexpr (kPerLane == 0) {
      at = args.memory != nullptr ? args.memory + blockIdx.x * args.layout.bytes : shared;
    }
    const auto take = [&at](std::int64_t bytes) {
      std::byte* const begin = at;
      at += bytes;
      return begin;
    };
    sorted = reinterpret_cast<float*>(take(args.layout.sort_length * 4));
    search.sorted = sorted;
    search.rows = reinterpret_cast<float*>(take(args.layout.rows));
    search.row_ids = reinterpret_cast<Count*>(take(args.layout.counts));
    search.above = reinterpret_cast<Count*>(take(args.layout.counts));
    search.probe = reinterpret_cast<Count*>(take(args.layout.counts));
    search.gathered = reinterpret_cast<float*>(take(args.layout.gathered));
    search.num_gathered = reinterpret_cast<int*>(search.gathered + kWarp);
    lengths = reinterpret_cast<int*>(take(args.layout.lengths));
    rest = at;
  }
};

/// Values per lane that a warp loads before it uses the first; the block's warps share a marginal.
template <int kPerLane, int kWarps>
inline constexpr int kBatch = kPerLane > 0 && kPerLane <= 16 ? (kPerLane + kWarps - 1) / kWarps : 8;

/// A token's marginals as the search needs them.
struct Marginals {
  float best_row;
  float best_col;
  float low_bound;  ///< at least K scores are no lower
  InPlay in_play;
};

/// x[m] = from[32 m + lane], -infinity beyond the count. False if this lane's values are not all finite.
template <int kPerLane>
__device__ __forceinline__ bool load_values(const float* from, int count, float (&x)[kPerLane]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  bool finite = true;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    x[m] = m * kWarp + lane < count ? (from + lane)[m * kWarp] : -INFINITY;  // one address for all
  }
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    finite = finite && (isfinite(x[m]) || m * kWarp + lane >= count);
  }
  return finite;
}
template <int kPerLane>
__device__ __forceinline__ void store_values(const float (&x)[kPerLane], int count, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    if (m * kWarp + lane < count) {
      (to + lane)[m * kWarp] = x[m];
    }
  }
}

/// How many of 0..count-1 hold, when those that do come first; 32-ary search by one warp.
template <class Holds>
__device__ int count_prefix(int count, Holds holds) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int low = 0;
#pragma unroll 1
  for (int high = count; low < high;) {
    const int stride = (high - low + kWarp - 1) / kWarp;
    const int i = low + lane * stride;
    const int held = __popc(__ballot_sync(kAllLanes, i < high && holds(i)));
    high = min(low + held * stride, high);
    low = held > 0 ? low + (held - 1) * stride + 1 : low;
  }
  return low;
}

/// The gate of a selected score; `shift`: of softmax gates the log-sum-exp of the selected, else 0.
__device__ __forceinline__ float gate_of(const SelectArguments& args, float score, float shift) {
  return args.gate_mode == GateMode::kRelu ? fmaxf(score, 0.0F) : expf(score - shift);
}

/// Values per lane up to which columns in memory are sorted in registers after all.
inline constexpr int kSortedInRegisters = 8;

/// Columns in memory that a token can select.
struct ColumnsKept {
  int count;
  int padded;   ///< what is to be sorted: a power of two, -infinity from `count` on
  float bound;  ///< at least K scores are no lower; -infinity: not known, and all columns are kept
};

/// Before anything is sorted, the best of every lane's rows and the best of every lane's columns have a
/// corner that bounds the K-th score from below, as corner_bound() has it of sorted columns. Most columns of
/// a long row cannot reach that even with the best row. The others go to `to`, in no particular order; where
/// there is room, -infinity stands behind them. By one warp.
__device__ inline ColumnsKept keep_columns(float lane_best_row, float lane_best_col, const float* cols,
                                           int count, int top_k, int most, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float best[1] = {lane_best_col};
  sort_warp(best);
  to[lane] = best[0];
  __syncwarp();
  const float bound = corner_bound(lane_best_row, to, kWarp, top_k);
  const float best_row = warp_max(lane_best_row);
  __syncwarp();
  int kept = 0;
#pragma unroll 4
  for (int first = 0; first < count; first += kWarp) {
    const int j = first + lane;
    const float p = j < count ? cols[j] : -INFINITY;
    const bool keeps = (j < count) & (best_row + p >= bound);
    const unsigned mask = __ballot_sync(kAllLanes, keeps);
    if (keeps) {
      to[kept + __popc(mask & ((1U << lane) - 1))] = p;
    }
    kept += __popc(mask);
  }
  int padded = kWarp;
  while (padded <= kept && padded < most) {
    padded *= 2;
  }
  for (int j = kept + lane; j < padded; j += kWarp) {
    to[j] = -INFINITY;
  }
  return {kept, padded, bound};
}

/// Sorts at most kSortedInRegisters values a lane, descending, by one warp; from `count` on stands -infinity
/// afterwards, as far as `data` was that long.
__device__ inline void sort_by_warp(float* data, int count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float x[kSortedInRegisters];
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kSortedInRegisters; ++m) {
    x[m] = m * kWarp + lane < count ? data[m * kWarp + lane] : -INFINITY;
  }
  sort_warp(x);
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kSortedInRegisters; ++m) {
    if (const int j = lane * kSortedInRegisters + m; j < count) {
      data[j] = x[m];
    }
  }
  __syncwarp();
}

/// Marginals of both sides (log-softmax, or the logits themselves) to row_out and col_out, columns sorted to
/// `sorted` (in memory those alone that can be selected), and the rows in play to memory.rows with
/// memory.above cleared. False when a logit is NaN or infinite.
template <int kPerLane, int kWarps, class Count>
__device__ bool prepare(const SelectArguments& args, const float* logits, float* row_out, float* col_out,
                        float* sorted, const SearchMemory<Count>& memory, Marginals& result) {
  using B = Block<kWarps * kWarp>;
  __shared__ Marginals shared;
  [[maybe_unused]] __shared__ ColumnsKept shared_kept;
  ColumnsKept columns{.count = args.cols, .padded = 0, .bound = -INFINITY};
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool has_cols = warp == 0;
  const bool has_rows = warp == (kWarps > 1 ? 1 : 0);
  float row[kPerLane > 0 ? kPerLane : 1];
  float lane_best = -INFINITY;
  float lane_least = INFINITY;
  bool finite = true;
  if constexpr (kPerLane > 0) {
    // One warp has both sides on their way before it uses either, where there are registers for that.
    constexpr bool kTogether = kWarps == 1 && kPerLane <= 10;
    if (has_cols) {
      float col[kPerLane];
      finite = load_values(logits + args.rows, args.cols, col);
      if constexpr (kTogether) {
        finite = load_values(logits, args.rows, row) && finite;
      }
      const float best_col = to_marginal(col, args.marginals);
      store_values(col, args.cols, col_out);
      sort_warp(col);
#pragma unroll
      for (int m = 0; m < kPerLane; ++m) {
        sorted[lane * kPerLane + m] = col[m];
      }
      shared.best_col = best_col;
    }
    if (has_rows) {
      if constexpr (!kTogether) {
        finite = load_values(logits, args.rows, row) && finite;
      }
      shared.best_row = to_marginal(row, args.marginals);
      store_values(row, args.rows, row_out);
#pragma unroll
      for (int m = 0; m < kPerLane; ++m) {
        lane_best = fmaxf(lane_best, row[m]);
        lane_least = m * kWarp + lane < args.rows ? fminf(lane_least, row[m]) : lane_least;
      }
    }
  } else {
    float lane_best_col = -INFINITY;
    if (has_cols) {
      shared.best_col = to_marginal(logits + args.rows, args.cols, args.marginals, col_out, finite);
      for (int j = lane; j < args.cols; j += kWarp) {
        lane_best_col = fmaxf(lane_best_col, col_out[j]);
      }
    }
    if (has_rows) {
      shared.best_row = to_marginal(logits, args.rows, args.marginals, row_out, finite);
      for (int i = lane; i < args.rows; i += kWarp) {
        lane_best = fmaxf(lane_best, row_out[i]);
        lane_least = fminf(lane_least, row_out[i]);
      }
      memory.gathered[lane] = lane_best;
    }
    B::sync();
    if (has_cols) {
      const ColumnsKept kept = keep_columns(memory.gathered[lane], lane_best_col, col_out, args.cols,
                                            args.top_k, static_cast<int>(args.layout.sort_length), sorted);
      if (lane == 0) {
        shared_kept = kept;
      }
    }
    B::sync();
    columns = shared_kept;
    if (columns.padded > kSortedInRegisters * kWarp) {
      sort_descending<kWarps * kWarp>(sorted, columns.padded);
    } else if (has_cols) {
      sort_by_warp(sorted, columns.padded);
    }
    B::sync();
  }
  if (B::any(!finite)) {
    return false;
  }

  if (has_rows) {
    float low_bound = fmaxf(corner_bound(lane_best, sorted, columns.count, args.top_k), columns.bound);
    if (low_bound == -INFINITY) {
      low_bound = -warp_max(-lane_least) + sorted[args.cols - 1];  // the least score of all
    }
    const float best_row = shared.best_row;
    const float best_col = shared.best_col;
    int kept = 0;
    const auto keep = [&](int i, float p) {
      const bool keeps = i < args.rows && p + best_col >= low_bound;
      const unsigned mask = __ballot_sync(kAllLanes, keeps);
      if (keeps) {
        const int at = kept + __popc(mask & ((1U << lane) - 1));
        memory.rows[at] = p;
        memory.row_ids[at] = static_cast<Count>(i);
        memory.above[at] = 0;
      }
      kept += __popc(mask);
    };
    if constexpr (kPerLane > 0) {
#pragma unroll
      for (int m = 0; m < kPerLane; ++m) {
        if (m * kWarp < args.rows) {
          keep(m * kWarp + lane, row[m]);
        }
      }
    } else {
      for (int first = 0; first < args.rows; first += kWarp) {
        keep(first + lane, first + lane < args.rows ? row_out[first + lane] : 0.0F);
      }
    }
    const int cols_in_play =
        count_prefix(columns.count, [&](int j) { return best_row + sorted[j] >= low_bound; });
    shared.low_bound = low_bound;
    shared.in_play = {kept, cols_in_play};
  }
  B::sync();
  result = shared;
  return true;
}

/// ln of the sum of exp(S) over the selected pairs: each row adds exp(p_r) times the prefix sum of exp(p_c)
/// over its columns, all relative to the largest score. Overwrites `sorted` with the prefix sums. By one
/// warp.
template <class Count>
__device__ float log_sum_exp(const SearchMemory<Count>& memory, float* sorted, const Marginals& marginals,
                             Threshold threshold, int longest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int per_lane = (longest + kWarp - 1) / kWarp;  // neighbours, so that one scan does for all
  const int begin = min(lane * per_lane, longest);
  const int end = min(begin + per_lane, longest);
  float total = 0;
#pragma unroll 4
  for (int j = begin; j < end; ++j) {
    total += expf(sorted[j] - marginals.best_col);
    sorted[j] = total;
  }
  float all;
  const float before = Block<kWarp>::inclusive_scan(total, all) - total;
#pragma unroll 4
  for (int j = begin; j < end; ++j) {
    sorted[j] += before;
  }
  __syncwarp();
  float sum = 0;
#pragma unroll 2
  for (int i = lane; i < marginals.in_play.rows; i += kWarp) {
    const int count = memory.above[i];
    sum += count > 0 ? expf(memory.rows[i] - marginals.best_row) * sorted[count - 1] : 0.0F;
  }
  sum = warp_sum(sum);
  const float best = marginals.best_row + marginals.best_col;
  if (threshold.limited) {
    sum += static_cast<float>(threshold.ties) * expf(threshold.score - best);
  }
  return best + logf(sum);
}

/// What a token selects. The length of each row in play is in search.probe, and in search.above what of it
/// counts towards the sum of exponentials.
struct Selection {
  Marginals marginals;
  Threshold threshold;
  LimitRow limit;
  Lengths lengths;
};

/// Finds a token's selection, by all warps of the block. False when one of its logits is NaN or infinite.
/// Log-softmax goes to row_out and col_out; memory.lengths becomes the histogram of row lengths below
/// num_lengths.
template <int kPerLane, int kWarps>
__device__ bool select_token(const SelectArguments& args, const float* logits, float* row_out, float* col_out,
                             TokenMemory<kPerLane>& memory, int num_lengths, Selection& selection) {
  using B = Block<kWarps * kWarp>;
  __shared__ Lengths lengths;
  __shared__ LimitRow limit;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Marginals& marginals = selection.marginals;
  if (!prepare<kPerLane, kWarps>(args, logits, row_out, col_out, memory.sorted, memory.search, marginals)) {
    return false;
  }
  const Bracket bracket = find_bracket<kWarps>(memory.search, marginals.in_play, args.top_k,
                                               marginals.low_bound, marginals.best_row + marginals.best_col);
#pragma unroll 1
  for (int k = static_cast<int>(threadIdx.x); k < num_lengths; k += kWarps * kWarp) {
    memory.lengths[k] = 0;
  }
  if (threadIdx.x == 0) {
    lengths = {};
    limit = LimitRow::none();
  }
  selection.threshold = find_threshold<kWarps>(memory.search, marginals.in_play, bracket);
  const bool alone = kWarps == 1 || selection.threshold.limited;
  if (!alone || warp == 0) {
    LimitRow last = LimitRow::none();
    const Lengths own = find_lengths(memory.search, marginals.in_play, selection.threshold, memory.lengths,
                                     num_lengths - 1, last, alone ? 0 : warp, alone ? 1 : kWarps);
    if (selection.threshold.limited) {
      locate_limit(last, col_out, args.cols, selection.threshold.score);
    }
    if (threadIdx.x % kWarp == 0) {
      atomicAdd(&lengths.num_rows, own.num_rows);
      atomicMax(&lengths.longest, own.longest);
      if (selection.threshold.limited) {
        limit = last;
      }
    }
  }
  B::sync();
  selection.lengths = lengths;
  selection.limit = limit;
  return true;
}

/// Calls visit(i, values[i], i < count) for all i, a warp's width at a time, with several loads in flight;
/// the block's warps share them.
template <int kValues, int kWarps, class Visit>
__device__ __forceinline__ void for_each_value(const float* values, int count, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / kWarp * kValues * kWarp; first < count;
       first += kWarps * kValues * kWarp) {
    float value[kValues];
#pragma unroll
    for (int u = 0; u < kValues; ++u) {
      const int i = first + u * kWarp + lane;
      value[u] = i < count ? (values + first + lane)[u * kWarp] : 0.0F;
    }
#pragma unroll
    for (int u = 0; u < kValues; ++u) {
      if (first + u * kWarp < count) {
        const int i = first + u * kWarp + lane;
        visit(i, value[u], i < count);
      }
    }
  }
}

/// Calls launch(std::integral_constant<int, N>) for the compiled number of values per lane that the layout
/// wants.
template <class Launch, std::size_t... kIndex>
void dispatch_per_lane(int per_lane, Launch launch, std::index_sequence<kIndex...>) {
  const auto matches = [&](auto compiled) {
    if (per_lane == compiled()) {
      launch(compiled);
    }
    return per_lane == compiled();
  };
  if (!(matches(std::integral_constant<int, kSelectPerLane[kIndex]>()) || ...)) {
    launch(std::integral_constant<int, 0>());
  }
}

/// What a selection kernel does first. With few tokens all its blocks run at once, so that the next kernel's
/// blocks, which wait for the end of this one, keep none of them from starting.
template <int kWarps>
__device__ __forceinline__ void begin_dependent() {
  if constexpr (kWarps > 1) {
    release_successor();
  }
  wait_for_predecessor();
}

/// Launches `kernel`, of kWarps warps, with one block per token; `args.select` are SelectArguments. The
/// kernel calls begin_dependent().
template <int kWarps, class Arguments>
void launch_select(void (*kernel)(Arguments), const Arguments& args, cudaStream_t stream) {
  const SelectMemory& layout = args.select.layout;
  const std::int64_t bytes = layout.shared ? layout.bytes : 0;
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                           cudaSharedmemCarveoutMaxShared));
  const std::int64_t blocks = std::min(
      args.select.num_tokens, layout.shared ? std::int64_t{1} << 30 : global_select_blocks(current_gpu()));
  launch_dependent(kernel,
                   {.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(kWarps * kWarp),
                    .shared_bytes = static_cast<std::size_t>(bytes)},
                   stream, args);
}

/// Warps of a token when there are few tokens (core/tiling/selection_form.hpp).
inline constexpr int kFewTokensWarps = 8;

}  // namespace moescope::cuda
