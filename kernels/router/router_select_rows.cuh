#pragma once

#include "kernels/router/router_select_csr.cuh"

/// The CSR of few tokens, eight warps to a token: every row asks all columns that any row takes whether it
/// takes them, a column to a lane, with nothing listed before. Many more instructions than
/// router_select.cu's lists, none of which waits long for another.
namespace moescope::cuda {

/// First pairs of the rows in play, in place of their lengths; by one warp.
template <class Count>
__device__ void start_all_rows(Count* lengths, int num_rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int per_lane = (num_rows + kWarp - 1) / kWarp;  // neighbours, so that one scan does for all
  const int begin = min(lane * per_lane, num_rows);
  const int end = min(begin + per_lane, num_rows);
  int total = 0;
#pragma unroll 4
  for (int i = begin; i < end; ++i) {
    total += lengths[i];
  }
  int all;
  int start = Block<kWarp>::inclusive_scan(total, all) - total;
#pragma unroll 4
  for (int i = begin; i < end; ++i) {
    const int length = lengths[i];
    lengths[i] = static_cast<Count>(start);
    start += length;
  }
}

/// What the rows ask for: all columns that any row takes, or where some row takes many, of rows that take at
/// most kShortRow the best kShortRow columns alone (and those that equal the last).
inline constexpr int kShortRow = 128;
template <class Count>
struct Candidates {
  const Count* all;
  int num_all;
  const Count* best;  ///< by id, as `all`
  int num_best;       ///< 0: not listed
};

/// The token's pairs, row by row, to emit.ids and emit.scores; by all warps of the block. search.probe: the
/// rows' first pairs.
template <int kWarps, class Count>
__device__ __forceinline__ void emit_rows(const SelectArguments& args, const EmitMemory<Count>& emit,
                                          const SearchMemory<Count>& search, const Selection& selection,
                                          const Candidates<Count>& candidates) {
  constexpr int kAtOnce = 4;  // words of candidates
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned below = (1U << lane) - 1;
  const float threshold = selection.threshold.score;
  const int last_tie = selection.limit.tie_id;
  const int num_rows = selection.marginals.in_play.rows;
#pragma unroll 1
  for (int first = warp; first < num_rows; first += kWarps * kWarp) {
    const int i = first + kWarps * lane;
    const bool real = i < num_rows;
    const int start = real ? static_cast<int>(search.probe[i]) : 0;
    const int end = i + 1 < num_rows ? static_cast<int>(search.probe[i + 1]) : args.top_k;
    const float p = real ? search.rows[i] : 0.0F;
    const int first_id = real ? static_cast<int>(search.row_ids[i]) * args.cols : 0;
    // The row where ties run out takes the lowest ids of them, whose columns need not be the best.
    const bool few = (end - start <= kShortRow) & (candidates.num_best > 0) &
                     (!real || static_cast<int>(search.row_ids[i]) != selection.limit.id);
    const unsigned few_rows = __ballot_sync(kAllLanes, few);
#pragma unroll 1
    for (unsigned left = __ballot_sync(kAllLanes, real && start < end); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      const float row = __shfl_sync(kAllLanes, p, from);
      const int row_id = __shfl_sync(kAllLanes, first_id, from);
      int at = __shfl_sync(kAllLanes, start, from);
      const bool is_short = (few_rows >> from & 1U) != 0;
      const Count* const columns = is_short ? candidates.best : candidates.all;
      const int num_candidates = is_short ? candidates.num_best : candidates.num_all;
#pragma unroll 1
      for (int begin = 0; begin < num_candidates; begin += kAtOnce * kWarp) {
        int id[kAtOnce];
        float score[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int c = begin + u * kWarp + lane;
          const int j = columns[min(c, num_candidates - 1)];
          id[u] = row_id + j;
          score[u] = row + emit.col_log_probs[j];
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          // Without branches, so that the words' chains of loads and ballots overlap.
          const bool real_candidate = begin + u * kWarp + lane < num_candidates;
          const bool tied = (score[u] == threshold) & (id[u] <= last_tie);
          const bool takes = real_candidate & ((score[u] > threshold) | tied);
          const unsigned mask = __ballot_sync(kAllLanes, takes);
          if (takes) {
            const int k = at + __popc(mask & below);
            emit.ids[k] = id[u];
            emit.scores[k] = score[u];
          }
          at += __popc(mask);
        }
      }
    }
  }
}

template <int kPerLane, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, 3) router_select_rows(const SelectCsrArguments csr_args) {
  using B = Block<kWarps * kWarp>;
  extern __shared__ __align__(16) std::byte shared_memory[];
  __shared__ float shared_shift;
  __shared__ int num_candidates;
  __shared__ int num_best;
  const SelectArguments& args = csr_args.select;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  begin_dependent<kWarps>();
  for (std::int64_t token = blockIdx.x; token < args.num_tokens; token += gridDim.x) {
    TokenMemory<kPerLane> memory(args, shared_memory);
    using Count = typename TokenMemory<kPerLane>::Count;
    const EmitMemory<Count> emit(memory.rest, csr_args.memory);
    auto* const best_columns = reinterpret_cast<Count*>(memory.lengths);  // this form asks for no histogram
    const float* const logits = args.logits + token * (std::int64_t{args.rows} + args.cols);
    Selection selection;
    if (!select_token<kPerLane, kWarps>(args, logits, emit.row_log_probs, emit.col_log_probs, memory, 0,
                                        selection)) {
      reject_token<kWarps * kWarp>(csr_args, token);
      B::sync();
      continue;
    }
    if (warp == 0) {
      start_all_rows(memory.search.probe, selection.marginals.in_play.rows);
    } else if (warp == 1) {
      const float best_row = selection.marginals.best_row;
      const float threshold = selection.threshold.score;
      const int count = list_columns_that(emit.col_log_probs, args.cols, emit.candidates,
                                          [&](float p) { return best_row + p >= threshold; });
      if (lane == 0) {
        num_candidates = count;
      }
    } else if (warp == 2) {
      int count = 0;
      if (selection.lengths.longest > kShortRow) {
        const float last = memory.sorted[kShortRow - 1];
        count = list_columns_that(emit.col_log_probs, args.cols, best_columns,
                                  [&](float p) { return p >= last; });
      }
      if (lane == 0) {
        num_best = count;
      }
      const float shift = args.gate_mode == GateMode::kSoftmax
                              ? log_sum_exp(memory.search, memory.sorted, selection.marginals,
                                            selection.threshold, selection.lengths.longest)
                              : 0.0F;
      if (lane == 0) {
        shared_shift = shift;
      }
    }
    B::sync();
    emit_rows<kWarps>(args, emit, memory.search, selection,
                      Candidates<Count>{emit.candidates, num_candidates, best_columns, num_best});
    B::sync();
    const float shift = shared_shift;
    for (int k = static_cast<int>(threadIdx.x); k < args.top_k; k += kWarps * kWarp) {
      csr_args.routing.expert_ids[token * args.top_k + k] = emit.ids[k];
      csr_args.routing.gates[token * args.top_k + k] = gate_of(args, emit.scores[k], shift);
    }
    B::sync();
  }
}

}  // namespace moescope::cuda
