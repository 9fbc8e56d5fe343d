// Streams of known traffic. What is read goes into a sum that is stored where `sink` points; it is null at
// run time, which the compiler does not know, so that it keeps the loads.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/device/hopper.cuh"
#include "kernels/device/mma_bf16.cuh"
#include "kernels/probes/memory_stream.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 8;  ///< 16-byte accesses in flight per thread
/// A block takes one chunk of contiguous memory at a time.
constexpr std::int64_t kChunkVectors = kThreads * kUnroll;
constexpr int kBlocksPerSm = 2048 / kThreads;  ///< fills the threads of a multiprocessor
/// Blocks of a launch that walks its range more than once: more than any device holds at a time.
constexpr unsigned kLoopBlocks = 2048;

struct Vector {
  std::uint32_t x, y, z, w;
};

__device__ __forceinline__ void mix(std::uint32_t& sum, const Vector& v) {
  sum ^= v.x ^ v.y;
  sum ^= v.z ^ v.w;
}

/// Past L1 (.cg), so that a small range is read from L2 every time.
__device__ __forceinline__ Vector load(const Vector* from) {
  Vector v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ void store(Vector* to, const Vector& v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

/// `chunks`: rounds times the chunks of the range; chunk c is c % range_chunks of the range.
__global__ void __launch_bounds__(kThreads)
    read_chunks(const Vector* data, std::int64_t count, std::int64_t range_chunks, std::int64_t chunks,
                std::uint32_t* sink) {
  std::uint32_t sum = 0;
  for (std::int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const std::int64_t first = c % range_chunks * kChunkVectors + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (first + i * kThreads < count) {
        mix(sum, load(data + first + i * kThreads));
      }
    }
  }
  if (sink != nullptr) {
    *sink = sum;
  }
}

constexpr int kBulkWarps = 4;  ///< of a block, each with a ring of its own, filled by one thread
constexpr int kBulkSlots = 3;  ///< of a ring: 192 KiB of a multiprocessor's shared memory in all
constexpr int kBulkBytes = 16 * 1024;
constexpr int kBulkSharedBytes = kBulkWarps * kBulkSlots * kBulkBytes;

/// Every warp takes `pieces` pieces of kBulkBytes of the range, warps' pieces in turn, by the bulk copy
/// engine.
__global__ void __launch_bounds__(kBulkWarps * 32)
    read_bulk(const std::byte* data, std::uint32_t range_pieces, std::uint32_t pieces) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte slots[];
  __shared__ std::uint64_t barriers[kBulkWarps * kBulkSlots];
  if (threadIdx.x % 32 != 0) {
    return;
  }
  const std::uint32_t warp = threadIdx.x / 32;
  const std::uint32_t ring = shared_address(slots) + warp * kBulkSlots * kBulkBytes;
  const std::uint32_t full = shared_address(barriers) + warp * kBulkSlots * 8;
  for (std::uint32_t i = 0; i < kBulkSlots; ++i) {
    barrier_init(full + i * 8, 1);
  }
  fence_proxy_async();
  std::uint32_t piece = (blockIdx.x * kBulkWarps + warp) % range_pieces;
  const std::uint32_t step = gridDim.x * kBulkWarps % range_pieces;
  RingPosition<kBulkSlots> position;
  for (std::uint32_t i = 0; i < pieces + kBulkSlots; ++i) {
    if (i >= kBulkSlots) {
      barrier_wait(full + position.slot * 8, position.parity ^ 1U);
    }
    if (i < pieces) {
      barrier_arrive_expect(full + position.slot * 8, kBulkBytes);
      load_bulk(ring + position.slot * kBulkBytes, data + std::size_t{piece} * kBulkBytes, kBulkBytes,
                full + position.slot * 8);
      piece += step;
      piece -= piece >= range_pieces ? range_pieces : 0;
    }
    position.advance();
  }
#endif
}

__global__ void __launch_bounds__(kThreads) write_chunks(Vector* data, std::int64_t count) {
  const std::int64_t first = blockIdx.x * kChunkVectors + threadIdx.x;
  // Differs from place to place: memory that compresses would not show what memory can do.
  const std::uint32_t value = static_cast<std::uint32_t>(first) * 2654435761U;
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (first + i * kThreads < count) {
      store(data + first + i * kThreads, {value, value + i, ~value, value ^ 0x5bd1e995U});
    }
  }
}

__global__ void __launch_bounds__(kThreads) copy_chunks(Vector* to, const Vector* from, std::int64_t count) {
  const std::int64_t first = blockIdx.x * kChunkVectors + threadIdx.x;
  Vector held[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (first + i * kThreads < count) {
      held[i] = load(from + first + i * kThreads);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (first + i * kThreads < count) {
      store(to + first + i * kThreads, held[i]);
    }
  }
}

__device__ __forceinline__ void add_ones(float* to) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(to), "f"(1.0F) : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to + i), "f"(1.0F) : "memory");
  }
#endif
}

__global__ void __launch_bounds__(kThreads)
    reduce_chunks(float* data, std::int64_t count, std::int64_t range_chunks, std::int64_t chunks) {
  for (std::int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const std::int64_t first = c % range_chunks * kChunkVectors + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (first + i * kThreads < count) {
        add_ones(data + 4 * (first + i * kThreads));
      }
    }
  }
}

/// The finaliser of MurmurHash3 (Appleby): neighbouring inputs give unrelated outputs.
__device__ __forceinline__ std::uint32_t hash(std::uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bU;
  h ^= h >> 13;
  h *= 0xc2b2ae35U;
  return h ^ (h >> 16);
}

