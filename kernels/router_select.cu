// Stage router_select (paper eqs. 10-11): per token the exact top K of S[i,j] = p_r[i] + p_c[j] (p:
// log-softmax of the logits; the fp32 sum is the score), ties to the lower expert id, emitted in id order
// with gates.
//
// Never the N scores. For one row, the number of columns with S >= t is a binary search in the sorted
// columns, because the fp32 sum is monotone in p_c. Their total over the rows is monotone in t, so a
// bisection over the floats, mapped to integers that order alike, ends after at most 32 probes: either with a
// t that exactly K scores reach, or with the K-th score itself, at which ties are resolved by id. Each probe
// narrows every row's own search range, so all of them together cost little more than one full binary search.
// One block per token; its scratch lies in shared memory, or in global memory for grids too large for that.
#include <cfloat>

#include <algorithm>
#include <bit>
#include <string>

#include "kernels/block_ops.cuh"
#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"
#include "kernels/nvtx.hpp"
#include "kernels/router_select_emit.cuh"
#include "kernels/router_select_threshold.cuh"

namespace moescope::cuda {
namespace {

/// Scratch that fits the shared memory of every supported GPU (99 KiB per block on sm_86 and sm_89, more on
/// others: CUDA programming guide, technical specifications per compute capability).
constexpr std::int64_t kMaxSharedBytes = std::int64_t{96} << 10;
constexpr std::int64_t kDefaultSharedBytes = std::int64_t{48} << 10;
/// Columns are sorted padded to a power of two, indexed by int.
constexpr std::int64_t kMaxCols = std::int64_t{1} << 24;
/// Occupancy asked of the compiler: 48 warps per multiprocessor; a block of one warp is held back by the
/// limit of 32 blocks anyway.
template <int kThreads>
inline constexpr int kBlocksPerSm = kThreads == 32 ? 32 : 1536 / kThreads;
/// Blocks in flight when the scratch is global: two per multiprocessor of an H100.
constexpr std::int64_t kGlobalBlocks = 264;

std::int64_t scratch_floats(const LayerShape& shape) {
  const auto sort_length =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(shape.grid_cols)));
  return 4 * shape.grid_rows + shape.grid_cols + sort_length;
}
bool scratch_is_shared(const LayerShape& shape) {
  return scratch_floats(shape) * static_cast<std::int64_t>(sizeof(float)) <= kMaxSharedBytes;
}

/// One warp turns one side's logits into log-softmax p = (s - max) - ln sum exp(s - max); returns max p. The
/// sum's order (lane l takes l, l+32, ...; then halves) is the reference's, whatever kThreads is. `finite` is
/// cleared, and the flat index of the first bad logit noted, when one is NaN or infinite.
__device__ float log_softmax(const float* logits, int count, float* p, std::int64_t flat_index,
                             unsigned long long* bad_logit, bool& finite) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float largest = -FLT_MAX;
  for (int i = lane; i < count; i += kWarp) {
    const float s = logits[i];
    p[i] = s;
    if (!isfinite(s)) {
      finite = false;
      atomicMin(bad_logit, static_cast<unsigned long long>(flat_index + i));
    }
    largest = fmaxf(largest, s);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
  }
  float sum = 0;
  for (int i = lane; i < count; i += kWarp) {
    sum += expf(p[i] - largest);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, offset);
  }
  const float log_sum = logf(sum);
  for (int i = lane; i < count; i += kWarp) {
    p[i] = (p[i] - largest) - log_sum;
  }
  return 0.0F - log_sum;  // what the loop computes for the largest
}

