// What the backward on strips needs before a batch: exponents of dX's sums, cleared sums and counters, and
// zeros where wgrad reads past a strip's end.
//
// The bound is the forward's (staircase_prepare.cu) with other symbols. A token's dX is
// sum of q_i w_i[j] with q = gate u act'(z), |u| <= |dy|_2 |v_i|_2 and |act'| <= kSteepest, so
//   |dx[j]| <= (sum gate_i) |dy|_2 kSteepest max_i (|v_i|_2 |w_i|_inf),
// and so is every partial sum. Gates here are the true ones: what those of `probability` add up to is in the
// bound. kMargin covers q's rounding to bf16, of gates, slopes and norms.
//
// wgrad reads a strip's rows of p and q by 32: up to 31 rows of the strips behind it, against zeros of X or
// dY. Those must be finite: rows behind the last entry are cleared, and those where columns' strips begin,
// whose places behind a shorter strip's segments nobody writes.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>

#include "core/base/error.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kWarps = 8;
constexpr float kMargin = 1.0625F;
constexpr float kSteepest = 1.13F;  // gelu; silu has 1.1
constexpr int kLimitF16 = 15;       // fp16 ends just below 2^16
constexpr int kLimitFixed = 30;     // int32 at 2^31
constexpr int kMaxExponent = 100;   // 2^exponent and its inverse stay normal in fp32
constexpr int kReadAhead = 32;

struct PrepareArguments {
  const __nv_bfloat16* dy;
  const float* bound;
  DeviceStrips strips;
  StripsPairs pairs;
  std::byte* sums;
  std::int32_t* exponents;
  std::int64_t num_tokens;
  int hidden_size;
  int grid_rows;
  int num_strips;
  int sum_bytes;
  int limit;
  bool probability_gates;
};

__device__ __forceinline__ float sum_over_warp(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(~0U, value, step);
  }
  return value;
}

__device__ __forceinline__ void clear(std::byte* target, std::int64_t bytes, int thread, int threads) {
  for (std::int64_t i = std::int64_t{thread} * 16; i < bytes; i += std::int64_t{threads} * 16) {
    *reinterpret_cast<uint4*>(target + i) = make_uint4(0, 0, 0, 0);
  }
}

/// kReadAhead rows of p and q from `entry` on.
__device__ __forceinline__ void clear_rows(const StripsPairs& pairs, std::int64_t entry, int thread,
                                           int threads) {
  const std::int64_t row_bytes = pairs.layout.pitch * 2;
  const std::int64_t rows = min(std::int64_t{kReadAhead}, pairs.layout.entries - entry);
  for (void* const matrix : {pairs.p, pairs.q}) {
    clear(static_cast<std::byte*>(matrix) + entry * row_bytes, rows * row_bytes, thread, threads);
  }
}

/// One warp per token; the first blocks clear rows as well.
__global__ void __launch_bounds__(32 * kWarps) strips_backward_prepare(const PrepareArguments args) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + thread / 32;
  wait_for_predecessor();
  if (blockIdx.x == 0 && thread < 2) {
    args.strips.counts[2 + thread] = 0;
  }
  constexpr int kClearing = 8;  // blocks that share the rows
  const int threads = min(kClearing, static_cast<int>(gridDim.x)) * 32 * kWarps;
  if (blockIdx.x < kClearing) {
    const int own = static_cast<int>(blockIdx.x) * 32 * kWarps + thread;
    clear_rows(args.pairs, args.strips.strip_offsets[args.grid_rows], own, threads);
    clear_rows(args.pairs, args.strips.strip_offsets[args.num_strips], own, threads);
  }
  if (token >= args.num_tokens) {
    return;
  }
  const std::int64_t row_bytes = std::int64_t{args.hidden_size} * args.sum_bytes;
  clear(args.sums + token * row_bytes, row_bytes, lane, 32);
  const __nv_bfloat16* const dy = args.dy + token * args.hidden_size;
  float squares = 0;
  for (int i = lane * 8; i < args.hidden_size; i += 32 * 8) {
    const uint4 piece = *reinterpret_cast<const uint4*>(dy + i);
    for (const unsigned word : {piece.x, piece.y, piece.z, piece.w}) {
      const float low = __uint_as_float(word << 16U);
      const float high = __uint_as_float(word & 0xffff0000U);
      squares += low * low + high * high;
    }
  }
  const float norm = sqrtf(sum_over_warp(squares));
  if (lane == 0) {
    const float gates = args.probability_gates ? expf(args.strips.gate_shift[token]) : 1.0F;
    const float largest = kMargin * kSteepest * gates * *args.bound * norm;
    int power = args.limit;  // largest < 2^power; of a token that adds nothing any will do
    if (largest > 0 && largest <= 3.0e38F) {
      (void)frexpf(largest, &power);
    }
    args.exponents[token] = min(max(args.limit - power, -kMaxExponent), kMaxExponent);
  }
}

}  // namespace

void launch_strips_backward_prepare(const LayerShape& shape, const void* dy, const float* bound,
                                    DeviceStrips strips, StripsPairs pairs, StaircaseOutput dx,
                                    cudaStream_t stream) {
  shape.validate();
  const StageRange range(Stage::kExpertsDgrad);
  const bool fp16 = dx.kind == StaircaseSums::kFp16;
  const PrepareArguments args{.dy = static_cast<const __nv_bfloat16*>(dy),
                              .bound = bound,
                              .strips = strips,
                              .pairs = pairs,
                              .sums = static_cast<std::byte*>(dx.sums),
                              .exponents = dx.exponents,
                              .num_tokens = shape.num_tokens,
                              .hidden_size = static_cast<int>(shape.hidden_size),
                              .grid_rows = static_cast<int>(shape.grid_rows),
                              .num_strips = static_cast<int>(shape.grid_rows + shape.grid_cols),
                              .sum_bytes = fp16 ? 2 : 4,
                              .limit = fp16 ? kLimitF16 : kLimitFixed,
                              .probability_gates = shape.gate_mode == GateMode::kProbability};
  const std::int64_t blocks = ceil_div(shape.num_tokens, std::int64_t{kWarps});
  launch_dependent(strips_backward_prepare,
                   {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(32 * kWarps)}, stream, args);
}

}  // namespace moescope::cuda
