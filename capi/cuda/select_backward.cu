// With g the scores' gradients of a token: of row r the sum over its pairs less, behind a log-softmax,
// softmax[r] times the sum of all; columns likewise. A warp has a token, and takes its pairs 32 at a time.
#include "capi/cuda/select_backward.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <cfloat>

#include "kernels/device/block_ops.cuh"
#include "kernels/device/ordered_sums.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "moescope.h"

namespace moescope::capi::gpu {
namespace {

using cuda::kWarp;

constexpr int kMostWarps = 8;
constexpr std::int64_t kSharedBytes = std::int64_t{48} << 10;  // no opt-in

std::int64_t token_bytes(std::int64_t rows, std::int64_t cols) {
  return (rows + cols) * static_cast<std::int64_t>(sizeof(float));
}

/// log of the sum of exp over a side's logits.
__device__ float log_sum_exp(const float* logits, int count, int lane) {
  float largest = -FLT_MAX;
  for (int i = lane; i < count; i += kWarp) {
    largest = fmaxf(largest, logits[i]);
  }
  largest = cuda::warp_max(largest);
  float sum = 0;
  for (int i = lane; i < count; i += kWarp) {
    sum += expf(logits[i] - largest);
  }
  return largest + logf(cuda::warp_sum(sum));
}

/// A token's pairs with their scores, as the gates see them.
struct Token {
  const SelectBackward& call;
  const float* row_logits;
  const float* col_logits;
  std::int64_t first;  ///< pair
  float shift = 0;     ///< what the log-softmax of both sides takes off a score

  __device__ bool pair(std::int64_t k, int& row, int& col, float& score) const {
    if (k >= call.top_k) {
      return false;
    }
    const std::int64_t id = call.wide_ids ? static_cast<const std::int64_t*>(call.ids)[first + k]
                                          : static_cast<const std::int32_t*>(call.ids)[first + k];
    if (id < 0 || id >= call.rows * call.cols) {
      return false;
    }
    row = static_cast<int>(id / call.cols);
    col = static_cast<int>(id - row * call.cols);
    score = row_logits[row] + col_logits[col] - shift;
    return true;
  }
};

/// The gradient of a score, but for what a softmax takes off. `largest`, `sum`: of the softmax.
__device__ float score_gradient(std::int32_t mode, float score, float given, float largest, float sum) {
  switch (mode) {
    case MOESCOPE_GATES_SOFTMAX:
      return expf(score - largest) / sum * given;
    case MOESCOPE_GATES_PROBABILITY:
      return expf(score) * given;
    case MOESCOPE_GATES_RELU:
      return score > 0 ? given : 0.0F;
    default:
      return given;
  }
}

__global__ void __launch_bounds__(kMostWarps* kWarp)
    select_backward(const __grid_constant__ SelectBackward call, bool in_shared) {
  extern __shared__ float shared_sums[];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t at = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (at >= call.tokens) {
    return;
  }
  const auto rows = static_cast<int>(call.rows);
  const auto cols = static_cast<int>(call.cols);
  float* const sums = in_shared ? shared_sums + static_cast<std::ptrdiff_t>(warp) * (rows + cols)
                                : call.sums + at * (rows + cols);
  Token token{call, call.row_logits + at * rows, call.col_logits + at * cols, at * call.top_k};
  float row_lse = 0;
  float col_lse = 0;
  if (call.log_softmax) {
    row_lse = log_sum_exp(token.row_logits, rows, lane);
    col_lse = log_sum_exp(token.col_logits, cols, lane);
    token.shift = row_lse + col_lse;
  }
  const bool softmax = call.gate_mode == MOESCOPE_GATES_SOFTMAX;
  int row = 0;
  int col = 0;
  float score = 0;
  float largest = -FLT_MAX;
  float sum = 0;
  if (softmax) {
    for (std::int64_t k = lane; k < call.top_k; k += kWarp) {
      largest = token.pair(k, row, col, score) ? fmaxf(largest, score) : largest;
    }
    largest = cuda::warp_max(largest);
    for (std::int64_t k = lane; k < call.top_k; k += kWarp) {
      sum += token.pair(k, row, col, score) ? expf(score - largest) : 0.0F;
    }
    sum = cuda::warp_sum(sum);
  }
  float total = 0;
  for (std::int64_t k = lane; k < call.top_k; k += kWarp) {
    if (token.pair(k, row, col, score)) {
      total += score_gradient(call.gate_mode, score, call.gates_gradient[token.first + k], largest, sum);
    }
  }
  total = cuda::warp_sum(total);
  // A softmax over the selected has gradients that add up to nothing, so that what a log-softmax takes off is
  // 0.
  const float taken = call.log_softmax && !softmax ? total : 0.0F;
  for (int i = lane; i < rows + cols; i += kWarp) {
    const float log_p = i < rows ? token.row_logits[i] - row_lse : token.col_logits[i - rows] - col_lse;
    sums[i] = taken == 0.0F ? 0.0F : -taken * expf(log_p);
  }
  __syncwarp();
  for (std::int64_t from = 0; from < call.top_k; from += kWarp) {
    const std::int64_t k = from + lane;
    const bool has = token.pair(k, row, col, score);
    float value = 0;
    if (has) {
      const float given = call.gates_gradient[token.first + k];
      value = score_gradient(call.gate_mode, score, softmax ? given - total : given, largest, sum);
    }
    cuda::add_in_order(sums, has ? row : 0, value, has);
    cuda::add_in_order(sums, has ? rows + col : 0, value, has);
  }
  for (int i = lane; i < rows + cols; i += kWarp) {
    if (i < rows && call.row_gradient != nullptr) {
      call.row_gradient[at * rows + i] = sums[i];
    } else if (i >= rows && call.col_gradient != nullptr) {
      call.col_gradient[at * cols + i - rows] = sums[i];
    }
  }
}

}  // namespace

std::int64_t select_backward_bytes(std::int64_t tokens, std::int64_t rows, std::int64_t cols) {
  return token_bytes(rows, cols) <= kSharedBytes ? 0 : tokens * token_bytes(rows, cols);
}

void launch_select_backward(const SelectBackward& call, const GpuTraits& gpu, cudaStream_t stream) {
  const std::int64_t bytes = token_bytes(call.rows, call.cols);
  const bool in_shared = bytes <= kSharedBytes;
  // Few tokens go one to a block, so that they spread over the device.
  const std::int64_t spread = (call.tokens + 2 * gpu.num_sms - 1) / (2 * gpu.num_sms);
  const std::int64_t warps =
      std::clamp<std::int64_t>(in_shared ? std::min(kSharedBytes / bytes, spread) : spread, 1, kMostWarps);
  const auto blocks = static_cast<unsigned>((call.tokens + warps - 1) / warps);
  select_backward<<<blocks, static_cast<unsigned>(warps * kWarp),
                    in_shared ? static_cast<std::size_t>(warps * bytes) : 0, stream>>>(call, in_shared);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::capi::gpu
