#pragma once

#include "core/tiling/selection_form.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/router/router_select_token.cuh"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

/// The selection as strips (router_select_strips.cu), for one GPU and for several (kernels/ranks/).
namespace moescope::cuda {

/// What else becomes of a token's selection: nothing.
struct NoMirror {
  __device__ __forceinline__ void token(const DeviceStrips&, std::int64_t, int, int, int, int) const {}
};

/// Mirror: token(strips, token, rows, cols, max_cover, threads) by all threads of the block behind every
/// token.
template <class Mirror>
struct SelectStripsArguments {
  SelectArguments select;
  int max_cover;    ///< strips per token in `cover` and `cover_ranks`
  int num_lengths;  ///< row lengths a cover can be cut at: 1 (only rows) or max_cover + 1
  DeviceStrips out;
  std::int32_t* strip_counts;
  std::int32_t* cover_ranks;
  unsigned long long* bad_logit;
  [[no_unique_address]] Mirror mirror;
};

/// What one warp finds and the others need.
struct CoveredToken {
  Cover cover;
  float strip_col;        ///< the k-th (0-based) best column, if there are that many
  float last_needed_col;  ///< the last of the prefix
};

/// A bit per row and column of the cover to `masks`, by all warps; uncovered [rows]. Returns the words in
/// use.
template <int kPerLane, int kWarps>
__device__ int mark_cover(const SelectArguments& args, const Selection& selection,
                          const CoveredToken& covered, const float* row_log_probs, const float* col_log_probs,
                          float* uncovered, unsigned* masks) {
  constexpr int kValues = kBatch<kPerLane, kWarps>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float threshold = selection.threshold.score;
  const LimitRow& limit = selection.limit;
  const Cover cover = covered.cover;
  const float strip_col = covered.strip_col;
  const int row_words = (args.rows + kWarp - 1) / kWarp;
  for_each_value<kValues, kWarps>(row_log_probs, args.rows, [&](int i, float p, bool real) {
    // A row is longer than k exactly if it has selected its k-th (0-based) best column.
    const float score = p + strip_col;
    const bool tied = i < limit.id || (i == limit.id && limit.length > cover.k);
    const bool takes = real && cover.k < args.cols && (score > threshold || (score == threshold && tied));
    if (real) {
      uncovered[i] = takes ? -INFINITY : p;
    }
    const unsigned mask = __ballot_sync(kAllLanes, takes);
    if (lane == 0) {
      masks[i / kWarp] = mask;
    }
  });
  if (cover.prefix == 0 && !cover.partial) {
    return row_words;
  }
  const float last_needed_col = covered.last_needed_col;
  for_each_value<kValues, kWarps>(col_log_probs, args.cols, [&](int j, float p, bool real) {
    const bool of_partial =
        cover.partial && limit.score + p == threshold && limit.id * args.cols + j <= limit.tie_id;
    const unsigned mask = __ballot_sync(kAllLanes, real && (p >= last_needed_col || of_partial));
    if (lane == 0) {
      masks[row_words + j / kWarp] = mask;
    }
  });
  return row_words + (args.cols + kWarp - 1) / kWarp;
}

/// The strips that the masks mark, ascending, to `list`; returns their number. By one warp.
__device__ inline int list_cover(const unsigned* masks, int words, int rows, std::int32_t* list) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row_words = (rows + kWarp - 1) / kWarp;
  int size = 0;
#pragma unroll 1
  for (int first = 0; first < words; first += kWarp) {
    const int word = first + lane;
    unsigned mask = word < words ? masks[word] : 0;
    int total;
    int at = size + Block<kWarp>::inclusive_scan(__popc(mask), total) - __popc(mask);
    const int strip = word < row_words ? word * kWarp : rows + (word - row_words) * kWarp;
    for (; mask != 0; mask &= mask - 1) {
      list[at++] = strip + __ffs(static_cast<int>(mask)) - 1;
    }
    size += total;
  }
  __syncwarp();
  return size;
}

