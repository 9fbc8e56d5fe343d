#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/device/mma_bf16.cuh"
#include "kernels/experts/experts_tiles_common.cuh"

/// The two products of a tile on tensor cores: mma.sync m16n8k16 on bf16 with fp32 accumulation, operands
/// through multi-stage cp.async pipelines and ldmatrix. Runs on sm_80 and later.
namespace moescope::cuda {

template <class TilesType>
struct Bf16Products {
  using Tiles = TilesType;
  using Element = __nv_bfloat16;
  /// Blocks per multiprocessor that registers must allow; shared memory allows as many (tile_config.hpp).
  static constexpr int kMinBlocks = Tiles::kBlockN <= 64 ? 2 : 1;

  template <int kNTiles>
  using Accumulator = float[Tiles::kMTiles][kNTiles][4];

  template <int kNTiles>
  static __device__ __forceinline__ void clear(Accumulator<kNTiles>& acc) {
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          acc[m][n][i] = 0.0F;
        }
      }
    }
  }

  /// acc += A[rows of this warp, 16] B[16, columns of this warp]; `a` points at the lane's ldmatrix row of
  /// the warp's first 16-row tile. kAll: every 16-row tile has rows, so no branch keeps loads and products
  /// apart.
  template <bool kAll, int kNTiles>
  static __device__ __forceinline__ void multiply(Accumulator<kNTiles>& acc, const Element* a, int a_ld,
                                                  const std::uint32_t (&b)[kNTiles][2], int m_tiles) {
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
      if (kAll || m < m_tiles) {
        std::uint32_t fragment[4];
        load_matrices(fragment, a + m * Tiles::kWarpsM * 16 * a_ld);
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          multiply_add(acc[m][n], fragment, b[n]);
        }
      }
    }
  }

  /// 16-row tiles of this warp that have rows.
  static __device__ __forceinline__ int count_m_tiles(int rows, int warp_m) {
    const int tiles = (rows + 15) / 16 - warp_m;
    return tiles <= 0 ? 0 : (tiles + Tiles::kWarpsM - 1) / Tiles::kWarpsM;
  }

  static __device__ __forceinline__ int next_stage(int stage, int stages) {
    return stage + 1 == stages ? 0 : stage + 1;
  }

  /// S = X_tile W_block^T for the chunk's experts [block_begin, block_begin + kBlockN), left in shared.stages
  /// as [kBlockM, kScoreLd] fp32, visible to all threads. Rows and columns that do not exist hold rubbish: no
  /// pair reads them.
  static __device__ __forceinline__ void scores(const TileArguments& args, const TileShared& shared,
                                                int block_begin) {
    constexpr int kChunks = Tiles::kBlockK / 8;  // 16-byte copies per row
    constexpr int kRowsPerPass = Tiles::kThreads / kChunks;
    constexpr int kXCopies = Tiles::kBlockM / kRowsPerPass;
    constexpr int kWCopies = Tiles::kBlockN / kRowsPerPass;
    constexpr int kPassBytes = kRowsPerPass * Tiles::kTileLd * Tiles::kElementBytes;
    static_assert(Tiles::kBlockM % kRowsPerPass == 0 && Tiles::kBlockN % kRowsPerPass == 0);
    constexpr int kNTiles = Tiles::kNTiles;

    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warp_m = thread / 32 / Tiles::kWarpsN;
    const int warp_n = thread / 32 % Tiles::kWarpsN;
    const int copy_row = thread / kChunks;
    const int copy_col = thread % kChunks * 8;

    // Few instructions per step matter: a multiprocessor has only 8 warps to hide them behind.
    const Element* x_rows[kXCopies];
    const Element* w_rows[kWCopies];
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const std::int32_t token = shared.tokens[copy_row + i * kRowsPerPass];
      x_rows[i] = static_cast<const Element*>(args.hidden_states) +
                  std::int64_t{token < 0 ? 0 : token} * args.hidden_size + copy_col;
    }
