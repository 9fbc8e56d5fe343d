// Stage router_select_backward on strips: from what dgrad left, with A_t[r] the sum of h over the token's
// pairs of row r, B_t[r] the sum of gates there and D_t the sum of all h,
//   gates `softmax`:     da_t[r] = A_t[r] - D_t B_t[r]
//   gates `probability`: da_t[r] = A_t[r] - D_t softmax(a_t)[r]
// and columns likewise. A block to a token. A row that the token takes as a strip has its sum from the strip
// itself (h_sums); of any other row the pairs lie in column strips, one each. Columns likewise, but for the
// pairs that row strips hold. Gates are not kept: they are worked out once more from the log-probabilities.
// Everything is added in a fixed order.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/contract/strips_backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostShared = 48 * 1024;

struct SelectBackwardArguments {
  DeviceStrips strips;
  StripsOrder order;
  const __nv_bfloat16* h;
  const float* h_sums;
  float* gradient;
  float* workspace;  ///< [L, 2, Nr+Nc]; null: shared memory holds a token's sums
  std::int64_t pitch;
  int segments;  ///< of the longer kind of strip
  int segment_experts;
  int grid_rows;
  int grid_cols;
  int max_cover;
};

/// One token's selection.
struct TokenGates {
  float threshold;
  float shift;
  std::int32_t tie_limit;

  /// The gate of the expert `id` whose scores add up to `sum`, of gates that add up to 1; 0 where it is not
  /// selected.
  __device__ __forceinline__ float gate(float sum, std::int32_t id) const {
    const bool selected = sum > threshold || (sum == threshold && id <= tie_limit);
    return selected ? __expf(sum - shift) : 0.0F;
  }
};

__device__ __forceinline__ float sum_over_warp(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(~0U, value, step);
  }
  return value;
}

template <bool kSoftmax>
__global__ void __launch_bounds__(kThreads)
    strips_router_select_backward(const SelectBackwardArguments args) {
  extern __shared__ float shared_sums[];
  __shared__ int row_strips;  // of the cover, which lists them first
  const std::int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int rows = args.grid_rows;
  const int cols = args.grid_cols;
  const int both = rows + cols;
  const DeviceStrips& strips = args.strips;
  const std::int32_t* const cover = strips.cover + token * args.max_cover;
  const std::int32_t* const entries = args.order.entries + token * args.max_cover;
  const float* const row_p = strips.row_log_probs + token * rows;
  const float* const open_p = strips.uncovered_rows + token * rows;
  const float* const col_p = strips.col_log_probs + token * cols;
  wait_for_predecessor();
  const int size = strips.cover_sizes[token];
  float* const h_sums = args.workspace == nullptr ? shared_sums : args.workspace + token * 2 * both;
  float* const g_sums = h_sums + both;
  if (thread == 0) {
    row_strips = 0;
  }
  __syncthreads();
  for (int e = thread; e < size; e += kThreads) {
    if (cover[e] < rows && (e + 1 == size || cover[e + 1] >= rows)) {
      row_strips = e + 1;
    }
  }
  __syncthreads();
  const TokenGates gates{strips.threshold[token], strips.gate_shift[token], strips.tie_limit[token]};

  // Across strips: row r of the column strips, column c of the row strips.
  for (int i = thread; i < both; i += kThreads) {
    const bool is_row = i < rows;
    const int place = is_row ? i : i - rows;
    const int begin = is_row ? row_strips : 0;
    const int end = is_row ? size : row_strips;
    const float own = is_row ? open_p[place] : col_p[place];
    float h = 0;
    float g = 0;
#pragma unroll 4
    for (int e = begin; e < end; ++e) {
      h += __bfloat162float(args.h[entries[e] * args.pitch + place]);
      if constexpr (kSoftmax) {
        const int strip = is_row ? cover[e] - rows : cover[e];
        const float other = is_row ? col_p[strip] : row_p[strip];
        g += gates.gate(own + other, is_row ? place * cols + strip : strip * cols + place);
      }
    }
    h_sums[i] = h;
    g_sums[i] = g;
  }
  __syncthreads();

  // Along strips, a warp to each.
  for (int e = thread / 32; e < size; e += kThreads / 32) {
    const bool is_row = cover[e] < rows;
    const int strip = is_row ? cover[e] : cover[e] - rows;
    const int length = is_row ? cols : rows;
    const int segments = (length + args.segment_experts - 1) / args.segment_experts;
    float h = 0;
    for (int segment = lane; segment < segments; segment += 32) {
      h += args.h_sums[std::int64_t{entries[e]} * args.segments + segment];
    }
    h = sum_over_warp(h);
    float g = 0;
    if constexpr (kSoftmax) {
      const float own = is_row ? row_p[strip] : col_p[strip];
      for (int i = lane; i < length; i += 32) {
        g += gates.gate(own + (is_row ? col_p[i] : open_p[i]), is_row ? strip * cols + i : i * cols + strip);
      }
      g = sum_over_warp(g);
    }
    if (lane == 0) {
      h_sums[cover[e]] += h;
      g_sums[cover[e]] += g;
    }
  }
  __syncthreads();

  float all = 0;  // over rows, which hold every pair once
  for (int i = thread; i < rows; i += kThreads) {
    all += h_sums[i];
  }
  all = Block<kThreads>::sum(all);
  for (int i = thread; i < both; i += kThreads) {
    const float share = kSoftmax ? g_sums[i] : expf(i < rows ? row_p[i] : col_p[i - rows]);
    args.gradient[token * both + i] = fmaf(-all, share, h_sums[i]);
  }
}

std::int64_t token_bytes(const LayerShape& shape) { return 8 * (shape.grid_rows + shape.grid_cols); }

}  // namespace

std::int64_t strips_router_select_backward_workspace_bytes(const LayerShape& shape) {
  return token_bytes(shape) <= kMostShared ? 0 : shape.num_tokens * token_bytes(shape);
}

void launch_strips_router_select_backward(const LayerShape& shape, StripRule rule, DeviceStrips strips,
                                          StripsOrder order, StripsPairs pairs, float* logits_gradient,
                                          void* workspace, cudaStream_t stream) {
  shape.validate();
  const StageRange range(Stage::kRouterSelectBackward);
  const bool in_shared = token_bytes(shape) <= kMostShared;
  const SelectBackwardArguments args{
      .strips = strips,
      .order = order,
      .h = static_cast<const __nv_bfloat16*>(pairs.h),
      .h_sums = pairs.h_sums,
      .gradient = logits_gradient,
      .workspace = in_shared ? nullptr : static_cast<float*>(workspace),
      .pitch = pairs.layout.pitch,
      .segments = static_cast<int>(pairs.layout.segments),
      .segment_experts = static_cast<int>(strip_segment_experts(shape.grid_rows, shape.grid_cols)),
      .grid_rows = static_cast<int>(shape.grid_rows),
      .grid_cols = static_cast<int>(shape.grid_cols),
      .max_cover = static_cast<int>(max_strips_of_token(shape, rule))};
  const auto kernel = shape.gate_mode == GateMode::kSoftmax ? strips_router_select_backward<true>
                                                            : strips_router_select_backward<false>;
  const std::size_t shared_bytes = in_shared ? static_cast<std::size_t>(token_bytes(shape)) : 0;
  launch_dependent(kernel,
                   {.grid = dim3(static_cast<unsigned>(shape.num_tokens)),
                    .block = dim3(kThreads),
                    .shared_bytes = shared_bytes},
                   stream, args);
}

}  // namespace moescope::cuda
