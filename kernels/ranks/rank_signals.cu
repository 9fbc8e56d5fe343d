// How ranks wait for each other on the device. A rank says that it has come so far by writing the number of the run
// into a word of every other's arena, with release semantics behind its data; the other reads it with acquire. A wait
// ends early when the host says so: a rank may be gone.
#include "kernels/ranks/rank_links.cuh"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

__global__ void rank_start(std::uint32_t* epoch) { *epoch += 1; }

__global__ void rank_signal(const RankLinks links, int phase) {
  if (threadIdx.x < static_cast<unsigned>(links.group.ranks)) {
    __threadfence_system();
    store_release(flag_of(links, links.arenas[threadIdx.x], phase, links.rank), *links.epoch);
  }
}

/// A thread for each phase and rank.
__global__ void rank_wait(const RankLinks links, int first, int last) {
  const int ranks = static_cast<int>(links.group.ranks);
  const int phase = first + static_cast<int>(threadIdx.x) / ranks;
  volatile RankWatch* const watch = links.watch;
  if (threadIdx.x == 0) {
    watch->waiting = 1 + first;
  }
  if (phase <= last) {
    const std::uint32_t* const flag = flag_of(links, links.own, phase, static_cast<int>(threadIdx.x) % ranks);
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
  if (threadIdx.x == 0) {
    watch->waiting = 0;
  }
}

}  // namespace

void launch_rank_signal(const RankLinks& links, RankPhase phase, cudaStream_t stream) {
  rank_signal<<<1, static_cast<unsigned>(links.group.ranks), 0, stream>>>(links, static_cast<int>(phase));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_rank_wait(const RankLinks& links, RankPhase first, RankPhase last, cudaStream_t stream) {
  const int phases = static_cast<int>(last) - static_cast<int>(first) + 1;
  rank_wait<<<1, static_cast<unsigned>(phases * links.group.ranks), 0, stream>>>(
      links, static_cast<int>(first), static_cast<int>(last));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_rank_start(const RankLinks& links, cudaStream_t stream) {
  rank_start<<<1, 1, 0, stream>>>(links.epoch);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  launch_rank_signal(links, RankPhase::kStart, stream);
  launch_rank_wait(links, RankPhase::kStart, RankPhase::kStart, stream);
}

}  // namespace moescope::cuda
