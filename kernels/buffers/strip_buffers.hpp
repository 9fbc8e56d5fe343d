#pragma once

#include <cstdint>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "kernels/contract/strips.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// DeviceStrips on the host; the same arrays, cut to what is in use.
struct HostStrips {
  std::int64_t max_cover = 0;
  std::vector<float> row_log_probs;         ///< [L, Nr]
  std::vector<float> col_log_probs;         ///< [L, Nc]
  std::vector<float> uncovered_rows;        ///< [L, Nr]
  std::vector<float> threshold;             ///< [L]
  std::vector<std::int32_t> tie_limit;      ///< [L]
  std::vector<float> gate_shift;            ///< [L]
  std::vector<std::int32_t> cover_sizes;    ///< [L]
  std::vector<std::int32_t> cover;          ///< [L, max_cover]; unused places hold anything
  std::vector<std::int32_t> strip_offsets;  ///< [Nr+Nc+1]
  std::vector<std::int32_t> strip_tokens;   ///< [counts[0]]
  std::vector<StripTile> tiles;             ///< [counts[1]]
  std::vector<std::int32_t> counts;         ///< [4]
};

/// Owner of the device arrays of DeviceStrips.
class StripBuffers {
 public:
  StripBuffers() = default;
  /// Allocates for strip_capacity(shape, rule, tile_tokens); contents are uninitialised but for cover and
  /// scratch.
  StripBuffers(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens);

  DeviceStrips view() const;
  const StripCapacity& capacity() const { return capacity_; }
  /// Bytes held; equals StripCapacity::bytes.
  std::int64_t bytes() const;
  /// Blocks until `stream` is done.
  HostStrips download(cudaStream_t stream) const;

 private:
  LayerShape shape_;
  StripCapacity capacity_;
  DeviceBuffer<float> row_log_probs_;
  DeviceBuffer<float> col_log_probs_;
  DeviceBuffer<float> uncovered_rows_;
  DeviceBuffer<float> threshold_;
  DeviceBuffer<std::int32_t> tie_limit_;
  DeviceBuffer<float> gate_shift_;
  DeviceBuffer<std::int32_t> cover_sizes_;
  DeviceBuffer<std::int32_t> cover_;
  DeviceBuffer<std::int32_t> strip_offsets_;
  DeviceBuffer<std::int32_t> strip_tokens_;
  DeviceBuffer<StripTile> tiles_;
  DeviceBuffer<std::int32_t> counts_;
  DeviceBuffer<std::byte> scratch_;
};

}  // namespace moescope::cuda
