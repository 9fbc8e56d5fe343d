#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <string>

#include "core/error.hpp"
#include "core/token_split.hpp"
#include "kernels/activation.cuh"
#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"

/// The expert stage token by token, shared by experts_token_centric.cu (scores and sums fused),
/// expert_scores.cu and expert_combine.cu. Every pair costs one row of W and one of V, read once with 16-byte
/// loads; see token_split.hpp for who reads what. All sums are taken in an order that depends on the shape
/// alone.
namespace moescope::cuda {

struct TokenPairsArgs {
  const void* x = nullptr;                   ///< [L, d]
  const void* w_in = nullptr;                ///< [N, d]
  const void* w_out = nullptr;               ///< [N, d]
  const std::int32_t* expert_ids = nullptr;  ///< [L*K]
  const float* gates = nullptr;              ///< [L*K]
  const float* scores_in = nullptr;          ///< [L*K] p, when only summing
  float* scores_out = nullptr;               ///< [L*K] p, when only scoring
  float* y = nullptr;                        ///< [L, d]
  std::int64_t num_tokens = 0;
  std::uint32_t top_k = 0;
  std::int32_t hidden_size = 0;
  std::int32_t team = 1;
  // TokenSplit's powers of two as exponents.
  std::int32_t block_splits_log2 = 0;
  std::int32_t cluster_log2 = 0;
  Activation activation = Activation::kSilu;
};

/// A lane's part of one row: kChunks x 16 bytes, chunk c at column c * 32 * kElements after the lane's first.
/// kFull: every lane's every chunk lies within the row. Otherwise chunks outside it read the row's first 16
/// bytes instead, which costs no traffic; their x is zero and their sums are never stored.
template <class T, int kChunks, bool kFull>
struct RowPart {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  static constexpr int kStride = 32 * kElements;
  static constexpr int kSlice = kChunks * kStride;
  uint4 raw[kChunks];

  /// `row` starts at the matrix row, `col` is the lane's first column.
  __device__ __forceinline__ void load(const T* row, int col, int valid) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int offset = kFull || c < valid ? col + c * kStride : 0;
      raw[c] = __ldg(reinterpret_cast<const uint4*>(row + offset));
    }
  }
  /// Keeps the compiler from unpacking chunk c ahead of the loop this stands in.
  __device__ __forceinline__ void pin(int c) {
    asm volatile("" : "+r"(raw[c].x), "+r"(raw[c].y), "+r"(raw[c].z), "+r"(raw[c].w));
  }
  __device__ __forceinline__ void unpack(int c, float (&out)[kElements]) const {
    const unsigned words[4] = {raw[c].x, raw[c].y, raw[c].z, raw[c].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
      } else {
        out[i] = __uint_as_float(words[i]);
      }
    }
  }
};

/// Sum over a worker's warps and lanes; every lane gets it. Teams exchange through `slots` [2][warps of the
/// block]: two sets, so that one barrier per call is enough (a set is written again only after the next
/// call's barrier).
__device__ __forceinline__ float worker_sum(float value, float* slots, unsigned& parity, int team) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, offset);
  }
  if (team == 1) {
    return value;
  }
  float* set = slots + parity * TokenSplit::kWarpsPerBlock;
  parity ^= 1U;
  if (threadIdx.x % 32 == 0) {
    set[threadIdx.x / 32] = value;
  }
  __syncthreads();  // a team has the block to itself, and its warps the same pairs
  value = 0;
#pragma unroll 1  // code size: a cold launch fetches its instructions from HBM
  for (int member = 0; member < team; ++member) {
    value += set[member];
  }
  return value;
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

