// Grouped products in bf16 for sm_90a: wgmma, bulk tensor copies, warp specialisation.
//
// A work item is one tile of up to 128 rows against 256 rows of its expert's matrix: 128 gate rows and the up
// rows that belong to them, or 256 rows side by side. The two halves are two products with accumulators of
// their own, so that gate and up of an element meet in one thread. One block per multiprocessor takes every
// gridDim-th item (all cost the same); items of a tile are neighbours, and tiles of an expert too, so that
// they share rows and weights in L2. The producer warpgroup runs ahead through a ring of stages, into the
// next item; each consumer warpgroup has 64 of the rows, and sits out an item that has fewer.
#include <algorithm>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/grouped_gemm.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/device/hopper.cuh"
#include "kernels/device/mma_bf16.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/tensor_map.hpp"

#include <cuda_bf16.h>

namespace moescope::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma needs the architecture 90a, not 90"
#endif

constexpr int kRows = static_cast<int>(kGroupedTileRows);
constexpr int kPart = 128;  ///< rows of weights in one product
constexpr int kWarpgroups = 2;
constexpr int kThreads = 128 * (kWarpgroups + 1);
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;
constexpr int kChunk = 64;  ///< columns of A and weights in a stage: 128 bytes, the swizzle's width
constexpr int kRowBytes = kChunk * 2;
constexpr int kBoxBytes = kPart * kRowBytes;
constexpr int kStageBytes = 3 * kBoxBytes;  ///< A, and two parts of the weights
constexpr int kStages = 4;

/// A consumer warp's 16 rows of 64 columns of the output on their way to memory; no bank twice.
constexpr int kOutStride = kRowBytes + 16;
constexpr int kOutBytes = 16 * kOutStride;
constexpr int kSharedBytes =
    1024 + kStages * kStageBytes + 4 * kWarpgroups * kOutBytes + 16 * kStages + 4 * kRows;
static_assert(kRows == kPart && kRows == 64 * kWarpgroups && kSharedBytes <= 232448);
static_assert(128 * kProducerRegisters + 128 * kWarpgroups * kConsumerRegisters <= 65536);

struct GroupedMaps {
  CUtensorMap weights;
  CUtensorMap a;  ///< where rows are A's own
};

