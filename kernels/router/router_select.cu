// Stage router_select (paper eqs. 10-11) as a sorted CSR: per token the exact top K of S[i,j] = p_r[i] +
// p_c[j] (p: log-softmax of the logits; the fp32 sum is the score), ties to the lower expert id, emitted in
// id order with gates.
//
// What router_select_token.cuh finds, the number of columns of every row, says all: rows
// of equal length select the same columns, and K pairs have at most sqrt(2 K) different lengths. So the
// columns of each length are listed once, in id order, and then every lane works out its own pairs: the row
// from a bit per pair that starts a row, the column from the list of the row's length. Only the row where
// ties run out may differ from its length's list. One warp does all that for a token; few tokens are written
// another way (router_select_rows.cuh).
#include "core/tiling/selection_form.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/router/router_select_csr.cuh"
#include "kernels/router/router_select_rows.cuh"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

/// The row lengths that occur, ascending, to `lengths`; returns how many: at most sqrt(2 K).
template <class Count>
__device__ int list_lengths(const int* histogram, int longest, Count* lengths) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int count = 0;
#pragma unroll 1
  for (int first = 1; first <= longest; first += kWarp) {
    const int length = first + lane;
    const bool occurs = length <= longest && histogram[length] > 0;
    const unsigned mask = __ballot_sync(kAllLanes, occurs);
    if (occurs) {
      lengths[count + __popc(mask & ((1U << lane) - 1))] = static_cast<Count>(length);
    }
    count += __popc(mask);
  }
  __syncwarp();
  return count;
}

/// For every row length that occurs, a list of its columns in id order. histogram[length] becomes the list's
/// place in the table. A lane makes one list at a time. The lengths stand in emit.starts meanwhile.
template <class Count>
__device__ void list_columns(const EmitMemory<Count>& emit, int num_candidates, const float* sorted,
                             int* histogram, int longest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* const lengths = reinterpret_cast<Count*>(emit.starts);
  const int num_lengths = list_lengths(histogram, longest, lengths);
  int used = 0;
#pragma unroll 1
  for (int first = 0; first < num_lengths; first += kWarp) {
    const int length = first + lane < num_lengths ? static_cast<int>(lengths[first + lane]) : 0;
    int total;
    int at = used + Block<kWarp>::inclusive_scan(length, total) - length;
    if (length > 0) {
      histogram[length] = at;
    }
    const float last = length > 0 ? sorted[length - 1] : INFINITY;
    const int end = at + length;  // of a row where ties run out, `last` may admit too many
    constexpr int kAtOnce = 8;    // loads in flight
#pragma unroll 1
    for (int begin = 0; begin < num_candidates; begin += kAtOnce) {
      Count col[kAtOnce];
      float p[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        col[u] = emit.candidates[min(begin + u, num_candidates - 1)];
        p[u] = emit.col_log_probs[col[u]];
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (p[u] >= last && begin + u < num_candidates && at < end) {
          emit.table[at++] = col[u];
        }
      }
    }
    used += total;
  }
  __syncwarp();
}

/// Drops the rows that select nothing. For the others the first pair is marked in emit.starts and put into
/// search.probe, and the place of their list into search.above. Returns the first pair of the limit row.
template <class Count>
__device__ int start_rows(const EmitMemory<Count>& emit, const SearchMemory<Count>& search, InPlay in_play,
                          const int* list_of_length, int top_k, const LimitRow& limit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int word = lane; word * kWarp < top_k; word += kWarp) {
    emit.starts[word] = 0;
  }
  __syncwarp();
  int kept = 0;
  int pairs = 0;
  int limit_start = 0;
#pragma unroll 1
  for (int first = 0; first < in_play.rows; first += kWarp) {
    const int i = first + lane;
    const int length = i < in_play.rows ? static_cast<int>(search.probe[i]) : 0;
    const float row = i < in_play.rows ? search.rows[i] : 0.0F;
    const int id = i < in_play.rows ? static_cast<int>(search.row_ids[i]) : 0;
    int total;
    const int start = pairs + Block<kWarp>::inclusive_scan(length, total) - length;
    const unsigned mask = __ballot_sync(kAllLanes, length > 0);  // all have read before any writes
    __syncwarp();
    if (length > 0) {
      const int at = kept + __popc(mask & ((1U << lane) - 1));
      search.rows[at] = row;
      search.row_ids[at] = static_cast<Count>(id);
      search.above[at] = static_cast<Count>(list_of_length[length]);
      search.probe[at] = static_cast<Count>(start);
      atomicOr(&emit.starts[start / kWarp], 1U << (start % kWarp));
    }
    const unsigned limits = __ballot_sync(kAllLanes, length > 0 && id == limit.id);
    limit_start =
        limits != 0 ? __shfl_sync(kAllLanes, start, __ffs(static_cast<int>(limits)) - 1) : limit_start;
    kept += __popc(mask);
    pairs += total;
    __syncwarp();
  }
  return limit_start;
}

