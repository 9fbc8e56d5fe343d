#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Kernels that execute a known number of one kind of instruction, so that counters of it can be checked.
/// Beside memory_stream.hpp, whose conventions hold: nothing synchronises; launches are checked.
namespace moescope::cuda {

inline constexpr int kStreamThreads = 256;  ///< per block, in every launch here
inline constexpr int kStreamWarps = kStreamThreads / 32;
inline constexpr std::int64_t kGatherRowBytes = 2048;  ///< a row of W or V at hidden_size 1024 in bf16

/// Reads `count` distinct rows of kGatherRowBytes, scattered over `rows` (a power of two, >= count) of them.
void launch_gather_rows(const void* table, std::int64_t rows, std::int64_t count, cudaStream_t stream);
/// Adds to every fp32 of [data, data + bytes) `rounds` times by atomics that return the old value.
void launch_memory_atomic(float* data, std::int64_t bytes, cudaStream_t stream, int rounds);
/// Copies [from, from + bytes) into shared memory `rounds` times by cp.async, 16 bytes at a time, past L1.
void launch_copy_async(const void* from, std::int64_t bytes, cudaStream_t stream, int rounds);

/// Every thread writes 16 bytes to shared memory and takes part in an ldmatrix of four (16 bytes per thread),
/// `iterations` times; no bank conflicts.
void launch_shared_write(int blocks, int iterations, cudaStream_t stream);
/// Every warp reads one word per thread from shared memory, eight threads to a bank, `iterations` times:
/// seven conflicts each.
void launch_shared_conflicts(int blocks, int iterations, cudaStream_t stream);

/// kMmaPerIteration mma.sync.m16n8k16 of bf16 per warp and iteration.
void launch_mma(int blocks, int iterations, cudaStream_t stream);
inline constexpr int kMmaPerIteration = 4;
inline constexpr std::int64_t kMmaFlop = 2 * 16 * 8 * 16;
/// kFmaPairsPerIteration packed bf16 multiply-adds (two each) per thread and iteration.
void launch_fma_bf16(int blocks, int iterations, cudaStream_t stream);
inline constexpr int kFmaPairsPerIteration = 8;

// What follows needs sm_90; elsewhere the launch does nothing. bytes: a multiple of kBulkBytes.

inline constexpr std::int64_t kBulkBytes = 8192;  ///< of one bulk copy
/// [from, from + bytes) to shared memory `rounds` times by TMA bulk copies.
void launch_bulk_load(const void* from, std::int64_t bytes, cudaStream_t stream, int rounds);
/// Shared memory to [to, to + bytes) by TMA bulk copies.
void launch_bulk_store(void* to, std::int64_t bytes, cudaStream_t stream);
/// Adds zeros to every fp32 of [data, data + bytes) `rounds` times by TMA bulk reductions.
void launch_bulk_reduce(float* data, std::int64_t bytes, cudaStream_t stream, int rounds);
/// One wgmma.m64n64k16 of bf16 per warpgroup and iteration, both operands in shared memory (sm_90a).
void launch_wgmma(int blocks, int iterations, cudaStream_t stream);
inline constexpr std::int64_t kWgmmaFlop = 2 * 64 * 64 * 16;
inline constexpr std::int64_t kWgmmaOperandBytes = (64 + 64) * 16 * 2;
inline constexpr int kStreamWarpgroups = kStreamThreads / 128;

}  // namespace moescope::cuda