__global__ void __launch_bounds__(kThreads)
    fill_random(__nv_bfloat16* data, std::int64_t count, std::uint32_t seed) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count; i += stride) {
    const std::uint32_t bits = hash(static_cast<std::uint32_t>(i) ^ hash(seed));
    data[i] = __float2bfloat16(static_cast<float>(bits) * 0x1p-31F - 1.0F);
  }
}

__global__ void __launch_bounds__(kThreads) read_shared(int iterations, std::uint32_t* sink) {
  __shared__ Vector tile[kChunkVectors];  // 32 KiB
  for (int i = 0; i < kUnroll; ++i) {
    tile[i * kThreads + threadIdx.x] = {threadIdx.x, blockIdx.x, threadIdx.x, blockIdx.x};
  }
  __syncthreads();
  const std::uint32_t address = shared_address(tile + threadIdx.x);
  std::uint32_t sum = 0;
  for (int round = 0; round < iterations; ++round) {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      Vector v;
      // Volatile to ptxas too: it would keep one load of every four rounds.
      asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(address + i * kThreads * static_cast<int>(sizeof(Vector))));
      mix(sum, v);
    }
  }
  if (sink != nullptr) {
    *sink = sum;
  }
}

constexpr int kFmaChains = 16;  ///< independent, per thread: more than the pipeline is deep
constexpr int kFmaSteps = 8;    ///< of each chain per iteration

__global__ void __launch_bounds__(kThreads) multiply_add_chains(int iterations, float* sink) {
  float sum[kFmaChains];
  for (int c = 0; c < kFmaChains; ++c) {
    sum[c] = static_cast<float>(threadIdx.x + c);
  }
  const float factor = 1.0F - 1e-3F * static_cast<float>(threadIdx.x % 7);
  for (int round = 0; round < iterations; ++round) {
#pragma unroll
    for (int step = 0; step < kFmaSteps; ++step) {
#pragma unroll
      for (int c = 0; c < kFmaChains; ++c) {
        sum[c] = fmaf(sum[c], factor, factor);
      }
    }
  }
  if (sink != nullptr) {
    for (int c = 0; c < kFmaChains; ++c) {
      sink[c] = sum[c];
    }
  }
}

std::int64_t vectors(std::int64_t bytes) { return bytes / static_cast<std::int64_t>(sizeof(Vector)); }
std::int64_t chunks_of(std::int64_t bytes) { return (vectors(bytes) + kChunkVectors - 1) / kChunkVectors; }

}  // namespace

void launch_memory_read(const void* data, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t chunks = chunks_of(bytes);
  const auto blocks = rounds == 1 ? static_cast<unsigned>(chunks) : kLoopBlocks;
  read_chunks<<<blocks, kThreads, 0, stream>>>(static_cast<const Vector*>(data), vectors(bytes), chunks,
                                               chunks * rounds, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

std::int64_t bulk_read_bytes(int num_sms, std::int64_t least) {
  const std::int64_t all = std::int64_t{num_sms} * kBulkWarps * kBulkBytes;
  return (least + all - 1) / all * all;
}

void launch_bulk_read(const void* data, std::int64_t range, std::int64_t bytes, int num_sms,
                      cudaStream_t stream) {
  MOESCOPE_CUDA_CHECK(
      cudaFuncSetAttribute(read_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, kBulkSharedBytes));
  const std::int64_t pieces = bytes / (std::int64_t{num_sms} * kBulkWarps * kBulkBytes);
  read_bulk<<<static_cast<unsigned>(num_sms), kBulkWarps * 32, kBulkSharedBytes, stream>>>(
      static_cast<const std::byte*>(data), static_cast<std::uint32_t>(range / kBulkBytes),
      static_cast<std::uint32_t>(pieces));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_memory_write(void* data, std::int64_t bytes, cudaStream_t stream) {
  write_chunks<<<static_cast<unsigned>(chunks_of(bytes)), kThreads, 0, stream>>>(static_cast<Vector*>(data),
                                                                                 vectors(bytes));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_memory_copy(void* to, const void* from, std::int64_t bytes, cudaStream_t stream) {
  copy_chunks<<<static_cast<unsigned>(chunks_of(bytes)), kThreads, 0, stream>>>(
      static_cast<Vector*>(to), static_cast<const Vector*>(from), vectors(bytes));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_memory_reduce(float* data, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t chunks = chunks_of(bytes);
  reduce_chunks<<<kLoopBlocks, kThreads, 0, stream>>>(data, vectors(bytes), chunks, chunks * rounds);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_fill_random_bf16(void* data, std::int64_t count, std::uint32_t seed, cudaStream_t stream) {
  fill_random<<<kLoopBlocks, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(data), count, seed);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

std::int64_t shared_read_bytes(int num_sms) {
  return std::int64_t{num_sms} * kBlocksPerSm * kChunkVectors * static_cast<std::int64_t>(sizeof(Vector));
}

void launch_shared_read(int num_sms, int iterations, cudaStream_t stream) {
  read_shared<<<static_cast<unsigned>(num_sms * kBlocksPerSm), kThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

std::int64_t fma_flop(int num_sms) {
  return std::int64_t{2} * num_sms * kBlocksPerSm * kThreads * kFmaChains * kFmaSteps;
}

void launch_fma(int num_sms, int iterations, cudaStream_t stream) {
  multiply_add_chains<<<static_cast<unsigned>(num_sms * kBlocksPerSm), kThreads, 0, stream>>>(iterations,
                                                                                              nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
