#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/base/error.hpp"
#include "core/tiling/token_split.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/experts/token_sums.cuh"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/kernel_attributes.hpp"

/// The expert stage token by token, shared by experts_token_centric.cu (scores and sums fused)
/// and expert_combine.cu (sums alone). Every pair costs one row of W and one of V, read once with 16-byte
/// loads; see token_split.hpp for who reads what. All sums are taken in an order that depends on the shape
/// alone.
namespace moescope::cuda {

/// A lane's part of one row: kChunks x 16 bytes, chunk c at column c * 32 * kElements after the lane's first.
/// kFull: every lane's every chunk lies within the row. Otherwise chunks outside it read the row's first 16
/// bytes instead, which costs no traffic; their x is zero and their sums are never stored.
/// kPastL1: rows leave no trace in L1.
template <class T, int kChunks, bool kFull, bool kPastL1>
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
      const auto* const from = reinterpret_cast<const uint4*>(row + offset);
      if constexpr (kPastL1) {
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(raw[c].x), "=r"(raw[c].y), "=r"(raw[c].z), "=r"(raw[c].w)
                     : "l"(from));
      } else {
        raw[c] = __ldg(from);
      }
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

/// Args: TokenPairsArgs or GivenPairsArgs.
template <class T, int kChunks, bool kFull, bool kScore, bool kPastL1, class Args>
__global__ void __launch_bounds__(TokenSplit::kWarpsPerBlock * 32, 2) token_pairs_kernel(const Args args) {
  using Part = RowPart<T, kChunks, kFull, kPastL1>;
  constexpr int kElements = Part::kElements;
  extern __shared__ float4 sums[];
  __shared__ float slots[2 * TokenSplit::kWarpsPerBlock];

  release_successor();
  announce_block(args);
  const int d = args.hidden_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int worker = warp >> args.team_log2;
  const int member = warp & ((1 << args.team_log2) - 1);
  const std::int64_t token = args.first_token() + (worker >> args.block_splits_log2);
  const unsigned block_of_token = blockIdx.x & ((1U << (args.cluster_log2 + args.clusters_log2)) - 1);
  const unsigned worker_of_block = static_cast<unsigned>(worker) & ((1U << args.block_splits_log2) - 1);
  const unsigned split = (block_of_token << args.block_splits_log2) + worker_of_block;
  const unsigned splits = args.splits();

  const int col = member * Part::kSlice + lane * kElements;
  // d is a multiple of 8, so a 16-byte chunk lies within the row or outside it as a whole.
  const int valid = col < d ? min((d - col - 1) / Part::kStride + 1, kChunks) : 0;

  const bool has_pairs = token < args.num_tokens && split < args.top_k;
  Part x;  // as stored: unpacked it would cost bf16 twice the registers, and occupancy
  if constexpr (kScore) {
    if (has_pairs) {
      x.load(static_cast<const T*>(args.x) + token * d, col, valid);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        x.raw[c] = kFull || c < valid ? x.raw[c] : uint4{0, 0, 0, 0};
      }
    }
  }
  wait_for_predecessor();

  float acc[kChunks][kElements] = {};
  if (has_pairs) {
    const T* w_in = static_cast<const T*>(args.w_in);
    const T* w_out = static_cast<const T*>(args.w_out);
    const std::int64_t base = token * args.top_k;
    const float* factors = (kScore ? args.gates : args.scores_in) + base;

    // `ahead` holds the row the next step starts with (W when scoring, else V), so that the memory system
    // always has this pair's and the next one's rows to fetch. Past the last pair, its row is read again: no
    // branch, and no traffic.
    const T* first_matrix = kScore ? w_in : w_out;
    const unsigned last = split + ((args.top_k - 1 - split) & ~(splits - 1));
    const auto row = [&](const T* matrix, std::int32_t id) {
      return matrix + static_cast<std::int64_t>(Args::kDependent ? id : max(id, 0)) * d;
    };
    std::int32_t id = args.id(base + split);
    std::int32_t next_id = args.id(base + min(split + splits, last));
    Part ahead;
    ahead.load(row(first_matrix, id), col, valid);
    unsigned parity = 0;
#pragma unroll 1
    for (unsigned k = split; k <= last; k += splits) {
      Part v;
      if constexpr (kScore) {
        v.load(row(w_out, id), col, valid);
      }
      const std::int32_t id_after = args.id(base + min(k + 2 * splits, last));
      float p = Args::checked(id, __ldg(factors + k));
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
        p *= activate(args.activation, worker_sum(dot, slots, parity, args.team_log2));
      } else {
        v = ahead;
        ahead.load(row(w_out, next_id), col, valid);
      }
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float out[kElements];
        v.unpack(c, out);
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          acc[c][i] = fmaf(p, out[i], acc[c][i]);
        }
      }
      id = next_id;
      next_id = id_after;
    }
  }

  const auto store = [&](auto&& put) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (kFull || c < valid) {
#pragma unroll
        for (int i = 0; i < kElements; i += 4) {
          put((col + c * Part::kStride + i) / 4,
              make_float4(acc[c][i], acc[c][i + 1], acc[c][i + 2], acc[c][i + 3]));
        }
      }
    }
  };
  if (splits > 1) {
    store([&](int at, float4 sum) { sums[worker * (d / 4) + at] = sum; });
    sum_workers(sums, args);
  } else if (token < args.num_tokens) {
    store([&](int at, float4 sum) { args.output.store(token * (d / 4) + at, sum); });
  }
}