/// The pairs of the limit row, whose columns are not its length's best.
template <class Count>
__device__ void emit_limit_row(const EmitMemory<Count>& emit, int num_candidates, const LimitRow& limit,
                               const SelectArguments& args, float threshold, float shift, int start,
                               std::int32_t* ids, float* gates) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int first = 0; first < num_candidates; first += kWarp) {
    const int j = first + lane < num_candidates ? static_cast<int>(emit.candidates[first + lane]) : 0;
    const float score = limit.score + emit.col_log_probs[j];
    const int id = limit.id * args.cols + j;
    const bool takes =
        first + lane < num_candidates && (score > threshold || (score == threshold && id <= limit.tie_id));
    const unsigned mask = __ballot_sync(kAllLanes, takes);
    if (takes) {
      const int at = start + __popc(mask & ((1U << lane) - 1));
      ids[at] = id;
      gates[at] = gate_of(args, score, shift);
    }
    start += __popc(mask);
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(kWarp, kPerLane > 10 ? 8 : 20)
    router_select(const SelectCsrArguments csr_args) {
  extern __shared__ __align__(16) std::byte shared_memory[];
  const SelectArguments& args = csr_args.select;
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned up_to_here = kAllLanes >> (kWarp - 1 - lane);

  begin_dependent<1>();
  for (std::int64_t token = blockIdx.x; token < args.num_tokens; token += gridDim.x) {
    TokenMemory<kPerLane> memory(args, shared_memory);
    const EmitMemory<typename TokenMemory<kPerLane>::Count> emit(memory.rest, csr_args.memory);
    const float* const logits = args.logits + token * (std::int64_t{args.rows} + args.cols);
    std::int32_t* const ids = csr_args.routing.expert_ids + token * args.top_k;
    float* const gates = csr_args.routing.gates + token * args.top_k;
    Selection selection;
    if (!select_token<kPerLane, 1>(args, logits, emit.row_log_probs, emit.col_log_probs, memory,
                                   args.cols + 1, selection)) {
      reject_token<kWarp>(csr_args, token);
      __syncwarp();
      continue;
    }
    const Marginals& marginals = selection.marginals;
    const LimitRow& limit = selection.limit;
    const float threshold = selection.threshold.score;
    // Columns that the best row takes: no row takes others.
    const int num_candidates =
        list_columns_that(emit.col_log_probs, args.cols, emit.candidates,
                          [&](float p) { return marginals.best_row + p >= threshold; });
    list_columns(emit, num_candidates, memory.sorted, memory.lengths, selection.lengths.longest);
    const float shift = args.gate_mode == GateMode::kSoftmax
                            ? log_sum_exp(memory.search, memory.sorted, marginals, selection.threshold,
                                          selection.lengths.longest)
                            : 0.0F;
    __syncwarp();
    const int limit_start =
        start_rows(emit, memory.search, marginals.in_play, memory.lengths, args.top_k, limit);
    if (limit.partial) {
      emit_limit_row(emit, num_candidates, limit, args, threshold, shift, limit_start, ids, gates);
    }
    int rows_before = -1;  // index of the row that the pair before this word belongs to
#pragma unroll 4
    for (int first = 0; first < args.top_k; first += kWarp) {
      const unsigned starts = emit.starts[first / kWarp];
      const int k = first + lane;
      if (k < args.top_k) {
        const int row = rows_before + __popc(starts & up_to_here);
        const int row_id = memory.search.row_ids[row];
        if (!limit.partial || row_id != limit.id) {
          const int j = emit.table[static_cast<int>(memory.search.above[row]) + k -
                                   static_cast<int>(memory.search.probe[row])];
          ids[k] = row_id * args.cols + j;
          gates[k] = gate_of(args, memory.search.rows[row] + emit.col_log_probs[j], shift);
        }
      }
      rows_before += __popc(starts);
    }
    __syncwarp();
  }
}

}  // namespace

std::int64_t router_select_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu) {
  const SelectMemory memory = csr_select_memory(shape, gpu);
  return memory.shared ? 0 : std::min(shape.num_tokens, global_select_blocks(gpu)) * memory.bytes;
}

void launch_router_select(const LayerShape& shape, const float* logits, DeviceRouting routing,
                          std::int64_t* bad_logit, void* workspace, cudaStream_t stream,
                          SelectMarginals marginals) {
  const StageRange range(Stage::kRouterSelect);
  const GpuTraits& gpu = current_gpu();
  SelectCsrArguments args{};
  args.select = select_arguments(shape, csr_select_memory(shape, gpu), marginals, logits, workspace);
  args.memory = csr_memory(shape, args.select.layout.per_lane, gpu);
  args.routing = routing;
  args.bad_logit = reinterpret_cast<unsigned long long*>(bad_logit);
  dispatch_per_lane(
      args.select.layout.per_lane,
      [&](auto per_lane) {
        if (csr_by_eight_warps(shape, gpu)) {
          launch_select<kFewTokensWarps>(router_select_rows<per_lane(), kFewTokensWarps>, args, stream);
        } else {
          launch_select<1>(router_select<per_lane()>, args, stream);
        }
      },
      std::make_index_sequence<kSelectPerLane.size()>());
}

}  // namespace moescope::cuda
