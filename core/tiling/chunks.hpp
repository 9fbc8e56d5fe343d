#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"

/// How GPU stages cut their work so that their workspace stays bounded. Shared by the kernels' launchers and
/// the simulator.
namespace moescope {

/// How dense_masked takes its experts on the GPU: in chunks, so that S and P [L, chunk] stay bounded; both
/// live in one buffer.
///
/// S stays fp32, whatever the layer's storage. In bf16 a rounding errs by 1.66e-3 on average and by 3.9e-3 at
/// worst (tolerance.cpp); P, an operand of the tensor cores, and y must be rounded, which makes 2.4e-3 where
/// many entries average and 4.2e-3 where one pair is all there is. S rounded as well would add
/// another 1.66e-3 to 3.9e-3 (more where sigma is steep): past the 4e-3 a layer is held to wherever few
/// entries decide.
struct DenseChunks {
  /// Few chunks: each costs 30 us at L = 4096, to start three kernels and to add to Y. Chunks that stay in L2
  /// are slower by a third (docs/performance/other-experts.md).
  static constexpr std::int64_t kMaxWorkspaceBytes = std::int64_t{512} << 20;
  /// Chunk widths are multiples of this, so that products end on whole tiles (cuBLASLt's widest is 256
  /// columns).
  static constexpr std::int64_t kGranularity = 256;
  /// One block of the kernel between the products writes this much of one row of P, from shared memory: eight
  /// blocks fit a multiprocessor.
  static constexpr std::int64_t kSegmentBytes = std::int64_t{16} * 1024;

  static constexpr Dtype kScores = Dtype::kF32;  ///< storage of S; P has the layer's

  std::int64_t experts = 0;   ///< columns of S and P; also their leading dimension
  std::int64_t p_offset = 0;  ///< bytes from S to P; 0: P overwrites S, or there is no S
  std::int64_t bytes = 0;     ///< of S and P

  /// Chunks of equal size, as few as the workspace limit allows. Without `scored` there is no S: P holds the
  /// gates alone (values without a dot product before them: product-key memory).
  static DenseChunks plan(const LayerShape& shape, bool scored = true) {
    const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const bool apart = scored && shape.dtype != kScores;
    const std::int64_t s_column_bytes = apart ? shape.num_tokens * dtype_bytes(kScores) : 0;
    const std::int64_t column_bytes = s_column_bytes + shape.num_tokens * dtype_bytes(shape.dtype);
    const std::int64_t most =
        std::max(kMaxWorkspaceBytes / column_bytes / kGranularity, std::int64_t{1}) * kGranularity;
    const std::int64_t chunks = ceil_div(shape.num_experts(), most);
    const std::int64_t experts = ceil_div(ceil_div(shape.num_experts(), chunks), kGranularity) * kGranularity;
    return {experts, experts * s_column_bytes, experts * column_bytes};
  }
};

/// How the dense masked form of PKM and PEER shares the last product Y += P V among blocks: its output has
/// few tiles and its k is long, so k is cut into equal parts, each summed into a Y of its own.
struct DenseSplits {
  /// Output tiles, of 128 x 256 as cuBLASLt takes them, that fill the device once: one a multiprocessor, but
  /// a multiple of 8, so that few tiles make parts that are as many.
  static constexpr std::int64_t tiles_to_fill(const GpuTraits& gpu) {
    constexpr std::int64_t kMultiple = 8;
    return std::max(gpu.num_sms / kMultiple, std::int64_t{1}) * kMultiple;
  }
  static constexpr std::int64_t kTileRows = 128;
  static constexpr std::int64_t kTileCols = 256;
  static constexpr std::int64_t kMost = 32;
  /// A part is at least this many experts, and a multiple of kGranularity (128-byte rows in bf16).
  static constexpr std::int64_t kLeastExperts = 512;
  static constexpr std::int64_t kGranularity = 64;

  /// Parts for chunks of `experts` columns, of which the first has no fewer than any other.
  static constexpr std::int64_t count(const GpuTraits& gpu, std::int64_t num_tokens, std::int64_t hidden_size,
                                      std::int64_t experts) {
    const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const std::int64_t tiles = ceil_div(num_tokens, kTileRows) * ceil_div(hidden_size, kTileCols);
    const std::int64_t most = std::max(std::min(experts / kLeastExperts, kMost), std::int64_t{1});
    return std::clamp(tiles_to_fill(gpu) / tiles, std::int64_t{1}, most);
  }
  /// Experts of which a matrix product's k is a multiple where it can be: 16 bytes of bf16. With k = 23,100
  /// cuBLASLt takes kernels that are several times slower.
  static constexpr std::int64_t kAligned = 8;
  /// Experts of each of `parts` parts of a chunk of `width` experts; the rest, fewer than
  /// parts * kGranularity, or than kAligned of one part, is a product of its own.
  static constexpr std::int64_t part(std::int64_t width, std::int64_t parts) {
    if (parts == 1) {
      return width < kAligned ? width : width / kAligned * kAligned;
    }
    return width / parts / kGranularity * kGranularity;
  }
};

/// How shared_mlp takes its tokens on the GPU.
struct SharedMlpChunks {
  /// Bound on the fp32 product of a chunk, so that a layer at L=4096, d=1024 stays under 64 MiB of extra
  /// memory: 1024 tokens at shared_size 1024 are 128 tiles of 128 x 128, about a wave of a large GPU.
  static constexpr std::int64_t kBytes = std::int64_t{8} << 20;
  /// Chunks are whole tiles of tokens (the usual 128 of matrix products), as equal as that allows.
  static constexpr std::int64_t kTileTokens = 128;

  /// A row holds the gate and up products, fp32.
  static constexpr std::int64_t row_bytes(std::int64_t shared_size) { return 2 * shared_size * 4; }
  /// Tokens per chunk; `shared_size` >= 1.
  static constexpr std::int64_t tokens(std::int64_t num_tokens, std::int64_t shared_size) {
    const auto divide_up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const std::int64_t most =
        std::max(kBytes / row_bytes(shared_size) / kTileTokens, std::int64_t{1}) * kTileTokens;
    const std::int64_t chunks = divide_up(num_tokens, most);
    return std::min(divide_up(divide_up(num_tokens, chunks), kTileTokens) * kTileTokens, num_tokens);
  }
};

}  // namespace moescope
