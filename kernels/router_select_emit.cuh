#pragma once

#include <cstdint>

#include "kernels/block_ops.cuh"
#include "kernels/router_select_threshold.cuh"

/// Writing a token's selected pairs in id order, once the threshold is known.
namespace moescope::cuda {

/// Rows that take at most this many columns read their ids from a table instead of searching all candidates.
inline constexpr int kTableRow = 16;

/// Entry [n - 1][x]: x-th by id of the n best columns. Unusable when scores tie among the best columns.
struct BestColumns {
  float value[kTableRow];
  int ids[kTableRow];
  int table[kTableRow][kTableRow];
  bool usable;
};

/// One warp fills the table. best.value holds the largest p_c, descending; candidates ascend by id.
__device__ inline void fill_table(BestColumns& best, const float* col_p, const int* candidates,
                                  int num_candidates, int cols) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned lower_lanes = (1U << lane) - 1;
  const int count = min(min(kTableRow, cols), num_candidates);
  int found = 0;
  for (int first = 0; first < num_candidates; first += kWarp) {
    const int j = first + lane < num_candidates ? candidates[first + lane] : 0;
    const bool good = first + lane < num_candidates && col_p[j] >= best.value[count - 1];
    const unsigned mask = __ballot_sync(kAllLanes, good);
    const int at = found + __popc(mask & lower_lanes);
    if (good && at < kTableRow) {
      best.ids[at] = j;
    }
    found += __popc(mask);
  }
  __syncwarp();
  const int id = lane < count ? best.ids[lane] : 0;
  int rank = kTableRow;
  if (lane < count) {
    rank = 0;
    for (int k = 0; k < count; ++k) {
      rank += best.value[k] > col_p[id] ? 1 : 0;
    }
  }
  bool distinct = found == count;
  for (int n = 1; n <= count; ++n) {
    const unsigned members = __ballot_sync(kAllLanes, rank < n);
    distinct = distinct && __popc(members) == n;
    if (rank < n) {
      best.table[n - 1][__popc(members & lower_lanes)] = id;
    }
  }
  if (lane == 0) {
    best.usable = distinct;
  }
}

/// Writes the pairs of one token in id order. Groups of lanes take short rows from the table, warps the
/// others by a search through the candidates.
template <int kThreads>
__device__ void emit(const SelectArguments& args, std::int64_t token, Threshold threshold, const float* row_p,
                     const float* col_p, const BestColumns& best, const int* candidates, int num_candidates,
                     const int* active_rows, int num_active, const int* sure_count, const int* offsets,
                     float reference, float scale) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned lower_lanes = (1U << lane) - 1;
  std::int32_t* const ids = args.expert_ids + token * args.top_k;
  float* const gates = args.gates + token * args.top_k;
  const auto end_of = [&](int i) { return i + 1 < args.rows ? offsets[i + 1] : args.top_k; };
  const int longest_in_table = best.usable && threshold.sure == threshold.tie ? kTableRow : 0;

  constexpr int kGroup = 8;
  for (int a = static_cast<int>(threadIdx.x) / kGroup; a < num_active; a += kThreads / kGroup) {
    const int i = active_rows[a];
    const int begin = offsets[i];
    const int length = end_of(i) - begin;
    for (int x = lane % kGroup; x < length && length <= longest_in_table; x += kGroup) {
      const int j = best.table[length - 1][x];
      ids[begin + x] = i * args.cols + j;
      gates[begin + x] = expf(row_p[i] + col_p[j] - reference) * scale;
    }
  }

  for (int a = static_cast<int>(threadIdx.x) / kWarp; a < num_active; a += Block<kThreads>::kWarps) {
    const int i = active_rows[a];
    int next = offsets[i];
    const int end = end_of(i);
    if (end - next <= longest_in_table) {
      continue;
    }
    const int ties_wanted = end - next - sure_count[i];
    int ties_seen = 0;
    for (int first = 0; next < end && first < num_candidates; first += kWarp) {
      const int c = first + lane;
      const int j = c < num_candidates ? candidates[c] : 0;
      const float score = c < num_candidates ? row_p[i] + col_p[j] : -INFINITY;
      bool take = c < num_candidates && score >= threshold.sure;
      if (ties_wanted > 0) {
        const bool tie = c < num_candidates && !take && score >= threshold.tie;
        const unsigned ties = __ballot_sync(kAllLanes, tie);
        take = take || (tie && ties_seen + __popc(ties & lower_lanes) < ties_wanted);
        ties_seen += __popc(ties);
      }
      const unsigned taken = __ballot_sync(kAllLanes, take);
      if (take) {
        const int at = next + __popc(taken & lower_lanes);
        ids[at] = i * args.cols + j;
        gates[at] = expf(score - reference) * scale;
      }
      next += __popc(taken);
    }
  }
}

/// Indices in [0, count) for which `keep` holds, ascending; returns their number.
template <int kThreads, class Keep>
__device__ int compact(int count, int* out, Keep keep) {
  int kept = 0;
  for (int first = 0; first < count; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const bool keeps = i < count && keep(i);
    int total;
    const int rank = Block<kThreads>::inclusive_scan(keeps ? 1 : 0, total);
    if (keeps) {
      out[kept + rank - 1] = i;
    }
    kept += total;
  }
  Block<kThreads>::sync();
  return kept;
}

}  // namespace moescope::cuda
