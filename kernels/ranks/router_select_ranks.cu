// Stage router_select on several GPUs: the selection of a home's tokens, which goes to every rank as it is
// made. The log-probabilities are most of what travels between ranks; a kernel of their own would find no
// room beside this one, whose blocks fill the GPU (docs/performance/ranks.md). Its stores, 2.8 KB a token and
// rank, are hidden behind its arithmetic.
#include "kernels/ranks/rank_links.cuh"
#include "kernels/router/router_select_strips.cuh"

namespace moescope::cuda {
namespace {

/// To all ranks but this one, whose arena the selection itself is written to.
struct RanksMirror {
  RankLinks links;
  RankArena arena;
  std::int64_t first;  ///< of the home's tokens among all

  /// `count` words at `from` to the same place of another arena, by all of the block's threads.
  static __device__ __forceinline__ void copy(const void* from, std::byte* to, int count, int threads) {
    const auto* const words = static_cast<const unsigned*>(from);
    if (count % 4 == 0 &&
        (reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to)) % 16 == 0) {
      for (int i = static_cast<int>(threadIdx.x); i < count / 4; i += threads) {
        reinterpret_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
      }
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
        reinterpret_cast<unsigned*>(to)[i] = words[i];
      }
    }
  }

  __device__ __forceinline__ void token(const DeviceStrips& out, std::int64_t token, int rows, int cols,
                                        int max_cover, int threads) const {
    const std::int64_t at = first + token;
    if (is_silent(links, RankPhase::kSelection)) {
      return;
    }
    const int size = out.cover_sizes[token];
#pragma unroll 1
    for (std::int64_t rank = 0; rank < links.group.ranks; ++rank) {
      if (rank == links.rank) {
        continue;
      }
      std::byte* const to = links.arenas[rank];
      copy(out.row_log_probs + token * rows, to + arena.row_log_probs + at * rows * 4, rows, threads);
      copy(out.col_log_probs + token * cols, to + arena.col_log_probs + at * cols * 4, cols, threads);
      copy(out.cover + token * max_cover, to + arena.cover + at * max_cover * 4, size, threads);
      if (threadIdx.x == 0) {
        *reinterpret_cast<float*>(to + arena.threshold + at * 4) = out.threshold[token];
        *reinterpret_cast<std::int32_t*>(to + arena.tie_limit + at * 4) = out.tie_limit[token];
        *reinterpret_cast<float*>(to + arena.gate_shift + at * 4) = out.gate_shift[token];
        *reinterpret_cast<std::int32_t*>(to + arena.cover_sizes + at * 4) = size;
      }
    }
  }
};

}  // namespace

void launch_router_select_ranks(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                                HomeTokens home, StripRule rule, const float* logits, DeviceStrips strips,
                                std::int64_t* bad_logit, cudaStream_t stream) {
  LayerShape own = shape;
  own.num_tokens = home.count;
  const std::int64_t max_cover = strip_capacity(own, rule, 1, current_gpu()).max_cover;
  const auto part = [&]<class T>(std::int64_t offset, std::int64_t width, T*& pointer) {
    pointer = reinterpret_cast<T*>(links.own + offset + home.first * width * 4);
  };
  part(arena.row_log_probs, shape.grid_rows, strips.row_log_probs);
  part(arena.col_log_probs, shape.grid_cols, strips.col_log_probs);
  part(arena.threshold, 1, strips.threshold);
  part(arena.tie_limit, 1, strips.tie_limit);
  part(arena.gate_shift, 1, strips.gate_shift);
  part(arena.cover_sizes, 1, strips.cover_sizes);
  part(arena.cover, max_cover, strips.cover);
  launch_select_strips(own, rule, logits, strips, bad_logit, RanksMirror{links, arena, home.first}, stream);
}

}  // namespace moescope::cuda