struct GroupedArguments {
  const __nv_bfloat16* a;
  const std::int32_t* row_ids;
  __nv_bfloat16* out;
  const int4* tiles;
  const std::int32_t* num_tiles;
  std::int32_t n;
  std::int32_t k;
  std::int32_t blocks;  ///< items of a tile
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct GroupedShared {
  std::byte* base;  ///< 1024-byte aligned
  std::uint32_t stages;

  __device__ __forceinline__ explicit GroupedShared(std::byte* memory) {
    const std::uint32_t start = shared_address(memory);
    stages = (start + 1023U) & ~1023U;
    base = memory + (stages - start);
  }
  __device__ __forceinline__ std::uint32_t a(std::uint32_t slot) const { return stages + slot * kStageBytes; }
  __device__ __forceinline__ std::uint32_t weights(std::uint32_t slot, int part) const {
    return a(slot) + (1 + part) * kBoxBytes;
  }
  __device__ __forceinline__ std::uint32_t out_offset(int warp) const {
    return kStages * kStageBytes + warp * kOutBytes;
  }
  /// Completes when a stage's data have landed.
  __device__ __forceinline__ std::uint32_t full(std::uint32_t slot) const {
    return stages + kStages * kStageBytes + 4 * kWarpgroups * kOutBytes + 8 * slot;
  }
  __device__ __forceinline__ std::int32_t* row_ids() const {
    return reinterpret_cast<std::int32_t*>(base + kStages * kStageBytes + 4 * kWarpgroups * kOutBytes +
                                           16 * kStages);
  }
  /// Completes when both consumers are done with a stage.
  __device__ __forceinline__ std::uint32_t empty(std::uint32_t slot) const { return full(kStages + slot); }

  __device__ __forceinline__ void init_barriers(int loaders) const {
    for (std::uint32_t i = 0; i < kStages; ++i) {
      barrier_init(full(i), loaders);
      barrier_init(empty(i), 4 * kWarpgroups);
    }
    fence_proxy_async();
  }
};

/// Calls work(tile, block) for every item of this thread block; the next one's tile is on its way meanwhile.
template <class Work>
__device__ __forceinline__ void for_each_item(const GroupedArguments& args, Work work) {
  const int items = *args.num_tiles * args.blocks;
  const auto fetch = [&](int item) {
    return item < items ? args.tiles[item / args.blocks] : make_int4(0, 0, 0, 0);
  };
  int item = static_cast<int>(blockIdx.x);
  int4 next = fetch(item);
  for (; item < items; item += static_cast<int>(gridDim.x)) {
    const GroupedTile tile{.expert = next.x, .first_row = next.y, .count = next.z};
    next = fetch(item + static_cast<int>(gridDim.x));
    work(tile, item % args.blocks);
  }
}

/// First column of an item's second part of the weights' rows.
template <bool kGated>
__device__ __forceinline__ int second_part(const GroupedArguments& args, int first) {
  return kGated ? args.n + first : first + kPart;
}
template <bool kGated>
__device__ __forceinline__ int first_column(int block) {
  return block * (kGated ? kPart : 2 * kPart);
}

/// Weights, and rows that are A's own. One thread.
template <bool kGated, bool kGather>
__device__ __forceinline__ void load_boxes(const GroupedArguments& args, const GroupedMaps& maps,
                                           const GroupedShared& shared) {
  RingPosition<kStages> ring;
  for_each_item(args, [&](const GroupedTile& tile, int block) {
    const int column = first_column<kGated>(block);
    for (int k = 0; k < args.k; k += kChunk) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
      const std::uint32_t full = shared.full(ring.slot);
      barrier_arrive_expect(full, (kGather ? 2 : 3) * kBoxBytes);
      load_box(shared.weights(ring.slot, 0), &maps.weights, k, column, tile.expert, full);
      load_box(shared.weights(ring.slot, 1), &maps.weights, k, second_part<kGated>(args, column), tile.expert,
               full);
      if constexpr (!kGather) {
        // Behind the tile's rows lie others, or nothing: their products are not stored.
        load_box(shared.a(ring.slot), &maps.a, k, tile.first_row, 0, full);
      }
      ring.advance();
    }
  });
}

/// Rows by id in the swizzle of the tensor cores' operands. `half`: which 64 are this warp's. Ids wait in
/// shared memory: in registers they would not fit a producer's share.
__device__ __forceinline__ void gather_rows(const GroupedArguments& args, const GroupedShared& shared,
                                            int half, int lane) {
  RingPosition<kStages> ring;
  std::int32_t* const ids = shared.row_ids() + 64 * half;
  const int piece = lane % 8;  // of the row's 8 pieces of 16 bytes
  for_each_item(args, [&](const GroupedTile& tile, int /*block*/) {
    const int count = min(tile.count - 64 * half, 64);
    __syncwarp();  // the ids before have been read
#pragma unroll
    for (int i = lane; i < 64; i += 32) {
      ids[i] = i < count ? args.row_ids[tile.first_row + 64 * half + i] : 0;
    }
    __syncwarp();
    for (int k = 0; k < args.k; k += kChunk) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
      const bool valid = k + piece * 8 < args.k;
      const __nv_bfloat16* const source = args.a + k + piece * 8;
      const std::uint32_t target = shared.a(ring.slot) + 64 * half * kRowBytes;
#pragma unroll 4
      for (int row = lane / 8; row < count; row += 4) {
        copy_async_or_zero(target + row * kRowBytes + (piece ^ (row % 8)) * 16,
                           valid ? source + std::int64_t{ids[row]} * args.k : args.a, valid);
      }
      barrier_arrive_after_copies(shared.full(ring.slot));
      ring.advance();
    }
  });
}

__device__ __forceinline__ std::uint32_t pack(float a, float b) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}

using Accumulators = float[2][kPart / 2];

__device__ __forceinline__ void release(const GroupedShared& shared, std::uint32_t slot, int lane) {
  __syncwarp();
  if (lane == 0) {
    barrier_arrive(shared.empty(slot));
  }
}

