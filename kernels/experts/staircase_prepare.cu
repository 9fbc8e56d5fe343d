// What the staircase kernel needs beside strips: a bound of the experts' outputs, once per set of weights,
// and before every batch the sums' exponents and cleared sums.
//
// The bound. A token's output is y[j] = sum over its experts of g_i sigma(x . w_i) V[i][j]. All three sigma
// satisfy |sigma(s)| <= |s|, and |x . w_i| <= |x|_2 |w_i|_2, so
//   |y[j]| <= (sum g_i) |x|_2 max_i (|w_i|_2 |V_i|_inf),
// and the same holds for every partial sum over some of the experts. The kernel's gates are positive and add
// up to 1; what gates `probability` add up to, maybe 1e-5, the output is multiplied with at the end
// (DeviceStrips). kMargin covers the rounding of P to bf16 (2^-8), of gates and norms, and sigma's
// approximation. exponent_t is the largest integer with bound * 2^exponent_t <= 2^kLimit. In fp16 (kLimit 15)
// nothing can overflow, whatever the order of additions; in int32 (kLimit 30) wrap-around cannot reach the
// final value.
//
// Resolution. With x ~ N(0, 1), W, V ~ N(0, 1/d), d = 1024, K = 512 the bound is some 2^13 times the root
// mean square of y: a fixed-point step is 2^-17 of it, and the 20 roundings of a token's strips add 2^-16.
// fp16 keeps 11 bits of every partial sum above 2^-14: 20 additions add some 5e-4. Both lie below P's own
// rounding to bf16, 1.7e-3.
#include <cuda_bf16.h>

#include <cstddef>

#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kWarps = 8;
constexpr float kMargin = 1.0625F;
constexpr int kLimitF16 = 15;      // fp16 ends just below 2^16
constexpr int kLimitFixed = 30;    // int32 at 2^31
constexpr int kMaxExponent = 100;  // 2^exponent and its inverse stay normal in fp32

template <class Combine>
__device__ __forceinline__ float over_warp(float value, const Combine& combine) {
  for (int step = 16; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(~0U, value, step));
  }
  return value;
}

/// Combination of f(element) over a row of bf16, by one warp; d is a multiple of 8.
template <class Map, class Combine>
__device__ __forceinline__ float over_row(const __nv_bfloat16* row, int count, int lane, const Map& map,
                                          const Combine& combine) {
  float result = 0;
  for (int i = lane * 8; i < count; i += 32 * 8) {
    const uint4 piece = *reinterpret_cast<const uint4*>(row + i);
    for (const unsigned word : {piece.x, piece.y, piece.z, piece.w}) {
      result = combine(result, map(__uint_as_float(word << 16U)));
      result = combine(result, map(__uint_as_float(word & 0xffff0000U)));
    }
  }
  return over_warp(result, combine);
}

__device__ __forceinline__ float squared_norm(const __nv_bfloat16* row, int count, int lane) {
  return over_row(
      row, count, lane, [](float x) { return x * x; }, [](float a, float b) { return a + b; });
}

__global__ void __launch_bounds__(32 * kWarps)
    expert_bound(const __nv_bfloat16* __restrict__ w_in, const __nv_bfloat16* __restrict__ w_out,
                 std::int64_t num_experts, int hidden_size, float* bound) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest = 0;
  for (std::int64_t expert = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; expert < num_experts;
       expert += std::int64_t{gridDim.x} * kWarps) {
    const float norm = sqrtf(squared_norm(w_in + expert * hidden_size, hidden_size, lane));
    const float peak = over_row(
        w_out + expert * hidden_size, hidden_size, lane, [](float x) { return fabsf(x); },
        [](float a, float b) { return fmaxf(a, b); });
    largest = fmaxf(largest, norm * peak);
  }
  if (lane == 0) {
    atomicMax(reinterpret_cast<int*>(bound),
              __float_as_int(largest));  // non-negative floats order as integers
  }
}

/// One warp per token.
__global__ void __launch_bounds__(32 * kWarps)
    staircase_prepare(const __nv_bfloat16* __restrict__ x, const float* __restrict__ bound,
                      std::int64_t num_tokens, int hidden_size, int limit, int sum_bytes, std::byte* sums,
                      std::int32_t* exponents, std::int32_t* next_tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *next_tile = 0;
  }
  if (token >= num_tokens) {
    return;
  }
  const std::int64_t row_bytes = std::int64_t{hidden_size} * sum_bytes;
  for (std::int64_t i = lane * 16; i < row_bytes; i += 32 * 16) {
    *reinterpret_cast<uint4*>(sums + token * row_bytes + i) = make_uint4(0, 0, 0, 0);
  }
  const float largest = kMargin * *bound * sqrtf(squared_norm(x + token * hidden_size, hidden_size, lane));
  if (lane == 0) {
    int power = limit;  // largest < 2^power; of a token that adds nothing any will do
    if (largest > 0 && largest <= 3.0e38F) {
      (void)frexpf(largest, &power);
    }
    exponents[token] = min(max(limit - power, -kMaxExponent), kMaxExponent);
  }
}

}  // namespace

std::int64_t staircase_sums_bytes(const LayerShape& shape, StaircaseSums kind) {
  return shape.num_tokens * shape.hidden_size * (kind == StaircaseSums::kFp16 ? 2 : 4);
}

void launch_expert_bound(const LayerShape& shape, const DeviceWeights& weights, float* bound,
                         cudaStream_t stream) {
  const std::int64_t max_blocks = 8 * current_gpu().num_sms;  // a wave; the rest by stride
  const std::int64_t blocks = std::min((shape.num_experts() + kWarps - 1) / kWarps, max_blocks);
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(bound, 0, sizeof(float), stream));
  expert_bound<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(weights.w_in), static_cast<const __nv_bfloat16*>(weights.w_out),
      shape.num_experts(), static_cast<int>(shape.hidden_size), bound);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_staircase_prepare(const LayerShape& shape, const void* hidden_states, const float* bound,
                              DeviceStrips strips, StaircaseOutput output, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  const bool fp16 = output.kind == StaircaseSums::kFp16;
  const std::int64_t blocks = (shape.num_tokens + kWarps - 1) / kWarps;
  staircase_prepare<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(hidden_states), bound, shape.num_tokens,
      static_cast<int>(shape.hidden_size), fp16 ? kLimitF16 : kLimitFixed, fp16 ? 2 : 4,
      static_cast<std::byte*>(output.sums), output.exponents, strips.counts + 2);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
