// Grouped products in fp32 with fused multiply-adds, for checking: exact storage, on any device. A block
// takes 64 of a tile's rows against 64 columns of the output (and with gates, 64 gate rows and the 64 up rows
// that belong to them); a thread holds 4 x 4 elements of either.
#include <algorithm>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/grouped_gemm.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

namespace moescope::cuda {
namespace {

constexpr int kRows = 64;
constexpr int kCols = 64;
constexpr int kDepth = 16;
constexpr int kThreads = 256;
constexpr int kLd = kRows + 4;  ///< 16-byte aligned rows, no bank twice
constexpr int kSide = 4;        ///< elements of a thread, either way
constexpr int kSubtiles = static_cast<int>(kGroupedTileRows) / kRows;
constexpr std::int64_t kBlocksPerSm = 8;
static_assert(kThreads * kSide * kSide == kRows * kCols && kThreads * 4 == kRows * kDepth);

struct F32Arguments {
  GroupedGemm gemm;
  Activation activation;
  std::int32_t col_blocks;
};

template <bool kGated>
__global__ void __launch_bounds__(kThreads) grouped_gemm_f32_kernel(const F32Arguments args) {
  constexpr int kParts = kGated ? 2 : 1;
  __shared__ __align__(16) float a_tile[kDepth][kLd];
  __shared__ __align__(16) float w_tile[kParts][kDepth][kLd];
  wait_for_predecessor();
  const GroupedGemm& gemm = args.gemm;
  const int n = static_cast<int>(gemm.n);
  const int k = static_cast<int>(gemm.k);
  const auto* const a = static_cast<const float*>(gemm.a);
  const auto* const weights = static_cast<const float*>(gemm.weights);
  auto* const out = static_cast<float*>(gemm.out);
  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / 16 * kSide;
  const int col0 = thread % 16 * kSide;
  const int load_row = thread / 4;
  const int load_k = thread % 4 * 4;

  const std::int64_t per_tile = std::int64_t{kSubtiles} * args.col_blocks;
  const std::int64_t items = *gemm.num_tiles * per_tile;
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const GroupedTile tile = gemm.tiles[item / per_tile];
    const int subtile = static_cast<int>(item % per_tile) / args.col_blocks;
    const int count = min(tile.count - subtile * kRows, kRows);
    if (count <= 0) {
      continue;
    }
    const int first_row = tile.first_row + subtile * kRows;
    const int first_col = static_cast<int>(item % args.col_blocks) * kCols;
    const bool has_row = load_row < count;
    const int id = !has_row                  ? 0
                   : gemm.row_ids != nullptr ? gemm.row_ids[first_row + load_row]
                                             : first_row + load_row;
    const bool has_col = first_col + load_row < n;
    const std::int64_t weight_row =
        std::int64_t{tile.expert} * kParts * n + (has_col ? first_col + load_row : 0);

    float acc[kParts][kSide][kSide] = {};
    for (int k0 = 0; k0 < k; k0 += kDepth) {
      const bool has_k = k0 + load_k < k;  // k is a multiple of 8
      const auto load = [&](const float* matrix, std::int64_t row, bool valid) {
        return valid && has_k ? *reinterpret_cast<const float4*>(matrix + row * k + k0 + load_k)
                              : make_float4(0, 0, 0, 0);
      };
      const auto store = [&](float(&to)[kDepth][kLd], const float4& v) {
        to[load_k][load_row] = v.x;
        to[load_k + 1][load_row] = v.y;
        to[load_k + 2][load_row] = v.z;
        to[load_k + 3][load_row] = v.w;
      };
      store(a_tile, load(a, id, has_row));
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        store(w_tile[part], load(weights, weight_row + std::int64_t{part} * n, has_col));
      }
      __syncthreads();
#pragma unroll
      for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
#pragma unroll
          for (int j = 0; j < kSide; ++j) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
              acc[part][i][j] = fmaf(a_tile[depth][row0 + i], w_tile[part][depth][col0 + j], acc[part][i][j]);
            }
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      if (row0 + i < count && first_col + col0 < n) {
        float4 result;
        float* const element = &result.x;
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
          element[j] =
              kGated ? activate(args.activation, acc[0][i][j]) * acc[kParts - 1][i][j] : acc[0][i][j];
        }
        *reinterpret_cast<float4*>(out + std::int64_t{first_row + row0 + i} * n + first_col + col0) = result;
      }
    }
  }
}

}  // namespace

namespace detail {

void launch_grouped_gemm_f32(const GroupedGemm& gemm, const Activation* activation, cudaStream_t stream) {
  const F32Arguments args{.gemm = gemm,
                          .activation = activation != nullptr ? *activation : Activation::kSilu,
                          .col_blocks = static_cast<std::int32_t>(ceil_div(gemm.n, kCols))};
  const std::int64_t items = max_grouped_tiles(gemm.rows, gemm.num_experts) * kSubtiles * args.col_blocks;
  const LaunchShape launch{
      .grid = dim3(static_cast<unsigned>(std::min(items, kBlocksPerSm * current_gpu().num_sms))),
      .block = dim3(kThreads)};
  launch_dependent(activation != nullptr ? grouped_gemm_f32_kernel<true> : grouped_gemm_f32_kernel<false>,
                   launch, stream, args);
}

}  // namespace detail

}  // namespace moescope::cuda
