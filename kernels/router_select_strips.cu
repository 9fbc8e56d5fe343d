// Stage router_select (paper eqs. 10-11) for the staircase schedule: per token the exact top K of
// S[i,j] = p_r[i] + p_c[j] as a threshold, the log-sum-exp of the selected scores, and the smallest cover by
// strips. No pair is ever listed.
//
// One warp per token: columns are sorted in registers, the threshold is searched by counting
// (router_select_search.cuh), the cover follows from the rows' counts (router_select_cover.cuh), the
// log-sum-exp from prefix sums of the sorted columns' exponentials. 32 warps per multiprocessor and 64
// registers each hide one another's latencies. Grids too large for registers are sorted in memory by the same
// warp.
#include <algorithm>
#include <climits>
#include <type_traits>
#include <utility>

#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"
#include "kernels/nvtx.hpp"
#include "kernels/router_select_cover.cuh"
#include "kernels/router_select_marginals.cuh"
#include "kernels/router_select_search.cuh"
#include "kernels/strip_plan.hpp"

namespace moescope::cuda {
namespace {

struct SelectStripsArguments {
  std::int64_t num_tokens;
  int rows;
  int cols;
  int top_k;
  bool softmax;     ///< gates: softmax over the selected, else exp(S)
  int max_cover;    ///< strips per token in `cover` and `cover_ranks`
  int num_lengths;  ///< row lengths a cover can be cut at: 1 (only rows) or max_cover + 1
  SelectMemory layout;
  const float* logits;
  DeviceStrips out;
  unsigned long long* first_bad;
  unsigned* ticket;
  std::int32_t* strip_counts;
  std::int32_t* cover_ranks;
  std::byte* memory;  ///< global working memory, or null: shared
  std::int64_t* bad_logit;
};

/// Values per lane that a warp loads before it uses the first.
template <int kPerLane>
inline constexpr int kBatch = kPerLane > 0 && kPerLane <= 16 ? kPerLane : 8;

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
    const int i = m * kWarp + lane;
    x[m] = i < count ? from[i] : -INFINITY;
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
    const int i = m * kWarp + lane;
    if (i < count) {
      to[i] = x[m];
    }
  }
}

/// Log-softmax of both sides to row_out and col_out, columns sorted to `sorted`, and the rows in play to
/// memory.rows with memory.above cleared. False when a logit is NaN or infinite.
template <int kPerLane, class Count>
__device__ bool prepare(const SelectStripsArguments& args, const float* logits, float* row_out,
                        float* col_out, float* sorted, const SearchMemory<Count>& memory, Marginals& result) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float row[kPerLane > 0 ? kPerLane : 1];
  float lane_best = -INFINITY;
  float lane_least = INFINITY;
  if constexpr (kPerLane > 0) {
    // Both sides are on their way before either is used, where there are registers for that.
    constexpr bool kTogether = kPerLane <= 10;
    float col[kPerLane];
    bool finite = load_values(logits + args.rows, args.cols, col);
    if constexpr (kTogether) {
      finite = load_values(logits, args.rows, row) && finite;
    }
    result.best_col = log_softmax(col);
    store_values(col, args.cols, col_out);
    sort_warp(col);
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      sorted[lane * kPerLane + m] = col[m];
    }
    if constexpr (!kTogether) {
      finite = load_values(logits, args.rows, row) && finite;
    }
    result.best_row = log_softmax(row);
    store_values(row, args.rows, row_out);
    if (!__all_sync(kAllLanes, finite)) {
      return false;
    }
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      lane_best = fmaxf(lane_best, row[m]);
      lane_least = m * kWarp + lane < args.rows ? fminf(lane_least, row[m]) : lane_least;
    }
  } else {
    bool finite = true;
    result.best_row = log_softmax(logits, args.rows, row_out, finite);
    result.best_col = log_softmax(logits + args.rows, args.cols, col_out, finite);
    if (!__all_sync(kAllLanes, finite)) {
      return false;
    }
    const int sort_length = static_cast<int>(args.layout.sort_length);
    for (int j = lane; j < sort_length; j += kWarp) {
      sorted[j] = j < args.cols ? col_out[j] : -INFINITY;
    }
    __syncwarp();
    sort_descending<kWarp>(sorted, sort_length);
    for (int i = lane; i < args.rows; i += kWarp) {
      lane_best = fmaxf(lane_best, row_out[i]);
      lane_least = fminf(lane_least, row_out[i]);
    }
  }
  __syncwarp();

  result.low_bound = corner_bound(lane_best, sorted, args.cols, args.top_k);
  if (result.low_bound == -INFINITY) {
    result.low_bound = -warp_max(-lane_least) + sorted[args.cols - 1];  // the least score of all
  }
  int kept = 0;
  const auto keep = [&](int i, float p) {
    const bool keeps = i < args.rows && p + result.best_col >= result.low_bound;
    const unsigned mask = __ballot_sync(kAllLanes, keeps);
    if (keeps) {
      const int at = kept + __popc(mask & ((1U << lane) - 1));
      memory.rows[at] = p;
      memory.above[at] = 0;
    }
    kept += __popc(mask);
  };
  if constexpr (kPerLane > 0) {
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      keep(m * kWarp + lane, row[m]);
    }
  } else {
    for (int first = 0; first < args.rows; first += kWarp) {
      keep(first + lane, first + lane < args.rows ? row_out[first + lane] : 0.0F);
    }
  }
  int cols_in_play = 0;
  for (int j = lane; j < args.cols; j += kWarp) {
    cols_in_play += result.best_row + sorted[j] >= result.low_bound ? 1 : 0;
  }
  result.in_play = {kept, __reduce_add_sync(kAllLanes, cols_in_play)};
  __syncwarp();
  return true;
}