#pragma unroll
    for (int i = 0; i < kWCopies; ++i) {
      const std::int32_t expert = shared.experts[block_begin + copy_row + i * kRowsPerPass];
      w_rows[i] = static_cast<const Element*>(args.w_in) +
                  std::int64_t{expert < 0 ? 0 : expert} * args.hidden_size + copy_col;
    }
    const int x_left = shared.rows - copy_row;  // rows from this thread's first on
    const int w_left = shared.chunk - block_begin - copy_row;
    const auto* const stages = reinterpret_cast<const Element*>(shared.stages);
    const std::uint32_t x_target =
        shared_address(stages) + (copy_row * Tiles::kTileLd + copy_col) * Tiles::kElementBytes;
    constexpr int kWOffset = Tiles::kBlockM * Tiles::kTileLd * Tiles::kElementBytes;
    const int steps = (args.hidden_size + Tiles::kBlockK - 1) / Tiles::kBlockK;

    const auto load = [&](int step, int stage) {
      if (step < steps) {
        const int k = step * Tiles::kBlockK;
        const std::uint32_t target = x_target + stage * Tiles::kStageBytes;
        const bool whole = k + Tiles::kBlockK <= args.hidden_size;
        const bool valid = k + copy_col < args.hidden_size;
#pragma unroll
        for (int i = 0; i < kXCopies; ++i) {
          if (i * kRowsPerPass < x_left) {
            if (whole) {
              copy_async(target + i * kPassBytes, x_rows[i] + k);
            } else {
              copy_async_or_zero(target + i * kPassBytes, x_rows[i] + k, valid);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kWCopies; ++i) {
          if (i * kRowsPerPass < w_left) {
            if (whole) {
              copy_async(target + kWOffset + i * kPassBytes, w_rows[i] + k);
            } else {
              copy_async_or_zero(target + kWOffset + i * kPassBytes, w_rows[i] + k, valid);
            }
          }
        }
      }
      commit_copies();  // an empty group keeps the count of pending groups right at the end
    };

    Accumulator<kNTiles> acc;
    clear<kNTiles>(acc);
    const int m_tiles = count_m_tiles(shared.rows, warp_m);
    const auto compute = [&](int stage) {
      const Element* const x_tile = stages + stage * (Tiles::kStageBytes / Tiles::kElementBytes);
      const Element* const w_tile = x_tile + Tiles::kBlockM * Tiles::kTileLd;
#pragma unroll
      for (int k = 0; k < Tiles::kBlockK; k += 16) {
        // W rows are columns of B: matrices (n 0-7, k 0-7), (n 0-7, k 8-15), (n 8-15, k 0-7), (n 8-15, k
        // 8-15).
        std::uint32_t b[kNTiles][2];
        const Element* const w =
            w_tile + (warp_n * kNTiles * 8 + lane % 8) * Tiles::kTileLd + k + lane / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n + 1 < kNTiles; n += 2) {
          std::uint32_t pair[4];
          load_matrices(pair, w + (n + lane / 16) * 8 * Tiles::kTileLd);
          b[n][0] = pair[0];
          b[n][1] = pair[1];
          b[n + 1][0] = pair[2];
          b[n + 1][1] = pair[3];
        }
        if constexpr (kNTiles % 2 == 1) {
          load_matrices(b[kNTiles - 1], w + (kNTiles - 1) * 8 * Tiles::kTileLd);
        }
        const Element* const x = x_tile + (warp_m * 16 + lane % 16) * Tiles::kTileLd + k + lane / 16 * 8;
        if (m_tiles == Tiles::kMTiles) {
          multiply<true, kNTiles>(acc, x, Tiles::kTileLd, b, m_tiles);
        } else {
          multiply<false, kNTiles>(acc, x, Tiles::kTileLd, b, m_tiles);
        }
      }
    };

#pragma unroll
    for (int step = 0; step < Tiles::kStages - 1; ++step) {
      load(step, step);
    }
    int stage = 0;
    int load_stage = Tiles::kStages - 1;
    for (int step = 0; step < steps; ++step) {
      wait_copies<Tiles::kStages - 2>();
      __syncthreads();  // step's copies are visible; the stage of step - 1 is free
      load(step + Tiles::kStages - 1, load_stage);
      compute(stage);
      stage = next_stage(stage, Tiles::kStages);
      load_stage = next_stage(load_stage, Tiles::kStages);
    }
    wait_copies<0>();
    __syncthreads();  // the stages become S

    auto* const s = reinterpret_cast<float*>(shared.stages);
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const int col = accumulator_col(warp_n, kNTiles, n, lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = accumulator_row<Tiles>(warp_m, m, lane, half);
          *reinterpret_cast<float2*>(s + row * Tiles::kScoreLd + col) =
              make_float2(acc[m][n][2 * half], acc[m][n][2 * half + 1]);
        }
      }
    }
    __syncthreads();
  }

  /// y[tokens of the tile, :] += P V over the chunk's experts, kBlockD columns of y at a time. The pipeline
  /// of V runs on across column blocks.
  static __device__ __forceinline__ void combine(const TileArguments& args, const TileShared& shared) {
    constexpr int kChunks = Tiles::kBlockD / 8;
    constexpr int kRowsPerPass = Tiles::kThreads / kChunks;
    constexpr int kCopies = Tiles::kBlockK / kRowsPerPass;
    static_assert(Tiles::kBlockK % kRowsPerPass == 0);
    constexpr int kNTiles = Tiles::kDTiles;
    static_assert(kNTiles % 2 == 0);

    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int warp_m = thread / 32 / Tiles::kWarpsN;
    const int warp_n = thread / 32 % Tiles::kWarpsN;
    const int copy_row = thread / kChunks;
    const int copy_col = thread % kChunks * 8;

    const auto* const stages = reinterpret_cast<const Element*>(shared.stages);
    constexpr int kPassBytes = kRowsPerPass * Tiles::kVLd * Tiles::kElementBytes;
    const std::uint32_t v_target =
        shared_address(stages) + (copy_row * Tiles::kVLd + copy_col) * Tiles::kElementBytes;

    // The next step to load: experts from load_expert on, the columns at v. Columns behind d and, in the last
    // step of a column block, rows of experts that do not exist: the former are not added to y, the latter
    // meet zeros of P and must be finite.
    int load_expert = 0;
    int load_col = copy_col;
    int load_stage = 0;
    const auto load = [&]() {
      if (load_col < args.hidden_size) {
        const Element* const v = static_cast<const Element*>(args.w_out) + load_col;
        const std::uint32_t target = v_target + load_stage * Tiles::kVStageBytes;
        const std::int32_t* const experts = shared.experts + load_expert + copy_row;
        if (load_expert + Tiles::kBlockK <= shared.chunk) {
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            copy_async(target + i * kPassBytes,
                       v + std::int64_t{experts[i * kRowsPerPass]} * args.hidden_size);
          }
        } else {
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            const bool valid = load_expert + copy_row + i * kRowsPerPass < shared.chunk;
            copy_async_or_zero(target + i * kPassBytes,
                               valid ? v + std::int64_t{experts[i * kRowsPerPass]} * args.hidden_size : v,
                               valid);
          }
        }
      }
      commit_copies();
      load_stage = next_stage(load_stage, Tiles::kVStages);
      load_expert += Tiles::kBlockK;
      if (load_expert >= shared.chunk) {
        load_expert = 0;
        load_col += Tiles::kBlockD;
      }
    };

    Accumulator<kNTiles> acc;
    const int m_tiles = count_m_tiles(shared.rows, warp_m);
    const auto* const p =
        reinterpret_cast<const Element*>(shared.p) + (warp_m * 16 + lane % 16) * shared.p_ld + lane / 16 * 8;
    const auto compute = [&](int stage, int first_expert) {
      const Element* const v_tile = stages + stage * (Tiles::kVStageBytes / Tiles::kElementBytes);
      const int experts =
          shared.chunk - first_expert < Tiles::kBlockK ? shared.chunk - first_expert : Tiles::kBlockK;
#pragma unroll
      for (int k = 0; k < Tiles::kBlockK; k += 16) {
        if (k >= experts) {
          break;  // P ends at the chunk rounded up to 16
        }
        // V rows are rows of B, so matrices come transposed: (k 0-7, n 0-7), (k 8-15, n 0-7), then n 8-15.
        std::uint32_t b[kNTiles][2];
        const Element* const v =
            v_tile + (k + lane % 16) * Tiles::kVLd + warp_n * kNTiles * 8 + lane / 16 * 8;
#pragma unroll
        for (int n = 0; n < kNTiles; n += 2) {
          std::uint32_t pair[4];
          load_matrices_transposed(pair, v + n * 8);
          b[n][0] = pair[0];
          b[n][1] = pair[1];
          b[n + 1][0] = pair[2];
          b[n + 1][1] = pair[3];
        }
        if (m_tiles == Tiles::kMTiles) {
          multiply<true, kNTiles>(acc, p + first_expert + k, shared.p_ld, b, m_tiles);
        } else {
          multiply<false, kNTiles>(acc, p + first_expert + k, shared.p_ld, b, m_tiles);
        }
      }
    };

    const auto add_to_y = [&](int first_col) {
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
        if (m >= m_tiles) {
          break;  // the same for the whole warp
        }
        const bool odd = lane % 2 == 1;
        const std::int32_t token = shared.tokens[accumulator_row<Tiles>(warp_m, m, lane, lane % 2)];
        float* const y_row = args.y + std::int64_t{token < 0 ? 0 : token} * args.hidden_size;
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
          // Even lanes give away their half 1, odd lanes their half 0: each then has 4 columns of one row.
          const float(&c)[4] = acc[m][n];
          const float other0 = __shfl_xor_sync(0xffffffffU, odd ? c[0] : c[2], 1);
          const float other1 = __shfl_xor_sync(0xffffffffU, odd ? c[1] : c[3], 1);
          const int col = first_col + vector_add_col(warp_n, kNTiles, n, lane);
          if (token >= 0 && col < args.hidden_size) {
            add_vector(y_row + col, odd ? other0 : c[0], odd ? other1 : c[1], odd ? c[2] : other0,
                       odd ? c[3] : other1);
          }
        }
      }
    };

#pragma unroll
    for (int step = 0; step < Tiles::kVStages - 1; ++step) {
      load();
    }
    int stage = 0;
    for (int first_col = 0; first_col < args.hidden_size; first_col += Tiles::kBlockD) {
      clear<kNTiles>(acc);
      for (int expert = 0; expert < shared.chunk; expert += Tiles::kBlockK) {
        wait_copies<Tiles::kVStages - 2>();
        __syncthreads();
        load();
        compute(stage, expert);
        stage = next_stage(stage, Tiles::kVStages);
      }
      add_to_y(first_col);
    }
    wait_copies<0>();
  }

  static __device__ __forceinline__ void store_p(std::byte* p, int index, float value) {
    reinterpret_cast<Element*>(p)[index] = __float2bfloat16_rn(value);
  }
};

}  // namespace moescope::cuda