template <class T, bool kFull, bool kScore, class Args, bool kPastL1 = false>
auto token_pairs_kernel_for(std::int64_t chunks) {
  return chunks == 1   ? token_pairs_kernel<T, 1, kFull, kScore, kPastL1, Args>
         : chunks == 2 ? token_pairs_kernel<T, 2, kFull, kScore, kPastL1, Args>
         : chunks == 3 ? token_pairs_kernel<T, 3, kFull, kScore, kPastL1, Args>
                       : token_pairs_kernel<T, 4, kFull, kScore, kPastL1, Args>;
}

/// A launch that begins when all before it on the stream is done.
template <class Args>
void launch_ordinary(void (*kernel)(Args), const LaunchShape& shape, cudaStream_t stream, const Args& args) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {shape.cluster_blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.cluster_blocks > 1 ? 1 : 0;
  MOESCOPE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args));
}

/// Of the sums of clusters behind the counters of arrivals.
inline std::int64_t arrivals_bytes(std::int64_t num_tokens) {
  return num_tokens * TokenSplit::kMaxClusterBlocks * static_cast<std::int64_t>(sizeof(unsigned));
}

/// Validates the shape, completes `args` (TokenPairsArgs or what is derived from it) with it and launches the
/// kernel that choose_kernel(rows, full) gives; choose_kernel(split, full, kernel) may then change it for the
/// split that was taken. `workspace`: token_centric_workspace_bytes, or null: then a token has one cluster at
/// most. Throws InvalidArgument for a hidden_size that is no multiple of 8 or too long, CudaError when the
/// launch is refused.
template <class Args, class ChooseKernel>
void launch_token_split(const LayerShape& shape, Args args, void* workspace,
                        const ChooseKernel& choose_kernel, cudaStream_t stream) {
  const std::int64_t element_bytes = dtype_bytes(shape.dtype);
  const std::int64_t row_bytes = shape.hidden_size * element_bytes;
  const std::int64_t max_hidden_size = TokenSplit::max_row_bytes() / element_bytes;
  if (shape.hidden_size % 8 != 0 || shape.hidden_size < 8 || shape.hidden_size > max_hidden_size) {
    throw InvalidArgument("hidden_size", std::to_string(shape.hidden_size),
                          fmt::format("the CUDA kernels need a multiple of 8 in [8, {}] for {}",
                                      max_hidden_size, to_string(shape.dtype)));
  }
  const auto choose = [&](bool has_clusters) {
    return TokenSplit::choose(current_gpu(), shape.num_tokens, shape.top_k, row_bytes,
                              has_clusters ? TokenSplit::kMaxClusterBlocks : 1,
                              has_clusters && workspace != nullptr ? TokenSplit::kMaxClusters : 1);
  };
  const TokenSplit rows = choose(false);
  const bool full = rows.is_full(row_bytes);
  auto kernel = choose_kernel(rows, full);
  const cudaFuncAttributes attributes = kernel_attributes(reinterpret_cast<const void*>(kernel));
  // What the code was compiled for decides, not the device: PTX for sm_80 has no cluster reduction in it.
  const TokenSplit split = choose(attributes.ptxVersion >= 90);
  if constexpr (std::is_invocable_v<ChooseKernel, const TokenSplit&, bool, decltype(kernel)>) {
    kernel = choose_kernel(split, full, kernel);
  }

  args.num_tokens = shape.num_tokens;
  args.top_k = static_cast<std::uint32_t>(shape.top_k);
  args.hidden_size = static_cast<std::int32_t>(shape.hidden_size);
  const auto log2 = [](std::int64_t power_of_two) {
    return std::countr_zero(static_cast<std::uint64_t>(power_of_two));
  };
  args.team_log2 = log2(split.team);
  args.block_splits_log2 = log2(split.block_splits);
  args.cluster_log2 = log2(split.cluster_blocks);
  args.clusters_log2 = log2(split.clusters);
  if (split.clusters > 1) {
    args.arrivals = static_cast<unsigned*>(workspace);
    args.cluster_sums =
        reinterpret_cast<float4*>(static_cast<std::byte*>(workspace) + arrivals_bytes(shape.num_tokens));
  }
  args.activation = shape.activation;
  const std::int64_t shared_bytes = split.shared_bytes(shape.hidden_size);
  constexpr std::int64_t kDefaultSharedBytes = std::int64_t{48} << 10;
  if (shared_bytes + static_cast<std::int64_t>(attributes.sharedSizeBytes) > kDefaultSharedBytes) {
    MOESCOPE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(shared_bytes)));
  }
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(split.num_blocks)),
                           .block = dim3(static_cast<unsigned>(split.warps * 32)),
                           .shared_bytes = static_cast<std::size_t>(shared_bytes),
                           .cluster_blocks = static_cast<unsigned>(split.cluster_blocks)};
  if constexpr (Args::kDependent) {
    launch_dependent(kernel, launch, stream, args);
  } else {
    launch_ordinary(kernel, launch, stream, args);
  }
}

