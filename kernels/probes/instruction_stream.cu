// Known numbers of instructions. Results go where `sink` points, which is null at run time: see
// memory_stream.cu. Sources of the sm_90 instructions: PTX ISA 9.0, cp.async.bulk, cp.reduce.async.bulk,
// wgmma.mma_async.
#include "kernels/probes/instruction_stream.hpp"

#include <cuda_bf16.h>

#include "kernels/device/mma_bf16.cuh"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

/// Blocks of a launch that walks its range more than once: more than any device holds at a time.
constexpr unsigned kLoopBlocks = 2048;
/// Odd, so that multiplying by it modulo a power of two visits every row once.
constexpr std::int64_t kScatter = 0x9e3779b1;

__global__ void __launch_bounds__(kStreamThreads)
    gather_rows(const uint4* table, std::int64_t rows, std::int64_t count, std::uint32_t* sink) {
  constexpr int kThreadsPerRow = kGatherRowBytes / sizeof(uint4);
  const std::int64_t index =
      blockIdx.x * std::int64_t{kStreamThreads / kThreadsPerRow} + threadIdx.x / kThreadsPerRow;
  if (index >= count) {
    return;
  }
  const std::int64_t row = index * kScatter & (rows - 1);
  uint4 v;
  // Volatile to ptxas too: it would move the load to where its result is used, which is nowhere.
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(table + row * kThreadsPerRow + threadIdx.x % kThreadsPerRow));
  if (sink != nullptr) {
    *sink = v.x ^ v.y ^ v.z ^ v.w;
  }
}

__global__ void __launch_bounds__(kStreamThreads)
    atomic_words(float* data, std::int64_t count, std::int64_t steps, float* sink) {
  float sum = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * kStreamThreads;
  for (std::int64_t i = blockIdx.x * std::int64_t{kStreamThreads} + threadIdx.x; i < steps; i += stride) {
    float before = 0;
    asm volatile("atom.relaxed.gpu.global.add.f32 %0, [%1], %2;"
                 : "=f"(before)
                 : "l"(data + i % count), "f"(1.0F)
                 : "memory");
    sum += before;
  }
  if (sink != nullptr) {
    *sink = sum;
  }
}

__global__ void __launch_bounds__(kStreamThreads)
    copy_async_words(const uint4* from, std::int64_t count, std::int64_t steps) {
  __shared__ uint4 tile[kStreamThreads];
  const std::uint32_t target = shared_address(tile + threadIdx.x);
  const std::int64_t stride = std::int64_t{gridDim.x} * kStreamThreads;
  for (std::int64_t i = blockIdx.x * std::int64_t{kStreamThreads} + threadIdx.x; i < steps; i += stride) {
    // Shifted from round to round: L1 merges a copy with one of the same line that is still under way.
    copy_async(target, from + (i + i / count * kStreamThreads) % count);
    commit_copies();
    wait_copies<4>();
  }
  wait_copies<0>();
}

__global__ void __launch_bounds__(kStreamThreads) write_shared(int iterations, std::uint32_t* sink) {
  __shared__ uint4 tile[kStreamThreads];
  const std::uint32_t target = shared_address(tile + threadIdx.x);
  std::uint32_t sum = 0;
  for (int round = 0; round < iterations; ++round) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(target), "r"(sum + round) : "memory");
    std::uint32_t r[4];
    load_matrices(r, tile + threadIdx.x);
    sum += r[0] ^ r[1] ^ r[2] ^ r[3];
  }
  if (sink != nullptr) {
    *sink = sum;
  }
}

__global__ void __launch_bounds__(kStreamThreads) conflicting_reads(int iterations, std::uint32_t* sink) {
  constexpr int kStride = 8;
  __shared__ std::uint32_t tile[kStreamThreads * kStride];
  for (int i = threadIdx.x; i < kStreamThreads * kStride; i += kStreamThreads) {
    tile[i] = i;
  }
  __syncthreads();
  const std::uint32_t source = shared_address(tile + threadIdx.x * kStride);
  std::uint32_t sum = 0;
  for (int round = 0; round < iterations; ++round) {
    std::uint32_t v = 0;
    asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(v) : "r"(source));
    sum += v;
  }
  if (sink != nullptr) {
    *sink = sum;
  }
}

__global__ void __launch_bounds__(kStreamThreads) mma_chains(int iterations, float* sink) {
  float sums[kMmaPerIteration][4] = {};
  const std::uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  const std::uint32_t b[2] = {threadIdx.x + 4, threadIdx.x + 5};
  for (int round = 0; round < iterations; ++round) {
#pragma unroll
    for (auto& sum : sums) {
      multiply_add(sum, a, b);
    }
  }
  if (sink != nullptr) {
    for (const auto& sum : sums) {
      *sink += sum[0] + sum[1] + sum[2] + sum[3];
    }
  }
}

__global__ void __launch_bounds__(kStreamThreads) fma_pairs(int iterations, __nv_bfloat162* sink) {
  __nv_bfloat162 sums[kFmaPairsPerIteration];
  for (int i = 0; i < kFmaPairsPerIteration; ++i) {
    sums[i] = __floats2bfloat162_rn(static_cast<float>(threadIdx.x), static_cast<float>(i));
  }
  const __nv_bfloat162 factor = __floats2bfloat162_rn(0.5F, 0.25F);
  for (int round = 0; round < iterations; ++round) {
#pragma unroll
    for (auto& sum : sums) {
      sum = __hfma2(sum, factor, factor);
    }
  }
  if (sink != nullptr) {
    for (int i = 0; i < kFmaPairsPerIteration; ++i) {
      sink[i] = sums[i];
    }
  }
}

