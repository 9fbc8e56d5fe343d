#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/error.hpp"
#include "kernels/activation.cuh"
#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"
#include "kernels/token_split.hpp"

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
  std::int64_t top_k = 0;
  std::int32_t hidden_size = 0;
  std::int32_t team = 1;
  std::int32_t block_splits = 1;
  std::int32_t cluster_blocks = 1;
  Activation activation = Activation::kSilu;
};

/// A lane's part of one row: kChunks x 16 bytes, chunk c at column (c * 32 + lane) * kElements of the warp's
/// slice.
template <class T, int kChunks>
struct RowPart {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  static constexpr int kSlice = kChunks * 32 * kElements;
  uint4 raw[kChunks];

  /// `valid` = chunks of this lane that lie within the row; the rest reads as zero.
  __device__ __forceinline__ void load(const T* row, int valid) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      raw[c] =
          c < valid ? __ldg(reinterpret_cast<const uint4*>(row + c * 32 * kElements)) : uint4{0, 0, 0, 0};
    }
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
__device__ __forceinline__ float worker_sum(float value, float* slots, unsigned& parity, int team, int worker,
                                            int warp) {
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
    set[warp] = value;
  }
  // One barrier per worker (0 is __syncthreads): workers have different numbers of pairs.
  asm volatile("bar.sync %0, %1;" ::"r"(worker + 1), "r"(team * 32) : "memory");
  value = 0;
  for (int member = 0; member < team; ++member) {
    value += set[worker * team + member];
  }
  return value;
}

/// y of the block's tokens from its workers' partial sums [worker][d], workers and then blocks in order.
__device__ __forceinline__ void sum_workers(float* partial, const TokenPairsArgs& args,
                                            std::int64_t first_token, int tokens_per_block) {
  const int d = args.hidden_size;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < tokens_per_block * d; i += static_cast<int>(blockDim.x)) {
    const int token = i / d;
    const int col = i - token * d;
    float* first = partial + token * args.block_splits * d + col;
    float sum = 0;
    for (int s = 0; s < args.block_splits; ++s) {
      sum += first[s * d];
    }
    if (args.cluster_blocks > 1) {
      *first = sum;  // one token per block here, and this thread alone reads and writes this column
    } else if (first_token + token < args.num_tokens) {
      args.y[(first_token + token) * d + col] = sum;
    }
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (args.cluster_blocks > 1) {
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    const int rank = static_cast<int>(cluster.block_rank());
    for (int col = rank * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x); col < d;
         col += args.cluster_blocks * static_cast<int>(blockDim.x)) {
      float sum = 0;
      for (int block = 0; block < args.cluster_blocks; ++block) {
        sum += cluster.map_shared_rank(partial, block)[col];
      }
      args.y[first_token * d + col] = sum;
    }
    cluster.sync();  // no block leaves while another reads its shared memory
  }
#endif
}