template <int kThreads, bool kSharedScratch>
__global__ void __launch_bounds__(kThreads, kSharedScratch ? kBlocksPerSm<kThreads> : 1)
    router_select(SelectArguments args) {
  using B = Block<kThreads>;
  extern __shared__ float shared_scratch[];
  __shared__ float best[2];  // largest p_r and p_c
  __shared__ BestColumns best_columns;
  float* const scratch =
      kSharedScratch ? shared_scratch : args.scratch + std::int64_t{blockIdx.x} * args.scratch_floats;
  float* const row_p = scratch;
  float* const col_p = row_p + args.rows;
  float* const sorted = col_p + args.cols;  // then the prefix sums of its exponentials, then the candidates
  int* const counts = reinterpret_cast<int*>(sorted + args.sort_length);

  for (std::int64_t token = blockIdx.x; token < args.num_tokens; token += gridDim.x) {
    B::sync();  // the previous token is done with the scratch
    const std::int64_t flat = token * (std::int64_t{args.rows} + args.cols);
    bool finite = true;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (warp == 0) {
      best[0] = log_softmax(args.logits + flat, args.rows, row_p, flat, args.bad_logit, finite);
    }
    if (warp == (B::kWarps > 1 ? 1 : 0)) {
      best[1] = log_softmax(args.logits + flat + args.rows, args.cols, col_p, flat + args.rows,
                            args.bad_logit, finite);
    }
    B::sync();
    const float row_max = best[0];
    const float col_max = best[1];
    if (B::sum(finite ? 0 : 1) > 0) {
      // Later kernels of the layer still run before the host sees the flag: give them a valid routing.
      for (int k = static_cast<int>(threadIdx.x); k < args.top_k; k += kThreads) {
        args.expert_ids[token * args.top_k + k] = k;
        args.gates[token * args.top_k + k] = 0;
      }
      continue;
    }
    B::sync();
    for (int j = static_cast<int>(threadIdx.x); j < args.sort_length; j += kThreads) {
      sorted[j] = j < args.cols ? col_p[j] : -INFINITY;
    }
    B::sync();
    sort_descending<kThreads>(sorted, args.sort_length);

    int* sure_count = counts;
    int* offsets = counts + args.rows;
    int* active_rows = counts + 2 * args.rows;
    const Threshold threshold =
        find_threshold<kThreads>(args, row_p, sorted, row_max, sure_count, offsets, active_rows);
    if (static_cast<int>(threadIdx.x) < min(kTableRow, args.cols)) {
      best_columns.value[threadIdx.x] = sorted[threadIdx.x];
    }
    B::sync();

    // Gates. Softmax: sum over rows of exp(p_r[i]) times the prefix sum of exp(p_c) over its selected
    // columns. All exponents are relative to the largest score, which is always selected.
    float reference = 0;
    float scale = 1;
    if (args.softmax) {
      for (int j = static_cast<int>(threadIdx.x); j < args.cols; j += kThreads) {
        sorted[j] = expf(sorted[j] - col_max);
      }
      B::sync();
      B::template scan_array<false>(sorted, args.cols);
      float sum = 0;
      for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
        const int selected = offsets[i];
        sum += selected > 0 ? expf(row_p[i] - row_max) * sorted[selected - 1] : 0.0F;
      }
      reference = row_max + col_max;
      scale = 1 / B::sum(sum);
    }
    B::sync();
    B::template scan_array<true>(offsets, args.rows);

    // Columns that the best row does not take, no row takes.
    int* const candidates = reinterpret_cast<int*>(sorted);
    const int num_candidates =
        compact<kThreads>(args.cols, candidates, [&](int j) { return row_max + col_p[j] >= threshold.tie; });
    const int num_active = compact<kThreads>(args.rows, active_rows, [&](int i) {
      return (i + 1 < args.rows ? offsets[i + 1] : args.top_k) > offsets[i];
    });
    if (warp == 0) {
      fill_table(best_columns, col_p, candidates, num_candidates, args.cols);
    }
    B::sync();
    emit<kThreads>(args, token, threshold, row_p, col_p, best_columns, candidates, num_candidates,
                   active_rows, num_active, sure_count, offsets, reference, scale);
  }
}

template <int kThreads>
void launch(const SelectArguments& args, cudaStream_t stream) {
  if (args.scratch != nullptr) {
    const auto blocks = static_cast<unsigned>(std::min(args.num_tokens, kGlobalBlocks));
    router_select<kThreads, false><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    const std::int64_t bytes = args.scratch_floats * static_cast<std::int64_t>(sizeof(float));
    if (bytes > kDefaultSharedBytes) {
      MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(router_select<kThreads, true>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(bytes)));
    }
    const auto blocks = static_cast<unsigned>(std::min(args.num_tokens, std::int64_t{1} << 30));
    router_select<kThreads, true><<<blocks, kThreads, static_cast<std::size_t>(bytes), stream>>>(args);
  }
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

std::int64_t router_select_workspace_bytes(const LayerShape& shape) {
  return scratch_is_shared(shape) ? 0
                                  : std::min(shape.num_tokens, kGlobalBlocks) * scratch_floats(shape) *
                                        static_cast<std::int64_t>(sizeof(float));
}

void launch_router_select(const LayerShape& shape, const float* logits, DeviceRouting routing,
                          std::int64_t* bad_logit, void* workspace, cudaStream_t stream) {
  const StageRange range(Stage::kRouterSelect);
  if (shape.grid_cols > kMaxCols) {
    throw InvalidArgument("grid_cols", std::to_string(shape.grid_cols),
                          fmt::format("at most {} on the GPU", kMaxCols));
  }
  MOESCOPE_CUDA_CHECK(
      cudaMemsetAsync(bad_logit, 0xff, sizeof *bad_logit, stream));  // -1; as unsigned the largest
  SelectArguments args{};
  args.num_tokens = shape.num_tokens;
  args.rows = static_cast<int>(shape.grid_rows);
  args.cols = static_cast<int>(shape.grid_cols);
  args.sort_length = static_cast<int>(std::bit_ceil(static_cast<unsigned>(args.cols)));
  args.top_k = static_cast<int>(shape.top_k);
  args.softmax = shape.gate_mode == GateMode::kSoftmax;
  args.logits = logits;
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.bad_logit = reinterpret_cast<unsigned long long*>(bad_logit);
  args.scratch = scratch_is_shared(shape) ? nullptr : static_cast<float*>(workspace);
  args.scratch_floats = scratch_floats(shape);
  // Measured on an H100 (N = 320^2 and 64^2): few tokens are bound by one token's latency, which more threads
  // shorten; many are bound by instructions, of which fewer threads waste less. Large grids have more to
  // share.
  constexpr std::int64_t kFewTokens = 264;
  constexpr std::int64_t kManyTokens = 2048;
  constexpr int kSmallGrid = 64;
  constexpr int kLargeGrid = 1024;
  if (shape.num_tokens <= kFewTokens || args.sort_length > kLargeGrid) {
    launch<512>(args, stream);
  } else if (args.sort_length <= kSmallGrid && shape.num_tokens >= kManyTokens) {
    launch<32>(args, stream);
  } else if (shape.num_tokens >= kManyTokens) {
    launch<64>(args, stream);
  } else {
    launch<128>(args, stream);
  }
}

}  // namespace moescope::cuda