#if __CUDA_ARCH__ >= 900
/// Waits until the barrier's phase has passed.
__device__ __forceinline__ void wait_barrier(std::uint32_t barrier, int phase) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(phase)
        : "memory");
  }
}
#endif

/// One thread per block copies, one bulk at a time; other blocks hide its latency.
__global__ void bulk_loads([[maybe_unused]] const std::byte* from, [[maybe_unused]] std::int64_t chunks,
                           [[maybe_unused]] std::int64_t steps) {
#if __CUDA_ARCH__ >= 900
  __shared__ alignas(128) std::byte tile[kBulkBytes];
  __shared__ alignas(8) std::uint64_t barrier_word;
  const std::uint32_t barrier = shared_address(&barrier_word);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  int phase = 0;
  for (std::int64_t step = blockIdx.x; step < steps; step += gridDim.x) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "n"(static_cast<int>(kBulkBytes))
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(tile)),
        "l"(from + step % chunks * kBulkBytes), "n"(static_cast<int>(kBulkBytes)), "r"(barrier)
        : "memory");
    wait_barrier(barrier, phase);
    phase ^= 1;
  }
#endif
}

/// `reduce`: adds instead of storing.
template <bool kReduce>
__global__ void bulk_writes([[maybe_unused]] std::byte* to, [[maybe_unused]] std::int64_t chunks,
                            [[maybe_unused]] std::int64_t steps) {
#if __CUDA_ARCH__ >= 900
  __shared__ alignas(128) std::byte tile[kBulkBytes];
  for (int i = threadIdx.x; i < kBulkBytes; i += blockDim.x) {
    tile[i] = std::byte{0};
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x != 0) {
    return;
  }
  for (std::int64_t step = blockIdx.x; step < steps; step += gridDim.x) {
    std::byte* target = to + step % chunks * kBulkBytes;
    if constexpr (kReduce) {
      asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target),
                   "r"(shared_address(tile)), "n"(static_cast<int>(kBulkBytes))
                   : "memory");
    } else {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target),
                   "r"(shared_address(tile)), "n"(static_cast<int>(kBulkBytes))
                   : "memory");
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Shared-memory matrix descriptor without swizzling, core matrices next to each other.
__device__ __forceinline__ std::uint64_t matrix_descriptor(const void* tile) {
  constexpr std::uint64_t kLeading = 128 >> 4;
  constexpr std::uint64_t kStride = 256 >> 4;
  return (shared_address(tile) >> 4 & 0x3fffU) | kLeading << 16 | kStride << 32;
}
#endif

__global__ void __launch_bounds__(kStreamThreads)
    wgmma_chain([[maybe_unused]] int iterations, [[maybe_unused]] float* sink) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __shared__ alignas(128) std::uint32_t a[64 * 16 / 2];
  __shared__ alignas(128) std::uint32_t b[64 * 16 / 2];
  for (int i = threadIdx.x; i < 64 * 16 / 2; i += kStreamThreads) {
    a[i] = 0x3c003c00U + i;
    b[i] = 0x3c003c00U - i;
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  float d[32] = {};
  const std::uint64_t a_descriptor = matrix_descriptor(a);
  const std::uint64_t b_descriptor = matrix_descriptor(b);
  for (int round = 0; round < iterations; ++round) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a_descriptor), "l"(b_descriptor));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  if (sink != nullptr) {
    for (const float value : d) {
      *sink += value;
    }
  }
#endif
}

template <class T>
std::int64_t count_of(std::int64_t bytes) {
  return bytes / static_cast<std::int64_t>(sizeof(T));
}

}  // namespace

void launch_gather_rows(const void* table, std::int64_t rows, std::int64_t count, cudaStream_t stream) {
  const std::int64_t bytes_per_block = kStreamThreads * static_cast<std::int64_t>(sizeof(uint4));
  const auto blocks = (count * kGatherRowBytes + bytes_per_block - 1) / bytes_per_block;
  gather_rows<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(static_cast<const uint4*>(table),
                                                                            rows, count, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_memory_atomic(float* data, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t count = count_of<float>(bytes);
  atomic_words<<<kLoopBlocks, kStreamThreads, 0, stream>>>(data, count, count * rounds, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_copy_async(const void* from, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t count = count_of<uint4>(bytes);
  copy_async_words<<<kLoopBlocks, kStreamThreads, 0, stream>>>(static_cast<const uint4*>(from), count,
                                                               count * rounds);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_shared_write(int blocks, int iterations, cudaStream_t stream) {
  write_shared<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_shared_conflicts(int blocks, int iterations, cudaStream_t stream) {
  conflicting_reads<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_mma(int blocks, int iterations, cudaStream_t stream) {
  mma_chains<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_fma_bf16(int blocks, int iterations, cudaStream_t stream) {
  fma_pairs<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_bulk_load(const void* from, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t chunks = bytes / kBulkBytes;
  bulk_loads<<<kLoopBlocks, 1, 0, stream>>>(static_cast<const std::byte*>(from), chunks, chunks * rounds);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_bulk_store(void* to, std::int64_t bytes, cudaStream_t stream) {
  const std::int64_t chunks = bytes / kBulkBytes;
  bulk_writes<false><<<kLoopBlocks, 32, 0, stream>>>(static_cast<std::byte*>(to), chunks, chunks);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_bulk_reduce(float* data, std::int64_t bytes, cudaStream_t stream, int rounds) {
  const std::int64_t chunks = bytes / kBulkBytes;
  bulk_writes<true>
      <<<kLoopBlocks, 32, 0, stream>>>(reinterpret_cast<std::byte*>(data), chunks, chunks * rounds);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_wgmma(int blocks, int iterations, cudaStream_t stream) {
  wgmma_chain<<<static_cast<unsigned>(blocks), kStreamThreads, 0, stream>>>(iterations, nullptr);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
