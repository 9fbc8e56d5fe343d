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

/// By all threads of a block: until all ranks have come to `first`, and on to `last`, or the host says stop.
/// A kernel of many blocks may do this only when this rank's own pushes are over: its blocks leave them no
/// room.
__device__ __forceinline__ void wait_for_ranks(const RankLinks& links, int first, int last) {
  const int ranks = static_cast<int>(links.group.ranks);
  volatile RankWatch* const watch = links.watch;
  const bool speaks = threadIdx.x == 0;
  if (speaks) {
    watch->waiting = 1 + first;
  }
  for (int i = static_cast<int>(threadIdx.x); i < (last - first + 1) * ranks;
       i += static_cast<int>(blockDim.x)) {
    if ((links.silent >> (first + i / ranks) & 1U) != 0) {
      continue;
    }
    const std::uint32_t* const flag = flag_of(links, links.own, first + i / ranks, i % ranks);
    const std::uint32_t epoch = *links.epoch;
    constexpr int kLooks = 256;  // between looks at the host's word, which is far away
    bool waits = true;
    while (waits) {
      for (int look = 0; look < kLooks && waits; ++look) {
        waits = static_cast<std::int32_t>(load_acquire(flag) - epoch) < 0;
      }
      waits = waits && watch->stop == 0;
    }
  }
  __syncthreads();
  if (speaks) {
    watch->waiting = 0;
  }
}

__device__ __forceinline__ bool is_silent(const RankLinks& links, RankPhase phase) {
  return (links.silent >> static_cast<int>(phase) & 1U) != 0;
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
