#include "kernels/buffers/strip_buffers.hpp"

#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {

StripBuffers::StripBuffers(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens)
    : shape_(shape),
      capacity_(strip_capacity(shape, rule, tile_tokens, current_gpu())),
      row_log_probs_(shape.num_tokens * shape.grid_rows),
      col_log_probs_(shape.num_tokens * shape.grid_cols),
      uncovered_rows_(shape.num_tokens * shape.grid_rows),
      threshold_(shape.num_tokens),
      tie_limit_(shape.num_tokens),
      gate_shift_(shape.num_tokens),
      cover_sizes_(shape.num_tokens),
      cover_(capacity_.max_entries),
      strip_offsets_(shape.grid_rows + shape.grid_cols + 1),
      strip_tokens_(capacity_.max_entries),
      tiles_(capacity_.max_tiles),
      counts_(4),
      scratch_(capacity_.scratch_bytes) {
  MOESCOPE_CUDA_CHECK(cudaMemset(scratch_.get(), 0, static_cast<std::size_t>(scratch_.bytes())));
  // A selection fills of a token's list what its cover takes; download() copies all.
  MOESCOPE_CUDA_CHECK(cudaMemset(cover_.get(), 0, static_cast<std::size_t>(cover_.bytes())));
  MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());  // the layer's stream does not wait for the default one
}

DeviceStrips StripBuffers::view() const {
  return {.row_log_probs = row_log_probs_.get(),
          .col_log_probs = col_log_probs_.get(),
          .uncovered_rows = uncovered_rows_.get(),
          .threshold = threshold_.get(),
          .tie_limit = tie_limit_.get(),
          .gate_shift = gate_shift_.get(),
          .cover_sizes = cover_sizes_.get(),
          .cover = cover_.get(),
          .strip_offsets = strip_offsets_.get(),
          .strip_tokens = strip_tokens_.get(),
          .tiles = tiles_.get(),
          .counts = counts_.get(),
          .scratch = scratch_.get()};
}

std::int64_t StripBuffers::bytes() const {
  return row_log_probs_.bytes() + col_log_probs_.bytes() + uncovered_rows_.bytes() + threshold_.bytes() +
         tie_limit_.bytes() + gate_shift_.bytes() + cover_sizes_.bytes() + cover_.bytes() +
         strip_offsets_.bytes() + strip_tokens_.bytes() + tiles_.bytes() + counts_.bytes() + scratch_.bytes();
}

HostStrips StripBuffers::download(cudaStream_t stream) const {
  const auto all = [stream](const auto& buffer) {
    return copy_to_host(buffer.get(), buffer.count(), stream);
  };
  HostStrips host;
  host.max_cover = capacity_.max_cover;
  host.counts = all(counts_);
  host.row_log_probs = all(row_log_probs_);
  host.col_log_probs = all(col_log_probs_);
  host.uncovered_rows = all(uncovered_rows_);
  host.threshold = all(threshold_);
  host.tie_limit = all(tie_limit_);
  host.gate_shift = all(gate_shift_);
  host.cover_sizes = all(cover_sizes_);
  host.cover = all(cover_);
  host.strip_offsets = all(strip_offsets_);
  host.strip_tokens = copy_to_host(strip_tokens_.get(), host.counts[0], stream);
  host.tiles = copy_to_host(tiles_.get(), host.counts[1], stream);
  return host;
}

}  // namespace moescope::cuda
