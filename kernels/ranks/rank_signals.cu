// How ranks wait for each other on the device. A rank says that it has come so far by writing the number of
// the run into a word of every other's arena, with release semantics behind its data; the other reads it with
// acquire. A wait ends early when the host says so: a rank may be gone.
#include "kernels/device/dependent_launch.cuh"
#include "kernels/ranks/rank_links.cuh"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 64;

/// One block: says `say` (behind all that came before on the stream), then waits for `first` to `last` of
/// all.
__global__ void __launch_bounds__(kThreads)
    rank_meet(const RankLinks links, bool begins, int say, int first, int last) {
  wait_for_predecessor();
  if (begins && threadIdx.x == 0) {
    *links.epoch += 1;
  }
  __syncthreads();
  if (say >= 0) {
    for (int rank = static_cast<int>(threadIdx.x); rank < links.group.ranks; rank += kThreads) {
      __threadfence_system();
      store_release(flag_of(links, links.arenas[rank], say, links.rank), *links.epoch);
    }
  }
  wait_for_ranks(links, first, last);
}

void launch_meet(const RankLinks& links, bool begins, int say, int first, int last, cudaStream_t stream) {
  launch_dependent(rank_meet, {.grid = dim3(1), .block = dim3(kThreads)}, stream, links, begins, say, first,
                   last);
}

}  // namespace

void launch_rank_start(const RankLinks& links, cudaStream_t stream) {
  constexpr int kStart = static_cast<int>(RankPhase::kStart);
  launch_meet(links, true, kStart, kStart, kStart, stream);
}

void launch_rank_meet(const RankLinks& links, RankPhase phase, cudaStream_t stream) {
  launch_meet(links, false, static_cast<int>(phase), static_cast<int>(phase), static_cast<int>(phase),
              stream);
}

void launch_rank_wait(const RankLinks& links, RankPhase phase, cudaStream_t stream) {
  launch_meet(links, false, -1, static_cast<int>(phase), static_cast<int>(phase), stream);
}

}  // namespace moescope::cuda
