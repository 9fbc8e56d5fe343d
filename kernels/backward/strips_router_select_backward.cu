// Stage router_select_backward on strips: from what dgrad left, with A_t[r] the sum of h over the token's
// pairs of row r, B_t[r] the sum of gates there and D_t the sum of all h,
//   gates `softmax`:     da_t[r] = A_t[r] - D_t B_t[r]
//   gates `probability`: da_t[r] = A_t[r] - D_t softmax(a_t)[r]
// and columns likewise. A block to a token. A row that the token takes as a strip has its sums from the strip
// itself (dgrad's h_sums and gate_sums); of any other row the pairs lie in column strips, one each. Columns
// likewise, but for the pairs that row strips hold. Gates across strips are worked out once more from the
// log-probabilities, as a product of the row's part and the column's. Everything is added in a fixed order.
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

constexpr int kThreads = 320;  ///< two of a token's rows or columns each, at a grid of 320 x 320 all of them
constexpr int kStaged = 256;
constexpr std::int64_t kMostShared = 40 * 1024;

struct SelectBackwardArguments {
  DeviceStrips strips;
  StripsOrder order;
  const __nv_bfloat16* h;
  const float* h_sums;
  const float* gate_sums;
  float* gradient;
  float* workspace;  ///< [L, 2, Nr+Nc]; null: shared memory holds a token's sums
  std::int64_t pitch;
  int segments;  ///< of the longer kind of strip
  int segment_experts;
  int grid_rows;
  int grid_cols;
  int max_cover;
};

/// A strip of the token's cover.
struct alignas(16) CoverStrip {
  float own;           ///< its log-probability
  float share;         ///< its part of gates
  std::int32_t entry;  ///< row of h
  std::int32_t last;   ///< experts up to this place count at the threshold
};

/// Two neighbouring rows or columns of a token: sums across strips.
template <bool kSoftmax>
struct AcrossStrips {
  float own[2];
  float h[2];
  float gates[2];

  __device__ __forceinline__ void add(const CoverStrip& strip, std::uint32_t values, float threshold,
                                      int place) {
    h[0] += __uint_as_float(values << 16U);
    h[1] += __uint_as_float(values & 0xffff0000U);
    if constexpr (kSoftmax) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = own[i] + strip.own;
        const bool selected = sum > threshold || (sum == threshold && place + i <= strip.last);
        gates[i] += selected ? strip.share : 0.0F;
      }
    }
  }
};

template <bool kSoftmax>
__global__ void __launch_bounds__(kThreads)
    strips_router_select_backward(const SelectBackwardArguments args) {
  extern __shared__ float shared_sums[];
  __shared__ CoverStrip staged[kStaged];
  __shared__ int row_strips;  // of the cover, which lists them first
  const std::int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = args.grid_rows;
  const int cols = args.grid_cols;
  const int both = rows + cols;
  const DeviceStrips& strips = args.strips;
  const std::int32_t* const cover = strips.cover + token * args.max_cover;
  const std::int32_t* const entries = args.order.entries + token * args.max_cover;
  const float* const row_p = strips.row_log_probs + token * rows;
  const float* const open_p = strips.uncovered_rows + token * rows;
  const float* const col_p = strips.col_log_probs + token * cols;
  float* const h_sums = args.workspace == nullptr ? shared_sums : args.workspace + token * 2 * both;
  float* const g_sums = h_sums + both;
  if (thread == 0) {
    row_strips = 0;
  }
  wait_for_predecessor();
  const int size = strips.cover_sizes[token];
  const float threshold = strips.threshold[token];
  const std::int32_t limit = strips.tie_limit[token];
  // Half of it to either part: no part overflows, because a token's best score is at least -log(N).
  const float half_shift = 0.5F * strips.gate_shift[token];
  const int row_pairs = (rows + 1) / 2;
  const int pairs = row_pairs + (cols + 1) / 2;

  for (int base = 0; base == 0 || base < size; base += kStaged) {
    const int here = min(size - base, kStaged);
    __syncthreads();
    for (int e = thread; e < here; e += kThreads) {
      const int strip = cover[base + e];
      const bool is_row = strip < rows;
      const int index = is_row ? strip : strip - rows;
      const float own = is_row ? row_p[index] : col_p[index];
      const std::int32_t last = is_row ? limit - index * cols : limit >= index ? (limit - index) / cols : -1;
      staged[e] = {own, __expf(own - half_shift), entries[base + e], last};
      if (is_row && (base + e + 1 == size || cover[base + e + 1] >= rows)) {
        row_strips = base + e + 1;
      }
    }
    __syncthreads();
    // Until the last row strip has been seen, all that is staged is row strips.
    const int split = min(max((row_strips > 0 || cover[base] >= rows ? row_strips : size) - base, 0), here);
    for (int i = thread; i < pairs; i += kThreads) {
      const bool is_row = i < row_pairs;
      const int place = 2 * (is_row ? i : i - row_pairs);
      const int length = is_row ? rows : cols;
      const int at = (is_row ? 0 : rows) + place;
      const bool second = place + 1 < length;
      const float* const log_p = is_row ? open_p : col_p;
      AcrossStrips<kSoftmax> sums{{log_p[place], second ? log_p[place + 1] : 0.0F}, {0, 0}, {0, 0}};
      const __nv_bfloat16* const h = args.h + place;
      const int end = is_row ? here : split;
#pragma unroll 5
      for (int e = is_row ? split : 0; e < end; ++e) {
        const CoverStrip strip = staged[e];
        sums.add(strip, *reinterpret_cast<const std::uint32_t*>(h + strip.entry * args.pitch), threshold,
                 place);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (k == 0 || second) {
          const float gates = kSoftmax ? sums.gates[k] * __expf(sums.own[k] - half_shift) : 0.0F;
          h_sums[at + k] = base == 0 ? sums.h[k] : h_sums[at + k] + sums.h[k];
          g_sums[at + k] = base == 0 ? gates : g_sums[at + k] + gates;
        }
      }
    }
  }
  __syncthreads();

  // Along strips.
  for (int e = thread; e < size; e += kThreads) {
    const int strip = cover[e];
    const int length = strip < rows ? cols : rows;
    const int segments = (length + args.segment_experts - 1) / args.segment_experts;
    const std::int64_t first = std::int64_t{entries[e]} * args.segments;
    float h = 0;
    float gates = 0;
    for (int segment = 0; segment < segments; ++segment) {
      h += args.h_sums[first + segment];
      gates += kSoftmax ? args.gate_sums[first + segment] : 0.0F;
    }
    h_sums[strip] += h;
    g_sums[strip] += gates;
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
      .gate_sums = pairs.gate_sums,
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
