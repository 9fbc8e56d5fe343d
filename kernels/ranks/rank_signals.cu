// How ranks wait for each other on the device. A rank says that it has come so far by writing the number of
// the run into a word of every other's arena, with release semantics behind its data; the other reads it with
// acquire. A wait ends early when the host says so: a rank may be gone.
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

__global__ void rank_wait(const RankLinks links, int first, int last) { wait_for_ranks(links, first, last); }

}  // namespace

void launch_rank_signal(const RankLinks& links, RankPhase phase, cudaStream_t stream) {
  rank_signal<<<1, static_cast<unsigned>(links.group.ranks), 0, stream>>>(links, static_cast<int>(phase));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_rank_wait(const RankLinks& links, RankPhase first, RankPhase last, cudaStream_t stream) {
  rank_wait<<<1, 64, 0, stream>>>(links, static_cast<int>(first), static_cast<int>(last));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_rank_start(const RankLinks& links, cudaStream_t stream) {
  rank_start<<<1, 1, 0, stream>>>(links.epoch);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  launch_rank_signal(links, RankPhase::kStart, stream);
  launch_rank_wait(links, RankPhase::kStart, RankPhase::kStart, stream);
}

}  // namespace moescope::cuda
