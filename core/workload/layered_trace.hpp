#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moescope {

/// Recorded routing of one batch in several layers of a model: what `moescope import` makes of other formats.
struct LayeredTrace {
  std::string system;                    ///< what it is of; empty when nobody said
  std::int64_t num_experts = 0;          ///< [N] of every layer
  std::vector<std::int64_t> layers;      ///< numbers of the layers in the model, distinct, not negative
  std::int64_t num_tokens = 0;           ///< [L]
  std::int64_t top_k = 0;                ///< [K]
  std::vector<std::int32_t> expert_ids;  ///< [layers, L, K] in the order of the recording
  std::vector<float> gates;              ///< the same shape, or empty: not recorded
  std::string gate_mode;                 ///< "softmax", "probability", ... where it is known
  std::int64_t hidden_size = 0;          ///< of the model, where it is known; likewise the others
  std::int64_t expert_size = 0;
  std::int64_t shared_size = 0;
  std::int64_t grid_rows = 0;  ///< omnimoe: N = grid_rows * grid_cols; 0 for a flat router
  std::int64_t grid_cols = 0;
  std::string source;  ///< a line: the file and format it was made from

  /// Throws FileError(path, ...) naming layer, token, position and value of the first id out of range or
  /// twice in its token, the first gate that is not finite, and extents that do not fit together. `path`:
  /// where it came from.
  void validate(const std::string& path) const;
};

/// Throws InvalidArgument when `file` does not end in .npz, as write_layered_trace() does.
void require_layered_trace_name(const std::filesystem::path& file);

/// Writes an .npz that workload `trace:FILE#layer=N` replays and NumPy reads: expert_ids (uint8, uint16 or
/// int32) [layers, L, K], gates float32 of the same shape, layers int64 [layers], and scalars num_experts,
/// system, source and what else is known. Whole or not at all. Throws InvalidArgument and FileError.
void write_layered_trace(const LayeredTrace& trace, const std::filesystem::path& file);

}  // namespace moescope
