#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/layer/dtype.hpp"

namespace moescope {

/// sigma of paper eq. 7. gelu is the exact (erf) form.
enum class Activation : std::uint8_t { kSilu, kGelu, kRelu };
/// Gates over the selected scores S: softmax (paper eq. 2), exp(S) of log-probabilities (published code), or
/// max(S, 0) (PEER's non-competing gates; not for OmniMoE).
enum class GateMode : std::uint8_t { kSoftmax, kProbability, kRelu };

std::string_view to_string(Activation activation);
std::string_view to_string(GateMode mode);
Activation parse_activation(std::string_view text);
GateMode parse_gate_mode(std::string_view text);

/// Shape and options of one OmniMoE layer (DESIGN section 1; symbols of the paper in brackets).
struct LayerShape {
  std::int64_t num_tokens = 1024;   ///< [L]
  std::int64_t hidden_size = 1024;  ///< [d]
  std::int64_t grid_rows = 320;     ///< [Nr]
  std::int64_t grid_cols = 320;     ///< [Nc]
  std::int64_t top_k = 512;         ///< [K]
  std::int64_t shared_size = 0;     ///< width of the shared MLP; 0 = no shared MLP
  Dtype dtype = Dtype::kBF16;
  Activation activation = Activation::kSilu;
  GateMode gate_mode = GateMode::kSoftmax;

  std::int64_t num_experts() const { return grid_rows * grid_cols; }  ///< [N]
  std::int64_t num_pairs() const { return num_tokens * top_k; }       ///< [M]

  /// Throws InvalidArgument naming the first field that cannot work: extents >= 1, K <= N, N and every extent
  /// below 2^31, L*K, N*d and L*d below 2^62.
  void validate() const;
  /// "L256_d128_N1024_K8"; non-square grids print as N48x16.
  std::string label() const;
};

/// A named shape with its origin.
struct Preset {
  std::string_view name;    ///< as on the command line, e.g. "table-a-1024-512"
  std::string_view source;  ///< where its numbers come from, e.g. "paper Table A"
  LayerShape shape;
};

/// OmniMoE presets: paper Table A (both sweeps), Table B widths, the trained snapshots' shapes, and small
/// ones.
std::span<const Preset> presets();
/// Throws InvalidArgument("preset", ...) listing the known names.
const Preset& find_preset(std::string_view name);

}  // namespace moescope
