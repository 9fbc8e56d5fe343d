#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"
#include "kernels/contract/strips.hpp"

/// Layout of DeviceStrips::scratch and of the memory that one token's selection works in; host arithmetic
/// shared by strip_capacity() and the launchers.
namespace moescope::cuda {

/// Values per lane for which the selection is compiled, ascending: powers of two, and the paper's grid of 320
/// x 320, which would sort 60 % more with 16.
inline constexpr std::array kSelectPerLane = {1, 2, 4, 8, 10, 16, 32};

/// Working memory of one token's selection, in bytes; each part is 16-byte aligned.
struct SelectMemory {
  int per_lane = 0;              ///< values of a marginal that a lane sorts in registers; 0: sorted in memory
  std::int64_t sort_length = 0;  ///< floats: the columns, sorted; a power of two when that is done in memory
  std::int64_t rows = 0;         ///< bytes of the rows' scores: one float each
  std::int64_t counts =
      0;  ///< bytes of one of the three arrays of numbers per row: 16 bits each, or 32 in memory
  std::int64_t gathered = 0;  ///< bytes of the scores inside the last bracket, and their number
  std::int64_t lengths = 0;   ///< bytes of the histogram of row lengths, or of a bit per row and column
  std::int64_t csr = 0;       ///< bytes that writing the CSR needs beside these; none for strips
  std::int64_t bytes = 0;     ///< of all
  bool shared = false;        ///< it fits the shared memory of a block
};
SelectMemory strips_select_memory(const LayerShape& shape, std::int64_t max_cover);
SelectMemory csr_select_memory(const LayerShape& shape, const GpuTraits& gpu);

/// Byte offsets of what csr_select_memory() adds, from its beginning.
struct CsrMemory {
  std::int64_t col_log_probs = 0;  ///< float [Nc]
  std::int64_t row_log_probs = 0;  ///< float [Nr]
  std::int64_t candidates = 0;     ///< columns that some row selects; 16 or 32 bits each
  std::int64_t table = 0;          ///< by lists: [K] of the same
  std::int64_t starts = 0;         ///< by lists: a bit per pair; before that, the lengths of rows
  std::int64_t ids = 0;            ///< by rows: int32 [K]
  std::int64_t scores = 0;         ///< by rows: float [K]
  std::int64_t bytes = 0;
};
CsrMemory csr_memory(const LayerShape& shape, int per_lane, const GpuTraits& gpu);

/// Blocks that select at a time when their memory is global: several a multiprocessor.
constexpr std::int64_t global_select_blocks(const GpuTraits& gpu) { return 8 * gpu.num_sms; }

/// Byte offsets in DeviceStrips::scratch. Up to `cover_ranks` it is zero between runs.
struct StripScratch {
  std::int64_t ticket = 0;        ///< uint32: blocks of the schedule that have finished
  std::int64_t strip_counts = 0;  ///< int32 [Nr+Nc]: tokens of each strip
  std::int64_t cover_ranks = 0;   ///< int32 [L, max_cover]: the token's place in its strips
  std::int64_t memory = 0;        ///< global SelectMemory of every block in flight; none when it is shared
  std::int64_t bytes = 0;
};
StripScratch strip_scratch(const LayerShape& shape, std::int64_t max_cover, const GpuTraits& gpu);

}  // namespace moescope::cuda
