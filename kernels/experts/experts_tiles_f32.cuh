#pragma once

#include <cstdint>

#include "kernels/experts/experts_tiles_common.cuh"

/// The two products of a tile in fp32 on the CUDA cores. For checking: exact storage, plain fused
/// multiply-adds.
namespace moescope::cuda {

struct F32Products {
  using Tiles = F32Tiles;
  using Element = float;
  static constexpr int kMinBlocks = 1;
  static constexpr int kThreadCols = Tiles::kBlockN / Tiles::kThreadN;

  static __device__ __forceinline__ float4 load4(const void* matrix, std::int64_t row, int hidden_size,
                                                 int col, bool valid) {
    return valid
               ? *reinterpret_cast<const float4*>(static_cast<const float*>(matrix) + row * hidden_size + col)
               : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  }
  static __device__ __forceinline__ void store_column(float* tile, int ld, int k, int row, const float4& v) {
    tile[k * ld + row] = v.x;
    tile[(k + 1) * ld + row] = v.y;
    tile[(k + 2) * ld + row] = v.z;
    tile[(k + 3) * ld + row] = v.w;
  }

  /// As Bf16Products::scores.
  static __device__ __forceinline__ void scores(const TileArguments& args, const TileShared& shared,
                                                int block_begin) {
    auto* const x_tile = reinterpret_cast<float*>(shared.stages);
    float* const w_tile = x_tile + Tiles::kBlockK * Tiles::kXLd;
    constexpr int kVectors = Tiles::kBlockK / 4;
    const int thread = static_cast<int>(threadIdx.x);
    const int row0 = thread / kThreadCols * Tiles::kThreadM;
    const int col0 = thread % kThreadCols * Tiles::kThreadN;
    float acc[Tiles::kThreadM][Tiles::kThreadN] = {};
    for (int k0 = 0; k0 < args.hidden_size; k0 += Tiles::kBlockK) {
      for (int i = thread; i < Tiles::kBlockM * kVectors; i += Tiles::kThreads) {
        const int row = i / kVectors;
        const int k = i % kVectors * 4;
        const std::int32_t token = shared.tokens[row];
        const bool valid = token >= 0 && k0 + k < args.hidden_size;
        store_column(x_tile, Tiles::kXLd, k, row,
                     load4(args.hidden_states, token, args.hidden_size, k0 + k, valid));
      }
      for (int i = thread; i < Tiles::kBlockN * kVectors; i += Tiles::kThreads) {
        const int row = i / kVectors;
        const int k = i % kVectors * 4;
        const std::int32_t expert = shared.experts[block_begin + row];
        const bool valid = expert >= 0 && k0 + k < args.hidden_size;
        store_column(w_tile, Tiles::kWLd, k, row, load4(args.w_in, expert, args.hidden_size, k0 + k, valid));
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < Tiles::kBlockK; ++k) {
#pragma unroll
        for (int i = 0; i < Tiles::kThreadM; ++i) {
#pragma unroll
          for (int j = 0; j < Tiles::kThreadN; ++j) {
            acc[i][j] += x_tile[k * Tiles::kXLd + row0 + i] * w_tile[k * Tiles::kWLd + col0 + j];
          }
        }
      }
      __syncthreads();
    }
    auto* const s = reinterpret_cast<float*>(shared.stages);
#pragma unroll
    for (int i = 0; i < Tiles::kThreadM; ++i) {
#pragma unroll
      for (int j = 0; j < Tiles::kThreadN; ++j) {
        s[(row0 + i) * Tiles::kScoreLd + col0 + j] = acc[i][j];
      }
    }
    __syncthreads();
  }

  /// As Bf16Products::combine.
  static __device__ __forceinline__ void combine(const TileArguments& args, const TileShared& shared) {
    auto* const v_tile = reinterpret_cast<float*>(shared.stages);
    const auto* const p = reinterpret_cast<const float*>(shared.p);
    constexpr int kVectors = Tiles::kBlockD / 4;
    const int thread = static_cast<int>(threadIdx.x);
    const int row0 = thread / kThreadCols * Tiles::kThreadM;
    const int col0 = thread % kThreadCols * Tiles::kThreadN;
    for (int d0 = 0; d0 < args.hidden_size; d0 += Tiles::kBlockD) {
      float acc[Tiles::kThreadM][Tiles::kThreadN] = {};
      for (int e0 = 0; e0 < shared.chunk; e0 += Tiles::kBlockK) {
        for (int i = thread; i < Tiles::kBlockK * kVectors; i += Tiles::kThreads) {
          const int row = i / kVectors;
          const int col = i % kVectors * 4;
          const bool valid = e0 + row < shared.chunk && d0 + col < args.hidden_size;
          *reinterpret_cast<float4*>(v_tile + row * Tiles::kVLd + col) =
              load4(args.w_out, valid ? shared.experts[e0 + row] : 0, args.hidden_size, d0 + col, valid);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < Tiles::kBlockK; ++k) {
#pragma unroll
          for (int i = 0; i < Tiles::kThreadM; ++i) {
#pragma unroll
            for (int j = 0; j < Tiles::kThreadN; ++j) {
              acc[i][j] += p[(row0 + i) * shared.p_ld + e0 + k] * v_tile[k * Tiles::kVLd + col0 + j];
            }
          }
        }
        __syncthreads();
      }
      for (int i = 0; i < Tiles::kThreadM; ++i) {
        const std::int32_t token = shared.tokens[row0 + i];
        if (token >= 0 && d0 + col0 < args.hidden_size) {
          add_vector(args.y + std::int64_t{token} * args.hidden_size + d0 + col0, acc[i][0], acc[i][1],
                     acc[i][2], acc[i][3]);
        }
      }
    }
  }

  static __device__ __forceinline__ void store_p(std::byte* p, int index, float value) {
    reinterpret_cast<float*>(p)[index] = value;
  }
};

}  // namespace moescope::cuda
