#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Kernels that move a known number of bytes and do nothing else: what ceilings are measured with, and what
/// leaves a cache with clean lines. Pointers are device memory aligned to 16 bytes; sizes are rounded down to
/// 16 bytes. Nothing synchronises; launches are checked.
namespace moescope::cuda {

/// Reads [data, data + bytes) `rounds` times, past L1: from HBM when it is larger than the L2 cache, from L2
/// when it is much smaller and `rounds` is large.
void launch_memory_read(const void* data, std::int64_t bytes, cudaStream_t stream, int rounds = 1);
/// What launch_bulk_read reads for `least` bytes: a whole number of rounds of all multiprocessors.
std::int64_t bulk_read_bytes(int num_sms, std::int64_t least);
/// Reads `bytes` (of bulk_read_bytes) from [data, data + range) in pieces of 16 KiB by the bulk copy engine,
/// a block to a multiprocessor, the range again and again. Compute capability 9.0; `range` a multiple of 16
/// KiB.
void launch_bulk_read(const void* data, std::int64_t range, std::int64_t bytes, int num_sms,
                      cudaStream_t stream);
/// Writes the whole range once.
void launch_memory_write(void* data, std::int64_t bytes, cudaStream_t stream);
/// Copies; the ranges do not overlap.
void launch_memory_copy(void* to, const void* from, std::int64_t bytes, cudaStream_t stream);
/// Adds 1 to every fp32 of the range, `rounds` times, by reductions that the L2 cache performs (four floats
/// at a time from sm_90 on, one before).
void launch_memory_reduce(float* data, std::int64_t bytes, cudaStream_t stream, int rounds);
/// Uniform random numbers in [-1, 1): bf16 elements, a different sequence for every seed.
void launch_fill_random_bf16(void* data, std::int64_t count, std::uint32_t seed, cudaStream_t stream);

/// Bytes that launch_shared_read reads per iteration, all blocks together.
std::int64_t shared_read_bytes(int num_sms);
/// Every warp reads shared memory 16 bytes per thread without bank conflicts, again and again.
void launch_shared_read(int num_sms, int iterations, cudaStream_t stream);

/// FLOP that launch_fma computes per iteration, all blocks together; a multiply-add counts 2.
std::int64_t fma_flop(int num_sms);
/// Independent chains of fp32 multiply-adds in registers.
void launch_fma(int num_sms, int iterations, cudaStream_t stream);

}  // namespace moescope::cuda