template <class T, int kChunks, bool kScore, bool kSum>
__global__ void __launch_bounds__(TokenSplit::kWarpsPerBlock * 32, 2)
    token_pairs_kernel(const TokenPairsArgs args) {
  static_assert(kScore || kSum);
  using Part = RowPart<T, kChunks>;
  constexpr int kElements = Part::kElements;
  extern __shared__ __align__(16) float partial[];
  __shared__ float slots[2 * TokenSplit::kWarpsPerBlock];

  const int d = args.hidden_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int worker = warp / args.team;
  const int workers = static_cast<int>(TokenSplit::kWarpsPerBlock) / args.team;
  const int tokens_per_block = workers / args.block_splits;
  const std::int64_t first_token =
      static_cast<std::int64_t>(blockIdx.x) / args.cluster_blocks * tokens_per_block;
  const std::int64_t token = first_token + worker / args.block_splits;
  const int split =
      static_cast<int>(blockIdx.x % static_cast<unsigned>(args.cluster_blocks)) * args.block_splits +
      worker % args.block_splits;
  const int splits = args.cluster_blocks * args.block_splits;

  const int col = (warp % args.team) * Part::kSlice + lane * kElements;
  // d is a multiple of 8, so a 16-byte chunk lies within the row or outside it as a whole.
  const int valid = col < d ? min((d - col - 1) / (32 * kElements) + 1, kChunks) : 0;

  float acc[kChunks][kElements] = {};
  if (token < args.num_tokens) {
    const T* w_in = static_cast<const T*>(args.w_in) + col;
    const T* w_out = static_cast<const T*>(args.w_out) + col;
    const std::int64_t base = token * args.top_k;
    const std::int32_t* ids = args.expert_ids + base;

    float x[kChunks][kElements];
    if constexpr (kScore) {
      Part part;
      part.load(static_cast<const T*>(args.x) + token * d + col, valid);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        part.unpack(c, x[c]);
      }
    }

    // `ahead` holds the row the next step starts with (W when scoring, else V), so that the memory system
    // always has this pair's and the next one's rows to fetch.
    const T* first_matrix = kScore ? w_in : w_out;
    Part ahead;
    std::int64_t k = split;
    std::int32_t id = 0;
    std::int32_t next_id = 0;
    unsigned parity = 0;
    if (k < args.top_k) {
      id = __ldg(ids + k);
      ahead.load(first_matrix + static_cast<std::int64_t>(id) * d, valid);
      next_id = k + splits < args.top_k ? __ldg(ids + k + splits) : 0;
    }
    for (; k < args.top_k; k += splits) {
      const int next_valid = k + splits < args.top_k ? valid : 0;
      const std::int32_t id_after = k + 2 * splits < args.top_k ? __ldg(ids + k + 2 * splits) : 0;
      Part v;
      float p = 0;
      if constexpr (kScore) {
        const float gate = __ldg(args.gates + base + k);
        if constexpr (kSum) {
          v.load(w_out + static_cast<std::int64_t>(id) * d, valid);
        }
        float dot = 0;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          float w[kElements];
          ahead.unpack(c, w);
#pragma unroll
          for (int i = 0; i < kElements; ++i) {
            dot = fmaf(x[c][i], w[i], dot);
          }
        }
        ahead.load(w_in + static_cast<std::int64_t>(next_id) * d, next_valid);
        p = gate * activate(args.activation, worker_sum(dot, slots, parity, args.team, worker, warp));
        if constexpr (!kSum) {
          if (lane == 0 && warp % args.team == 0) {
            args.scores_out[base + k] = p;
          }
        }
      } else {
        p = __ldg(args.scores_in + base + k);
        v = ahead;
        ahead.load(w_out + static_cast<std::int64_t>(next_id) * d, next_valid);
      }
      if constexpr (kSum) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          float row[kElements];
          v.unpack(c, row);
#pragma unroll
          for (int i = 0; i < kElements; ++i) {
            acc[c][i] = fmaf(p, row[i], acc[c][i]);
          }
        }
      }
      id = next_id;
      next_id = id_after;
    }
  }

  if constexpr (kSum) {
    float* out = splits == 1 ? args.y + token * d : partial + worker * d;
    if (splits > 1 || token < args.num_tokens) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c < valid) {
#pragma unroll
          for (int i = 0; i < kElements; i += 4) {
            *reinterpret_cast<float4*>(out + col + c * 32 * kElements + i) =
                make_float4(acc[c][i], acc[c][i + 1], acc[c][i + 2], acc[c][i + 3]);
          }
        }
      }
    }
    if (splits > 1) {
      sum_workers(partial, args, first_token, tokens_per_block);
    }
  }
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
  const auto with_chunks = [&](auto element, std::int64_t chunks) {
    using T = decltype(element);
    return chunks == 1   ? token_pairs_kernel<T, 1, kScore, kSum>
           : chunks == 2 ? token_pairs_kernel<T, 2, kScore, kSum>
                         : token_pairs_kernel<T, 4, kScore, kSum>;
  };
  const auto choose = [&](bool clusters) {
    return TokenSplit::choose(shape.num_tokens, shape.top_k, shape.hidden_size * element_bytes, clusters);
  };
  const std::int64_t chunks = choose(false).chunks;
  const auto kernel =
      shape.dtype == Dtype::kBF16 ? with_chunks(__nv_bfloat16{}, chunks) : with_chunks(float{}, chunks);
  cudaFuncAttributes attributes{};
  MOESCOPE_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  // What the code was compiled for decides, not the device: PTX for sm_80 has no cluster reduction in it.
  const TokenSplit split = choose(attributes.ptxVersion >= 90);

  args.num_tokens = shape.num_tokens;
  args.top_k = shape.top_k;
  args.hidden_size = static_cast<std::int32_t>(shape.hidden_size);
  args.team = static_cast<std::int32_t>(split.team);
  args.block_splits = static_cast<std::int32_t>(split.block_splits);
  args.cluster_blocks = static_cast<std::int32_t>(split.cluster_blocks);
  args.activation = shape.activation;

  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(split.cluster_blocks);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(split.num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(TokenSplit::kWarpsPerBlock * 32));
  config.dynamicSmemBytes = kSum ? static_cast<std::size_t>(split.shared_bytes(shape.hidden_size)) : 0;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = split.cluster_blocks > 1 ? 1 : 0;
  MOESCOPE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

}  // namespace moescope::cuda