/// ln of the sum of exp(S) over the selected pairs: each row adds exp(p_r) times the prefix sum of exp(p_c)
/// over its columns, all relative to the largest score. Overwrites memory.sorted with the prefix sums.
template <class Count>
__device__ float log_sum_exp(const SearchMemory<Count>& memory, float* sorted, const Marginals& marginals,
                             Threshold threshold, int longest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float carry = 0;
  for (int first = 0; first < longest; first += kWarp) {
    const int j = first + lane;
    float total;
    const float value = j < longest ? expf(sorted[j] - marginals.best_col) : 0.0F;
    const float inclusive = Block<kWarp>::inclusive_scan(value, total);
    if (j < longest) {
      sorted[j] = carry + inclusive;
    }
    carry += total;
  }
  __syncwarp();
  float sum = 0;
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

/// Calls visit(i, values[i], i < count) for all i, a warp's width at a time, with several loads in flight.
template <int kValues, class Visit>
__device__ __forceinline__ void for_each_value(const float* values, int count, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = 0; first < count; first += kValues * kWarp) {
    float value[kValues];
#pragma unroll
    for (int u = 0; u < kValues; ++u) {
      const int i = first + u * kWarp + lane;
      value[u] = i < count ? values[i] : 0.0F;
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

template <int kPerLane>
__global__ void __launch_bounds__(kWarp, kPerLane > 16 ? 16 : 32)
    router_select_strips(const SelectStripsArguments args) {
  using Count = std::conditional_t<(kPerLane > 0), std::uint16_t, std::int32_t>;
  extern __shared__ __align__(16) std::byte shared_memory[];
  std::byte* memory_begin = shared_memory;
  if constexpr (kPerLane == 0) {
    if (args.memory != nullptr) {
      memory_begin = args.memory + blockIdx.x * args.layout.bytes;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto lower_lanes = (1U << lane) - 1;
  const DeviceStrips& out = args.out;

  for (std::int64_t token = blockIdx.x; token < args.num_tokens; token += gridDim.x) {
    auto* const sorted = reinterpret_cast<float*>(memory_begin);
    auto* const after_sorted = memory_begin + args.layout.sort_length * 4;
    auto* const lengths = after_sorted + args.layout.rows + 2 * args.layout.counts;
    SearchMemory<Count> memory{
        .sorted = sorted,
        .rows = reinterpret_cast<float*>(after_sorted),
        .above = reinterpret_cast<Count*>(after_sorted + args.layout.rows),
        .probe = reinterpret_cast<Count*>(after_sorted + args.layout.rows + args.layout.counts),
        .gathered = reinterpret_cast<float*>(lengths)};
    auto* const histogram = reinterpret_cast<int*>(lengths);
    float* const row_out = out.row_log_probs + token * args.rows;
    float* const col_out = out.col_log_probs + token * args.cols;
    const std::int64_t flat = token * (std::int64_t{args.rows} + args.cols);

    Marginals marginals;
    if (!prepare<kPerLane>(args, args.logits + flat, row_out, col_out, sorted, memory, marginals)) {
      find_bad(args.logits + flat, args.rows + args.cols, [&](int i) {
        atomicMax(args.first_bad, ~static_cast<unsigned long long>(flat + i));
        __threadfence();
      });
      if (lane == 0) {
        out.threshold[token] = INFINITY;
        out.tie_limit[token] = -1;
        out.gate_shift[token] = 0;
        out.cover_sizes[token] = 0;
      }
      continue;
    }
    const Threshold threshold = find_threshold(memory, marginals.in_play, args.top_k, marginals.low_bound,
                                               marginals.best_row + marginals.best_col);
    __syncwarp();
    for (int k = lane; k < args.num_lengths; k += kWarp) {
      histogram[k] = 0;
    }
    __syncwarp();
    LimitRow limit;
    const Lengths rows =
        find_lengths(memory, marginals.in_play, threshold, histogram, args.num_lengths - 1, limit);
    if (threshold.limited) {
      locate_limit(limit, row_out, col_out, args.rows, args.cols, marginals.best_col, marginals.low_bound,
                   threshold.score);
    }
    const Cover cover = find_cover(histogram, args.num_lengths, rows.num_rows, limit, sorted, col_out,
                                   args.cols, threshold.score);
    const float strip_col = cover.k < args.cols ? sorted[cover.k] : 0.0F;
    const float last_needed_col = cover.prefix > 0 ? sorted[cover.prefix - 1] : INFINITY;
    __syncwarp();
    const float shift = args.softmax ? log_sum_exp(memory, sorted, marginals, threshold, rows.longest) : 0.0F;
    __syncwarp();

    auto* const list =
        reinterpret_cast<std::int32_t*>(memory.rows);  // a cover is no longer than the rows in play
    int size = 0;
    const auto append = [&](int strip, bool takes) {
      const unsigned mask = __ballot_sync(kAllLanes, takes);
      if (takes) {
        list[size + __popc(mask & lower_lanes)] = strip;
      }
      size += __popc(mask);
    };
    float* const uncovered = out.uncovered_rows + token * args.rows;
    for_each_value<kBatch<kPerLane>>(row_out, args.rows, [&](int i, float p, bool real) {
      // A row is longer than k exactly if it has selected its k-th (0-based) best column.
      const float score = p + strip_col;
      const bool tied = i < limit.id || (i == limit.id && limit.length > cover.k);
      const bool takes =
          real && cover.k < args.cols && (score > threshold.score || (score == threshold.score && tied));
      if (real) {
        uncovered[i] = takes ? -INFINITY : p;
      }
      append(i, takes);
    });
    if (cover.prefix > 0 || cover.partial) {
      for_each_value<kBatch<kPerLane>>(col_out, args.cols, [&](int j, float p, bool real) {
        const bool of_partial =
            cover.partial && limit.score + p == threshold.score && limit.id * args.cols + j <= limit.tie_id;
        append(args.rows + j, real && (p >= last_needed_col || of_partial));
      });
    }
    __syncwarp();
    for (int e = lane; e < size; e += kWarp) {
      const int strip = list[e];
      const std::int64_t at = token * args.max_cover + e;
      out.cover[at] = strip;
      args.cover_ranks[at] = atomicAdd(&args.strip_counts[strip], 1);
    }
    if (lane == 0) {
      out.threshold[token] = threshold.score;
      out.tie_limit[token] = limit.tie_id;
      out.gate_shift[token] = shift;
      out.cover_sizes[token] = size;
    }
    __syncwarp();
  }

  __syncwarp();
  if (lane == 0 && atomicInc(args.ticket, gridDim.x - 1) == gridDim.x - 1) {  // the last block; wraps to 0
    __threadfence();
    *args.bad_logit = static_cast<std::int64_t>(~atomicExch(args.first_bad, 0));
  }
}

template <int kPerLane>
void launch(const SelectStripsArguments& args, cudaStream_t stream) {
  const bool shared = args.memory == nullptr;
  const std::int64_t bytes = shared ? args.layout.bytes : 0;
  MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(
      router_select_strips<kPerLane>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(router_select_strips<kPerLane>,
                                           cudaFuncAttributePreferredSharedMemoryCarveout,
                                           cudaSharedmemCarveoutMaxShared));
  const auto blocks = std::min(args.num_tokens, shared ? std::int64_t{1} << 30 : kGlobalSelectBlocks);
  router_select_strips<kPerLane>
      <<<static_cast<unsigned>(blocks), kWarp, static_cast<std::size_t>(bytes), stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

/// Launches the kernel compiled for args.layout.per_lane.
template <std::size_t... kIndex>
void launch_compiled(const SelectStripsArguments& args, cudaStream_t stream, std::index_sequence<kIndex...>) {
  const auto launched = [&](auto matches, auto run) {
    if (matches) {
      run();
    }
    return matches;
  };
  if (!(launched(args.layout.per_lane == kSelectPerLane[kIndex],
                 [&] { launch<kSelectPerLane[kIndex]>(args, stream); }) ||
        ...)) {
    launch<0>(args, stream);
  }
}

}  // namespace

void launch_router_select_strips(const LayerShape& shape, StripRule rule, const float* logits,
                                 DeviceStrips strips, std::int64_t* bad_logit, cudaStream_t stream) {
  const StageRange range(Stage::kRouterSelect);
  const std::int64_t max_cover = strip_capacity(shape, rule, 1).max_cover;
  const StripScratch scratch = strip_scratch(shape, max_cover);
  SelectStripsArguments args{};
  args.num_tokens = shape.num_tokens;
  args.rows = static_cast<int>(shape.grid_rows);
  args.cols = static_cast<int>(shape.grid_cols);
  args.top_k = static_cast<int>(shape.top_k);
  args.softmax = shape.gate_mode == GateMode::kSoftmax;
  args.max_cover = static_cast<int>(max_cover);
  args.num_lengths = rule == StripRule::kRowsOnly ? 1 : args.max_cover + 1;
  args.layout = select_memory(shape, max_cover);
  args.logits = logits;
  args.out = strips;
  args.first_bad = reinterpret_cast<unsigned long long*>(strips.scratch + scratch.first_bad);
  args.ticket = reinterpret_cast<unsigned*>(strips.scratch + scratch.tickets);
  args.strip_counts = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.strip_counts);
  args.cover_ranks = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.cover_ranks);
  args.memory = args.layout.shared ? nullptr : strips.scratch + scratch.memory;
  args.bad_logit = bad_logit;
  launch_compiled(args, stream, std::make_index_sequence<kSelectPerLane.size()>());
}

}  // namespace moescope::cuda
