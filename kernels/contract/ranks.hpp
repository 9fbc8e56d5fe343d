#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/schedule/rank_group.hpp"
#include "kernels/contract/launch.hpp"

/// What ranks hand to each other on the device: kernels that write into other GPUs' memory and say when it is
/// there. Every rank has an arena of the same layout that the others can write to. Conventions as in
/// launch.hpp.
namespace moescope::cuda {

/// What a rank waits for from all others, in the order of a run.
enum class RankPhase : std::uint8_t {
  kStart,      ///< all have begun: times are counted from here
  kRows,       ///< X is there
  kSelection,  ///< log-probabilities, thresholds and covers are there
  kSums,       ///< partial sums are there
};
inline constexpr int kRankPhases = 4;

/// Tokens of a rank: `first` and on, of all L.
struct HomeTokens {
  std::int64_t first = 0;
  std::int64_t count = 0;

  static HomeTokens of(const RankGroup& group, std::int64_t rank, std::int64_t num_tokens) {
    const std::int64_t first = group.first_of(rank, num_tokens);
    return {first, group.first_of(rank + 1, num_tokens) - first};
  }
};

/// Byte offsets in an arena; host arithmetic.
struct RankArena {
  std::int64_t flags = 0;          ///< uint32 [kRankPhases, P]: the last run in which rank p has come so far
  std::int64_t hidden_states = 0;  ///< [L, d] bf16
  std::int64_t row_log_probs = 0;  ///< [L, Nr] fp32
  std::int64_t col_log_probs = 0;  ///< [L, Nc] fp32
  std::int64_t threshold = 0;      ///< [L], as in DeviceStrips
  std::int64_t tie_limit = 0;      ///< [L]
  std::int64_t gate_shift = 0;     ///< [L]
  std::int64_t cover_sizes = 0;    ///< [L] of the whole cover, on all ranks
  std::int64_t cover = 0;          ///< [L, max_cover]
  std::int64_t sums = 0;           ///< [P, most tokens of a home, d] bf16: partial sums for this home
  std::int64_t bytes = 0;

  static RankArena of(const LayerShape& shape, const RankGroup& group, std::int64_t max_cover);
};

/// Seen by the host and by waiting kernels.
struct RankWatch {
  std::int32_t stop = 0;     ///< not 0: waiting is over, whatever has come
  std::int32_t waiting = 0;  ///< 1 + RankPhase that a kernel waits for; 0: none does
};

/// How a rank reaches the others; lives as long as a layer.
struct RankLinks {
  RankGroup group;
  std::int64_t rank = 0;
  std::byte* const* arenas = nullptr;  ///< [P] on the device: every rank's arena as this one sees it
  std::byte* own = nullptr;            ///< arenas[rank]
  std::uint32_t* epoch = nullptr;      ///< [1]: number of this run
  std::uint32_t* tickets = nullptr;    ///< [kRankPhases]: blocks of a push that are done; 0 between kernels
  RankWatch* watch = nullptr;          ///< as the device sees it
  /// A bit for each RankPhase in which nothing travels and nobody waits: the same work on what is there
  /// already.
  std::uint32_t silent = 0;
};

/// A new run; and waits until all ranks have begun it.
void launch_rank_start(const RankLinks& links, cudaStream_t stream);
/// Says to all that this rank has come to `phase`, behind everything that was put on `stream` before, and
/// waits until all have.
void launch_rank_meet(const RankLinks& links, RankPhase phase, cudaStream_t stream);
/// Waits until all ranks have come to `phase`; this one has said so.
void launch_rank_wait(const RankLinks& links, RankPhase phase, cudaStream_t stream);

/// The home's rows of X [count, d], which lie in this rank's arena, to all other ranks; says kRows.
void launch_push_rows(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                      HomeTokens home, cudaStream_t stream);

/// launch_router_select_strips() of the home's tokens, from logits [count, Nr+Nc], to the arenas of all
/// ranks; says kSelection. Of `strips` uncovered_rows and scratch are used, of the home's tokens.
void launch_router_select_ranks(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                                HomeTokens home, StripRule rule, const float* logits, DeviceStrips strips,
                                std::int64_t* bad_logit, cudaStream_t stream);

void launch_take_strips(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                        std::int64_t max_cover, const std::int32_t* owner, DeviceStrips strips,
                        std::byte* home_scratch, cudaStream_t stream);

/// Sums of other homes' tokens [L, d], rounded to bf16, to their arenas; says kSums.
void launch_push_sums(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                      const StaircaseOutput& sums, cudaStream_t stream);
/// Behind kSums of all ranks. output [count, d] bf16 = the ranks' sums in order of the ranks, this one's
/// unrounded, and `addend` [count, d] (null: nothing), in fp32, rounded once.
void launch_add_sums(const RankLinks& links, const LayerShape& shape, const RankArena& arena, HomeTokens home,
                     const StaircaseOutput& sums, const float* addend, void* output, cudaStream_t stream);

}  // namespace moescope::cuda