/// s = A W^T of both parts. One chunk's products are in flight while the next one's are issued.
template <bool kGather>
__device__ __forceinline__ void multiply(const GroupedArguments& args, const GroupedShared& shared,
                                         RingPosition<kStages>& ring, int warpgroup, int lane,
                                         Accumulators& s) {
#pragma unroll
  for (int i = 0; i < kPart / 2; ++i) {
    s[0][i] = 0.0F;
    s[1][i] = 0.0F;
  }
  std::uint32_t before = kStages;
  for (int k = 0; k < args.k; k += kChunk) {
    barrier_wait(shared.full(ring.slot), ring.parity);
    if constexpr (kGather) {
      fence_proxy_async();  // A was written by cp.async
    }
    const std::uint64_t a = matrix_descriptor(shared.a(ring.slot) + warpgroup * 64 * kRowBytes);
    const std::uint64_t w0 = matrix_descriptor(shared.weights(ring.slot, 0));
    const std::uint64_t w1 = matrix_descriptor(shared.weights(ring.slot, 1));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      Wgmma<kPart>::multiply(s[0], a + 2 * step, w0 + 2 * step);  // 32 bytes on, in units of 16
      Wgmma<kPart>::multiply(s[1], a + 2 * step, w1 + 2 * step);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (before != kStages) {
      release(shared, before, lane);
    }
    before = ring.slot;
    ring.advance();
  }
  wgmma_wait<0>();
  keep_order(s[0]);
  keep_order(s[1]);
  release(shared, before, lane);
}

/// 64 columns from `column` on of this warp's 16 rows; value(i) is element i of its 32 accumulators.
template <class Value>
__device__ __forceinline__ void store_columns(const GroupedArguments& args, const GroupedShared& shared,
                                              const GroupedTile& tile, int row, int warp, int lane,
                                              int column, Value value) {
  const std::uint32_t offset = shared.out_offset(warp);
  const std::uint32_t target = shared.stages + offset + lane % 16 * kOutStride + lane / 16 * 16;
  __syncwarp();  // what was there has been read
#pragma unroll
  for (int n = 0; n < kChunk / 8; n += 2) {
    const int i = 4 * n;
    store_matrices(target + n * 16, pack(value(i), value(i + 1)), pack(value(i + 2), value(i + 3)),
                   pack(value(i + 4), value(i + 5)), pack(value(i + 6), value(i + 7)));
  }
  __syncwarp();
  const int piece = lane % 8;
  const std::byte* const source = shared.base + offset + piece * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int own = lane / 8 + 4 * i;
    if (row + own < tile.count && column + piece * 8 < args.n) {
      *reinterpret_cast<uint4*>(args.out + std::int64_t{tile.first_row + row + own} * args.n + column +
                                piece * 8) = *reinterpret_cast<const uint4*>(source + own * kOutStride);
    }
  }
}

template <bool kGated, bool kGather, Activation kActivation>
__device__ __forceinline__ void consume(const GroupedArguments& args, const GroupedShared& shared,
                                        int warpgroup, int warp, int lane) {
  RingPosition<kStages> ring;
  const int row = warpgroup * 64 + warp % 4 * 16;
  for_each_item(args, [&](const GroupedTile& tile, int block) {
    if (warpgroup * 64 >= tile.count) {
      for (int k = 0; k < args.k; k += kChunk) {
        barrier_wait(shared.full(ring.slot), ring.parity);
        release(shared, ring.slot, lane);
        ring.advance();
      }
      return;
    }
    Accumulators s;
    multiply<kGather>(args, shared, ring, warpgroup, lane, s);
    const int column = first_column<kGated>(block);
#pragma unroll
    for (int part = 0; part < (kGated ? 1 : 2); ++part) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_columns(args, shared, tile, row, warp, lane, column + part * kPart + half * 64, [&](int i) {
          const int at = half * 32 + i;
          return kGated ? activate<kActivation>(s[0][at]) * s[1][at] : s[part][at];
        });
      }
    }
  });
}

#endif