/// y of the block's tokens from its workers' partial sums [worker][d], workers and then blocks in order.
__device__ __forceinline__ void sum_workers(float4* partial, const TokenPairsArgs& args,
                                            std::int64_t first_token, int tokens_per_block) {
  const int columns = args.hidden_size / 4;  // of four floats
  const auto threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  auto* y = reinterpret_cast<float4*>(args.y);
  __syncthreads();
#pragma unroll 1
  for (int token = 0; token < tokens_per_block && first_token + token < args.num_tokens; ++token) {
#pragma unroll 1
    for (int col = thread; col < columns; col += threads) {
      float4* first = partial + (token << args.block_splits_log2) * columns + col;
      float4 sum = *first;
#pragma unroll 1
      for (int s = 1; s < 1 << args.block_splits_log2; ++s) {
        sum = add(sum, first[s * columns]);
      }
      if (args.cluster_log2 > 0) {
        *first = sum;  // one token per block here, and this thread alone reads and writes this column
      } else {
        y[(first_token + token) * columns + col] = sum;
      }
    }
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (args.cluster_log2 > 0) {
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    const int rank = static_cast<int>(cluster.block_rank());
#pragma unroll 1
    for (int col = (thread << args.cluster_log2) + rank; col < columns; col += threads << args.cluster_log2) {
      float4 sum = cluster.map_shared_rank(partial, 0)[col];
#pragma unroll 1
      for (int block = 1; block < 1 << args.cluster_log2; ++block) {
        sum = add(sum, cluster.map_shared_rank(partial, block)[col]);
      }
      y[first_token * columns + col] = sum;
    }
    cluster.sync();  // no block leaves while another reads its shared memory
  }
#endif
}

template <class T, int kChunks, bool kFull, bool kScore, bool kSum>
__global__ void __launch_bounds__(TokenSplit::kWarpsPerBlock * 32, 2)
    token_pairs_kernel(const TokenPairsArgs args) {
  static_assert(kScore || kSum);
  using Part = RowPart<T, kChunks, kFull>;
  constexpr int kElements = Part::kElements;
  extern __shared__ float4 partial[];
  __shared__ float slots[2 * TokenSplit::kWarpsPerBlock];

  const int d = args.hidden_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int worker = args.team == 1 ? warp : 0;
  const int member = args.team == 1 ? 0 : warp;
  const int workers_per_block = args.team == 1 ? static_cast<int>(TokenSplit::kWarpsPerBlock) : 1;
  const int tokens_per_block = workers_per_block >> args.block_splits_log2;
  const std::int64_t first_token =
      static_cast<std::int64_t>(blockIdx.x >> args.cluster_log2) * tokens_per_block;
  const std::int64_t token = first_token + (worker >> args.block_splits_log2);
  const unsigned block_in_cluster = blockIdx.x & ((1U << args.cluster_log2) - 1);
  const unsigned worker_of_token = static_cast<unsigned>(worker) & ((1U << args.block_splits_log2) - 1);
  const unsigned split = (block_in_cluster << args.block_splits_log2) + worker_of_token;
  const unsigned splits = 1U << (args.cluster_log2 + args.block_splits_log2);

  const int col = member * Part::kSlice + lane * kElements;
  // d is a multiple of 8, so a 16-byte chunk lies within the row or outside it as a whole.
  const int valid = col < d ? min((d - col - 1) / Part::kStride + 1, kChunks) : 0;

  float acc[kChunks][kElements] = {};
  if (token < args.num_tokens && split < args.top_k) {
    const T* w_in = static_cast<const T*>(args.w_in);
    const T* w_out = static_cast<const T*>(args.w_out);
    const std::int64_t base = token * args.top_k;
    const std::int32_t* ids = args.expert_ids + base;
    const float* factors = (kScore ? args.gates : args.scores_in) + base;

    Part x;  // as stored: unpacked it would cost bf16 twice the registers, and occupancy
    if constexpr (kScore) {
      x.load(static_cast<const T*>(args.x) + token * d, col, valid);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        x.raw[c] = kFull || c < valid ? x.raw[c] : uint4{0, 0, 0, 0};
      }
    }

    // `ahead` holds the row the next step starts with (W when scoring, else V), so that the memory system
    // always has this pair's and the next one's rows to fetch. Past the last pair, its row is read again: no
    // branch, and no traffic.
    const T* first_matrix = kScore ? w_in : w_out;
    const unsigned last = split + ((args.top_k - 1 - split) & ~(splits - 1));
    const auto row = [&](const T* matrix, std::int32_t id) {
      return matrix + static_cast<std::int64_t>(id) * d;
    };
    std::int32_t id = __ldg(ids + split);
    std::int32_t next_id = __ldg(ids + min(split + splits, last));
    Part ahead;
    ahead.load(row(first_matrix, id), col, valid);
    unsigned parity = 0;
#pragma unroll 1
    for (unsigned k = split; k <= last; k += splits) {
      Part v;
      if constexpr (kScore && kSum) {
        v.load(row(w_out, id), col, valid);
      }
      const std::int32_t id_after = __ldg(ids + min(k + 2 * splits, last));
      float p = __ldg(factors + k);
      if constexpr (kScore) {
        float dot = 0;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          float w[kElements];
          float x_c[kElements];
          ahead.unpack(c, w);
          x.pin(c);
          x.unpack(c, x_c);
#pragma unroll
          for (int i = 0; i < kElements; ++i) {
            dot = fmaf(x_c[i], w[i], dot);
          }
        }
        ahead.load(row(w_in, next_id), col, valid);
        p *= activate(args.activation, worker_sum(dot, slots, parity, args.team));
        if constexpr (!kSum) {
          if (lane == 0 && member == 0) {
            args.scores_out[base + k] = p;
          }
        }
      } else {
        v = ahead;
        ahead.load(row(w_out, next_id), col, valid);
      }
      if constexpr (kSum) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          float out[kElements];
          v.unpack(c, out);
#pragma unroll
          for (int i = 0; i < kElements; ++i) {
            acc[c][i] = fmaf(p, out[i], acc[c][i]);
          }
        }
      }
      id = next_id;
      next_id = id_after;
    }
  }

  if constexpr (kSum) {
    const auto store = [&](float4* out) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (kFull || c < valid) {
#pragma unroll
          for (int i = 0; i < kElements; i += 4) {
            out[(col + c * Part::kStride + i) / 4] =
                make_float4(acc[c][i], acc[c][i + 1], acc[c][i + 2], acc[c][i + 3]);
          }
        }
      }
    };
    if (splits > 1) {
      store(partial + worker * (d / 4));
      sum_workers(partial, args, first_token, tokens_per_block);
    } else if (token < args.num_tokens) {
      store(reinterpret_cast<float4*>(args.y + token * d));
    }
  }
}