/// The kernel above for a shape: sums alone, or with scores.
template <bool kScore, class Args>
struct ChooseTokenPairs {
  bool bf16;

  auto operator()(const TokenSplit& rows, bool full) const {
    return full ? (bf16 ? token_pairs_kernel_for<__nv_bfloat16, true, kScore, Args>(rows.chunks)
                        : token_pairs_kernel_for<float, true, kScore, Args>(rows.chunks))
                : (bf16 ? token_pairs_kernel_for<__nv_bfloat16, false, kScore, Args>(rows.chunks)
                        : token_pairs_kernel_for<float, false, kScore, Args>(rows.chunks));
  }
  /// A token that has a cluster's blocks to itself shares their L1 with no other: rows that pass it by took
  /// 16.1 instead of 17.9 us at L = 8, K = 512 (measured). Where tokens share a multiprocessor they took a
  /// fifth longer.
  template <class Kernel>
  auto operator()(const TokenSplit& split, bool full, Kernel kernel) const {
    if constexpr (kScore) {
      if (full && split.cluster_blocks > 1) {
        return bf16 ? token_pairs_kernel_for<__nv_bfloat16, true, kScore, Args, true>(split.chunks)
                    : token_pairs_kernel_for<float, true, kScore, Args, true>(split.chunks);
      }
    }
    return kernel;
  }
};

template <bool kScore, class Args>
void launch_token_pairs(const LayerShape& shape, const Args& args, void* workspace, cudaStream_t stream) {
  launch_token_split(shape, args, workspace, ChooseTokenPairs<kScore, Args>{shape.dtype == Dtype::kBF16},
                     stream);
}

}  // namespace moescope::cuda
