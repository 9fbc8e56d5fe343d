#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/tiling/strip_tiles.hpp"

/// Routing of a batch as thresholds and strips, straight from the router's scores: the staircase schedule's
/// own form, in which no pair is ever listed. Conventions as in launch.hpp.
namespace moescope::cuda {

/// One unit of work: tokens strip_tokens[first_entry, first_entry + count) against the experts of `strip`.
struct StripTile {
  std::int32_t strip = 0;  ///< grid row r in [0, Nr), or Nr + c for grid column c
  std::int32_t first_entry = 0;
  std::int32_t count = 0;  ///< tokens, at most StripCapacity::tile_tokens
  std::int32_t reserved = 0;
};

/// Expert (r, c) belongs to token t's selected set exactly if S = p_r[r] + p_c[c] (fp32, rounded once)
/// satisfies S > threshold[t], or S == threshold[t] and its id <= tie_limit[t]. Its gate is exp(S -
/// gate_shift[t]), so that a token's gates add up to 1; with gates `probability` times exp(gate_shift[t]),
/// the sum of its gates, which is left to launch_round_output: sums of gates far below 1 would lose their low
/// bits. The tokens of a strip stand in no particular order; everything computed from them must not depend on
/// it.
struct DeviceStrips {
  float* row_log_probs = nullptr;       ///< [L, Nr] log-softmax of the row logits (paper eq. 10)
  float* col_log_probs = nullptr;       ///< [L, Nc]
  float* uncovered_rows = nullptr;      ///< [L, Nr] row_log_probs, but -inf at rows the token takes as a row
                                        ///< strip: what a column strip must use, so that no pair counts twice
  float* threshold = nullptr;           ///< [L]
  std::int32_t* tie_limit = nullptr;    ///< [L] 2^31 - 1 when all scores equal to the threshold are selected
  float* gate_shift = nullptr;          ///< [L] log-sum-exp of the selected scores
  std::int32_t* cover_sizes = nullptr;  ///< [L] strips of the token
  std::int32_t* cover = nullptr;        ///< [L, max_cover] strip indexes, ascending
  std::int32_t* strip_offsets = nullptr;  ///< [Nr+Nc+1] first entry of each strip
  std::int32_t* strip_tokens = nullptr;   ///< [max_entries]
  StripTile* tiles = nullptr;             ///< [max_tiles], tiles of one strip adjacent
  std::int32_t* counts = nullptr;  ///< [4]: entries, tiles, next tile (the experts kernel's counter), spare
  const std::int32_t* places = nullptr;  ///< [Nr+Nc] which of the rows or columns that are stored a strip is
                                         ///< (several ranks); null: all are, in order
  std::byte* scratch = nullptr;  ///< of the two launchers that fill all this: zero before the first run, and
                                 ///< every run leaves the part zero that the next one relies on
};

/// Capacities from shape and device alone; counts are on the device.
struct StripCapacity {
  std::int64_t tile_tokens = 0;  ///< most tokens in one tile
  std::int64_t max_cover =
      0;  ///< strips of one token: min(floor(2 sqrt K), Nr, Nc), or min(K, Nr) with kRowsOnly
  std::int64_t max_entries = 0;
  std::int64_t max_tiles = 0;
  std::int64_t scratch_bytes = 0;
  std::int64_t bytes = 0;  ///< all arrays of DeviceStrips with scratch
};
/// Throws InvalidArgument when L * max_cover >= 2^31 (entries have 32-bit indexes) or tile_tokens < 1.
StripCapacity strip_capacity(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens,
                             const GpuTraits& gpu);

}  // namespace moescope::cuda
