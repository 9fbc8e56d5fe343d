#pragma once

#include <cstdint>

#include "kernels/contract/ranks.hpp"

/// What kernels that write into other ranks' memory share.
namespace moescope::cuda {

__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* from) {
  std::uint32_t value = 0;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// The word in `arena` by which `from` says that it has come to a phase; flags are the arena's first bytes.
__device__ __forceinline__ std::uint32_t* flag_of(const RankLinks& links, std::byte* arena, int phase,
                                                  std::int64_t from) {
  return reinterpret_cast<std::uint32_t*>(arena) + phase * links.group.ranks + from;
}

/// RankGroup's arithmetic, for the device.
__device__ __forceinline__ std::int64_t home_of(const RankGroup& group, std::int64_t token, std::int64_t tokens) {
  return token * group.ranks / tokens;
}
__device__ __forceinline__ std::int64_t first_of(const RankGroup& group, std::int64_t rank, std::int64_t tokens) {
  return (rank * tokens + group.ranks - 1) / group.ranks;
}

/// By all threads of a block at its end: the grid's last block says `phase` to all ranks.
__device__ __forceinline__ void signal_behind_grid(const RankLinks& links, int phase) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();  // this block's stores, before it is counted
    const unsigned blocks = gridDim.x * gridDim.y;
    is_last = atomicInc(links.tickets + phase, blocks - 1) == blocks - 1;  // wraps to 0
  }
  __syncthreads();
  if (is_last && threadIdx.x < static_cast<unsigned>(links.group.ranks)) {
    __threadfence_system();
    store_release(flag_of(links, links.arenas[threadIdx.x], phase, links.rank), *links.epoch);
  }
}

}  // namespace moescope::cuda
