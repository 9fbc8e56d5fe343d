#include "capi/cuda/pairs.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "kernels/device/block_ops.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "moescope.h"

namespace moescope::capi::gpu {
namespace {

using cuda::Block;
using cuda::kWarp;

constexpr int kThreads = 256;
constexpr std::int64_t kMostSharedKeys = 4096;  // 32 KiB: no opt-in

std::int64_t keys_of(std::int64_t top_k) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(top_k)));
}
std::int64_t order_blocks(std::int64_t tokens, std::int64_t top_k, const GpuTraits& gpu) {
  constexpr std::int64_t kMostBlocks = std::int64_t{1} << 30;
  return std::min(tokens, keys_of(top_k) <= kMostSharedKeys ? kMostBlocks : 2 * gpu.num_sms);
}

__global__ void __launch_bounds__(kThreads)
    pack_logits(std::int64_t count, std::int64_t rows, std::int64_t cols,
                const float* __restrict__ row_logits, const float* __restrict__ col_logits,
                float* __restrict__ logits, std::int64_t* bad_logit, unsigned* cleared,
                std::int64_t cleared_count) {
  const std::int64_t width = rows + cols;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t token = i / width;
    const std::int64_t at = i - token * width;
    logits[i] = at < rows ? row_logits[token * rows + at] : col_logits[token * cols + at - rows];
  }
  for (std::int64_t i = first; i < cleared_count; i += std::int64_t{gridDim.x} * kThreads) {
    cleared[i] = 0;
  }
  if (first == 0) {
    *bad_logit = -1;
  }
}

/// What log_softmax() of kernels/router/ takes off a side's logits, in its order: the scores here are then
/// the same bits as those that were selected by.
struct Shift {
  float largest = 0;
  float log_sum = 0;

  __device__ float marginal(float logit, bool log_softmax) const {
    return log_softmax ? (logit - largest) - log_sum : logit;
  }
};
__device__ Shift shift_of(const float* logits, int count, bool& finite) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Shift shift;
  shift.largest = -FLT_MAX;
  for (int i = lane; i < count; i += kWarp) {
    finite = finite && isfinite(logits[i]);
    shift.largest = fmaxf(shift.largest, logits[i]);
  }
  shift.largest = cuda::warp_max(shift.largest);
  float sum = 0;
  for (int i = lane; i < count; i += kWarp) {
    sum += expf(logits[i] - shift.largest);
  }
  shift.log_sum = logf(cuda::warp_sum(sum));
  return shift;
}