template <int kPerLane, int kWarps, class Mirror>
__global__ void __launch_bounds__(kWarps* kWarp, kWarps > 1      ? (kPerLane > 10 ? 2 : 4)
                                                 : kPerLane > 16 ? 14
                                                 : kPerLane > 10 ? 24
                                                                 : 32)
    router_select_strips(const SelectStripsArguments<Mirror> strips_args) {
  using B = Block<kWarps * kWarp>;
  extern __shared__ __align__(16) std::byte shared_memory[];
  __shared__ CoveredToken covered;
  const SelectArguments& args = strips_args.select;
  const DeviceStrips& out = strips_args.out;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  begin_dependent<kWarps>();
  for (std::int64_t token = blockIdx.x; token < args.num_tokens; token += gridDim.x) {
    TokenMemory<kPerLane> memory(args, shared_memory);
    float* const row_out = out.row_log_probs + token * args.rows;
    float* const col_out = out.col_log_probs + token * args.cols;
    const std::int64_t flat = token * (std::int64_t{args.rows} + args.cols);
    Selection selection;
    if (!select_token<kPerLane, kWarps>(args, args.logits + flat, row_out, col_out, memory,
                                        strips_args.num_lengths, selection)) {
      find_bad(args.logits + flat, args.rows + args.cols,
               [&](int i) { atomicMin(strips_args.bad_logit, static_cast<unsigned long long>(flat + i)); });
      if (threadIdx.x == 0) {
        out.threshold[token] = INFINITY;
        out.tie_limit[token] = -1;
        out.gate_shift[token] = 0;
        out.cover_sizes[token] = 0;
      }
      B::sync();
      strips_args.mirror.token(out, token, args.rows, args.cols, strips_args.max_cover, kWarps * kWarp);
      continue;
    }
    if (warp == 0) {
      const Cover cover =
          find_cover(memory.lengths, strips_args.num_lengths, selection.lengths.num_rows, selection.limit,
                     memory.sorted, col_out, args.cols, selection.threshold.score);
      covered = {.cover = cover,
                 .strip_col = cover.k < args.cols ? memory.sorted[cover.k] : 0.0F,
                 .last_needed_col = cover.prefix > 0 ? memory.sorted[cover.prefix - 1] : INFINITY};
    }
    B::sync();
    if (warp == kWarps - 1) {
      const float shift = log_sum_exp(memory.search, memory.sorted, selection.marginals, selection.threshold,
                                      selection.lengths.longest);
      if (lane == 0) {
        out.gate_shift[token] = shift;
      }
    }
    auto* const masks = reinterpret_cast<unsigned*>(memory.lengths);
    const int words = mark_cover<kPerLane, kWarps>(args, selection, covered, row_out, col_out,
                                                   out.uncovered_rows + token * args.rows, masks);
    B::sync();
    if (warp == 0) {
      auto* const list = reinterpret_cast<std::int32_t*>(memory.sorted);  // a cover has at most `cols` strips
      const int size = list_cover(masks, words, args.rows, list);
#pragma unroll 1
      for (int e = lane; e < size; e += kWarp) {
        const std::int64_t at = token * strips_args.max_cover + e;
        out.cover[at] = list[e];
        strips_args.cover_ranks[at] = atomicAdd(&strips_args.strip_counts[list[e]], 1);
      }
      if (lane == 0) {
        out.threshold[token] = selection.threshold.score;
        out.tie_limit[token] = selection.limit.tie_id;
        out.cover_sizes[token] = size;
      }
    }
    B::sync();
    strips_args.mirror.token(out, token, args.rows, args.cols, strips_args.max_cover, kWarps * kWarp);
  }
}

/// Launches the selection with a mirror. Arguments as of launch_router_select_strips().
template <class Mirror>
void launch_select_strips(const LayerShape& shape, StripRule rule, const float* logits, DeviceStrips strips,
                          std::int64_t* bad_logit, const Mirror& mirror, cudaStream_t stream) {
  const StageRange range(Stage::kRouterSelect);
  const GpuTraits& gpu = current_gpu();
  const std::int64_t max_cover = strip_capacity(shape, rule, 1, gpu).max_cover;
  const StripScratch scratch = strip_scratch(shape, max_cover, gpu);
  SelectStripsArguments<Mirror> args{};
  args.select = select_arguments(shape, strips_select_memory(shape, max_cover), SelectMarginals::kLogSoftmax,
                                 logits, strips.scratch + scratch.memory);
  args.max_cover = static_cast<int>(max_cover);
  args.num_lengths = rule == StripRule::kRowsOnly ? 1 : args.max_cover + 1;
  args.out = strips;
  args.strip_counts = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.strip_counts);
  args.cover_ranks = reinterpret_cast<std::int32_t*>(strips.scratch + scratch.cover_ranks);
  args.bad_logit = reinterpret_cast<unsigned long long*>(bad_logit);
  args.mirror = mirror;
  dispatch_per_lane(
      args.select.layout.per_lane,
      [&](auto per_lane) {
        if (strips_by_eight_warps(shape, gpu)) {
          launch_select<kFewTokensWarps>(router_select_strips<per_lane(), kFewTokensWarps, Mirror>, args,
                                         stream);
        } else {
          launch_select<1>(router_select_strips<per_lane(), 1, Mirror>, args, stream);
        }
      },
      std::make_index_sequence<kSelectPerLane.size()>());
}

}  // namespace moescope::cuda