template <bool kGated, bool kGather, Activation kActivation>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_gemm_kernel(const __grid_constant__ GroupedMaps maps,
                        const __grid_constant__ GroupedArguments args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte memory[];
  const GroupedShared shared(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);  // uniform, and known to be
  if (threadIdx.x == 0) {
    shared.init_barriers(kGather ? 1 + 64 : 1);
    prefetch_map(&maps.weights);
    if constexpr (!kGather) {
      prefetch_map(&maps.a);
    }
  }
  __syncthreads();
  release_successor();
  wait_for_predecessor();
  if (warp < 4) {
    shrink_registers<kProducerRegisters>();
    if (warp == 0) {
      if (lane == 0) {
        load_boxes<kGated, kGather>(args, maps, shared);
      }
    } else if (kGather && warp < 3) {
      gather_rows(args, shared, warp - 1, lane);
    }
  } else {
    grow_registers<kConsumerRegisters>();
    consume<kGated, kGather, kActivation>(args, shared, warp / 4 - 1, warp - 4, lane);
  }
#endif
}

template <bool kGated, bool kGather, Activation kActivation>
void launch(const GroupedGemm& gemm, cudaStream_t stream) {
  const auto kernel = grouped_gemm_kernel<kGated, kGather, kActivation>;
  const GroupedArguments args{
      .a = static_cast<const __nv_bfloat16*>(gemm.a),
      .row_ids = gemm.row_ids,
      .out = static_cast<__nv_bfloat16*>(gemm.out),
      .tiles = reinterpret_cast<const int4*>(gemm.tiles),
      .num_tiles = gemm.num_tiles,
      .n = static_cast<std::int32_t>(gemm.n),
      .k = static_cast<std::int32_t>(gemm.k),
      .blocks = static_cast<std::int32_t>(ceil_div(gemm.n, kGated ? kPart : 2 * kPart))};
  const std::int64_t items = max_grouped_tiles(gemm.rows, gemm.num_experts) * args.blocks;
  if (items >= std::int64_t{1} << 31U) {
    throw InvalidArgument("grouped_gemm.rows", fmt::to_string(gemm.rows),
                          fmt::format("makes {} work items, must be below 2^31", items));
  }
  GroupedMaps maps{};
  maps.weights = make_strip_map(gemm.weights, gemm.num_experts, kGated ? 2 * gemm.n : gemm.n, gemm.k,
                                StripKind::kRow, kPart);
  if constexpr (!kGather) {
    maps.a = make_strip_map(gemm.a, 1, gemm.rows, gemm.k, StripKind::kRow, kRows);
  }
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const std::int64_t grid = std::min(current_gpu().num_sms, items);
  launch_dependent(
      kernel,
      {.grid = dim3(static_cast<unsigned>(grid)), .block = dim3(kThreads), .shared_bytes = kSharedBytes},
      stream, maps, args);
}

template <bool kGather>
void launch_gated(const GroupedGemm& gemm, Activation activation, cudaStream_t stream) {
  switch (activation) {
    case Activation::kSilu:
      return launch<true, kGather, Activation::kSilu>(gemm, stream);
    case Activation::kGelu:
      return launch<true, kGather, Activation::kGelu>(gemm, stream);
    case Activation::kRelu:
      return launch<true, kGather, Activation::kRelu>(gemm, stream);
  }
}

}  // namespace

namespace detail {

bool grouped_gemm_bf16_built() {
#if defined(__CUDA_ARCH_LIST__)
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (arch == 900) {
      return true;
    }
  }
#endif
  return false;
}

void launch_grouped_gemm_bf16(const GroupedGemm& gemm, const Activation* activation, cudaStream_t stream) {
  if (activation == nullptr) {
    if (gemm.row_ids != nullptr) {
      throw InternalError("the plain grouped product takes A's rows as they are");
    }
    launch<false, false, Activation::kSilu>(gemm, stream);
  } else if (gemm.row_ids != nullptr) {
    launch_gated<true>(gemm, *activation, stream);
  } else {
    launch_gated<false>(gemm, *activation, stream);
  }
}

}  // namespace detail

}  // namespace moescope::cuda