__device__ void sort_ascending(std::uint64_t* keys, int length) {
  for (int size = 2; size <= length; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < length / 2; pair += kThreads) {
        const int i = 2 * pair - (pair & (stride - 1));
        const std::uint64_t a = keys[i];
        const std::uint64_t b = keys[i + stride];
        if ((a > b) == ((i & size) == 0)) {
          keys[i] = b;
          keys[i + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

__device__ float gate_of(std::int32_t mode, float score, float largest, float sum) {
  switch (mode) {
    case MOESCOPE_GATES_SOFTMAX:
      return expf(score - largest) / sum;
    case MOESCOPE_GATES_PROBABILITY:
      return expf(score);
    case MOESCOPE_GATES_RELU:
      return fmaxf(score, 0.0F);
    default:
      return score;
  }
}

/// A block a token. Keys: the score's bits turned so that larger scores come first, then the id.
__global__ void __launch_bounds__(kThreads) order_pairs(const OrderPairs args, std::int64_t length) {
  extern __shared__ std::uint64_t shared_keys[];
  __shared__ Shift shifts[2];
  __shared__ int not_finite;
  std::uint64_t* const keys =
      args.sort_space != nullptr ? args.sort_space + blockIdx.x * length : shared_keys;
  const int thread = static_cast<int>(threadIdx.x);
  const auto rows = static_cast<int>(args.rows);
  const auto cols = static_cast<int>(args.cols);
  const auto top_k = static_cast<int>(args.top_k);
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + thread; i < args.cleared_count;
       i += std::int64_t{gridDim.x} * kThreads) {
    args.cleared[i] = 0;
  }
  for (std::int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x) {
    const float* const logits = args.logits + token * (args.rows + args.cols);
    if (thread == 0) {
      not_finite = 0;
    }
    __syncthreads();
    if (thread < 2 * kWarp) {
      const int side = thread / kWarp;
      bool finite = true;
      const Shift shift = shift_of(side == 0 ? logits : logits + rows, side == 0 ? rows : cols, finite);
      if (!finite) {
        not_finite = 1;
      }
      if (thread % kWarp == 0) {
        shifts[side] = shift;
      }
    }
    __syncthreads();
    const std::int64_t first = token * args.top_k;
    for (int k = thread; k < length; k += kThreads) {
      std::uint64_t key = ~std::uint64_t{0};
      if (k < top_k) {
        const std::int32_t id = args.selected[first + k];
        const float row = shifts[0].marginal(logits[id / cols], args.log_softmax);
        const float col = shifts[1].marginal(logits[rows + id % cols], args.log_softmax);
        const float score = (row + col) + 0.0F;  // -0 and 0 are equal scores
        key = std::uint64_t{~cuda::to_key(score)} << 32 | static_cast<std::uint32_t>(id);
      }
      keys[k] = key;
    }
    __syncthreads();
    sort_ascending(keys, static_cast<int>(length));
    const auto score_at = [&](int k) { return cuda::from_key(~static_cast<std::uint32_t>(keys[k] >> 32)); };
    const float largest = score_at(0);
    float sum = 0;
    if (args.gate_mode == MOESCOPE_GATES_SOFTMAX) {
      for (int k = thread; k < top_k; k += kThreads) {
        sum += expf(score_at(k) - largest);
      }
      sum = Block<kThreads>::sum(sum);
    }
    for (int k = thread; k < top_k; k += kThreads) {
      const auto id = static_cast<std::int32_t>(keys[k] & 0xffffffffU);
      const float score = score_at(k);
      if (args.wide_ids) {
        static_cast<std::int64_t*>(args.ids)[first + k] = id;
      } else {
        static_cast<std::int32_t*>(args.ids)[first + k] = id;
      }
      args.gates[first + k] =
          not_finite != 0 ? __int_as_float(0x7fffffff) : gate_of(args.gate_mode, score, largest, sum);
      if (args.scores != nullptr) {
        args.scores[first + k] = score;
      }
      if (args.narrow_ids != nullptr) {
        args.narrow_ids[first + k] = id;
      }
    }
    __syncthreads();  // keys and shifts are written next
  }
}

__global__ void __launch_bounds__(kThreads) take_pairs(const TakePairs args) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t i = first; i < args.pairs; i += stride) {
    const std::int64_t id = args.wide_ids ? static_cast<const std::int64_t*>(args.ids)[i]
                                          : static_cast<const std::int32_t*>(args.ids)[i];
    const bool inside = id >= 0 && id < args.experts;
    args.narrow_ids[i] = inside ? static_cast<std::int32_t>(id) : 0;
    args.checked_gates[i] = inside ? args.gates[i] : __int_as_float(0x7fffffff);
  }
  for (std::int64_t i = first; i < args.cleared_count; i += stride) {
    args.cleared[i] = 0;
  }
}

unsigned blocks_for(std::int64_t count) {
  constexpr std::int64_t kMost = 4096;  // the kernels loop
  return static_cast<unsigned>(std::clamp<std::int64_t>((count + kThreads - 1) / kThreads, 1, kMost));
}

}  // namespace

void launch_pack_logits(std::int64_t tokens, std::int64_t rows, std::int64_t cols, const float* row_logits,
                        const float* col_logits, float* logits, std::int64_t* bad_logit, unsigned* cleared,
                        std::int64_t cleared_count, cudaStream_t stream) {
  const std::int64_t count = tokens * (rows + cols);
  pack_logits<<<blocks_for(count), kThreads, 0, stream>>>(count, rows, cols, row_logits, col_logits, logits,
                                                          bad_logit, cleared, cleared_count);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

std::int64_t order_pairs_bytes(std::int64_t tokens, std::int64_t top_k, const GpuTraits& gpu) {
  const std::int64_t keys = keys_of(top_k);
  return keys <= kMostSharedKeys ? 0 : order_blocks(tokens, top_k, gpu) * keys * 8;
}

void launch_order_pairs(const OrderPairs& order, const GpuTraits& gpu, cudaStream_t stream) {
  const std::int64_t keys = keys_of(order.top_k);
  const auto blocks = static_cast<unsigned>(order_blocks(order.tokens, order.top_k, gpu));
  const std::size_t shared = order.sort_space != nullptr ? 0 : static_cast<std::size_t>(keys) * 8;
  order_pairs<<<blocks, kThreads, shared, stream>>>(order, keys);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_take_pairs(const TakePairs& take, cudaStream_t stream) {
  take_pairs<<<blocks_for(std::max(take.pairs, take.cleared_count)), kThreads, 0, stream>>>(take);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::capi::gpu