template <class T, bool kFull, bool kScore, bool kSum>
auto token_pairs_kernel_for(std::int64_t chunks) {
  return chunks == 1   ? token_pairs_kernel<T, 1, kFull, kScore, kSum>
         : chunks == 2 ? token_pairs_kernel<T, 2, kFull, kScore, kSum>
         : chunks == 3 ? token_pairs_kernel<T, 3, kFull, kScore, kSum>
                       : token_pairs_kernel<T, 4, kFull, kScore, kSum>;
}

/// Validates the shape, completes `args` with it and launches. Throws InvalidArgument for a hidden_size that
/// is no multiple of 8 or too long, CudaError when the launch is refused.
template <bool kScore, bool kSum>
void launch_token_pairs(const LayerShape& shape, TokenPairsArgs args, cudaStream_t stream) {
  const std::int64_t element_bytes = dtype_bytes(shape.dtype);
  const std::int64_t max_hidden_size = TokenSplit::max_row_bytes() / element_bytes;
  if (shape.hidden_size % 8 != 0 || shape.hidden_size < 8 || shape.hidden_size > max_hidden_size) {
    throw InvalidArgument("hidden_size", std::to_string(shape.hidden_size),
                          fmt::format("the CUDA kernels need a multiple of 8 in [8, {}] for {}",
                                      max_hidden_size, to_string(shape.dtype)));
  }
  const auto choose = [&](bool clusters) {
    return TokenSplit::choose(shape.num_tokens, shape.top_k, shape.hidden_size * element_bytes, clusters);
  };
  const TokenSplit rows = choose(false);
  const bool bf16 = shape.dtype == Dtype::kBF16;
  const auto kernel = rows.is_full(shape.hidden_size * element_bytes)
                          ? (bf16 ? token_pairs_kernel_for<__nv_bfloat16, true, kScore, kSum>(rows.chunks)
                                  : token_pairs_kernel_for<float, true, kScore, kSum>(rows.chunks))
                          : (bf16 ? token_pairs_kernel_for<__nv_bfloat16, false, kScore, kSum>(rows.chunks)
                                  : token_pairs_kernel_for<float, false, kScore, kSum>(rows.chunks));
  cudaFuncAttributes attributes{};
  MOESCOPE_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  // What the code was compiled for decides, not the device: PTX for sm_80 has no cluster reduction in it.
  const TokenSplit split = choose(attributes.ptxVersion >= 90);

  args.num_tokens = shape.num_tokens;
  args.top_k = static_cast<std::uint32_t>(shape.top_k);
  args.hidden_size = static_cast<std::int32_t>(shape.hidden_size);
  const auto log2 = [](std::int64_t power_of_two) {
    return std::countr_zero(static_cast<std::uint64_t>(power_of_two));
  };
  args.team = static_cast<std::int32_t>(split.team);
  args.block_splits_log2 = log2(split.block_splits);
  args.cluster_log2 = log2(split.cluster_blocks);
  args.activation = shape.activation;

  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(split.cluster_blocks);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(split.num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(split.warps_per_block() * 32));
  config.dynamicSmemBytes = kSum ? static_cast<std::size_t>(split.shared_bytes(shape.hidden_size)) : 0;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = split.cluster_blocks > 1 ? 1 : 0;
  MOESCOPE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

}  // namespace moescope::cuda
