#pragma once

#include <algorithm>
#include <cstdint>

#include "core/tiling/strip_tiles.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/launch.hpp"

/// Host arithmetic of the staircase kernel (experts_staircase.cu): a block's shared memory. constexpr, so
/// that it is tested without a GPU; the kernel uses the same functions.
namespace moescope::cuda {

/// What the kernel's frame of producers and rings is used for.
enum class StaircasePass : std::uint8_t {
  kForward,  ///< X W^T, weights, sums += P V
  kScores,   ///< X W^T alone, which is kept for the backward
  kDgrad,    ///< dY V^T, gradients of the scores, sums += Q W (kernels/backward/)
};

/// A tile is kTokens tokens against a segment of kExperts experts of one strip. Its operands pass through a
/// ring of equal slots. A slot holds kN experts' 64 columns of W or V, or kN log-probabilities of 32
/// tokens.
template <int kN_, int kParts_, StaircaseSums kSums_, StaircasePass kPass_ = StaircasePass::kForward>
struct StaircaseTiles {
  static constexpr int kN = kN_;          ///< experts of one tensor-core product
  static constexpr int kParts = kParts_;  ///< products side by side
  static constexpr StaircaseSums kSums = kSums_;
  static constexpr StaircasePass kPass = kPass_;
  static constexpr int kExperts = kN * kParts;
  static constexpr int kWarpgroups = 2;  ///< consumers, 64 tokens each
  static constexpr int kTokens = 64 * kWarpgroups;
  static_assert(kTokens == kStripTileTokens);
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kChunk = 64;  ///< columns of X, W, V in a slot: 128 bytes, the swizzle's width
  static constexpr int kRowBytes = kChunk * 2;

  static constexpr int kLogTokens = 32;              ///< tokens whose log-probabilities share a slot
  static constexpr int kLogBytes = kN * 4;           ///< of one token and one product's experts
  static constexpr int kLogStride = kLogBytes + 32;  ///< 8-byte reads of 4 rows hit all banks
  static constexpr int kLogGroups = kTokens / kLogTokens;
  static constexpr int kLogSlots = kParts * kLogGroups;
  static constexpr int kSlotBytes = round_up(std::max(kN * kRowBytes, kLogTokens* kLogStride), 1024);
  static constexpr int kXSlots = 3;
  static constexpr int kXSlotBytes = kTokens * kRowBytes;

  /// A warp's part of an output chunk, 16 tokens, on its way to memory.
  static constexpr int kSumBytes = kSums == StaircaseSums::kFp16 ? 2 : 4;
  static constexpr int kStageStride =
      kChunk * kSumBytes + (kSums == StaircaseSums::kFp16 ? 16 : 32);  ///< no bank twice
  static constexpr int kStageBytes = 16 * kStageStride;

  /// What the tile's readers need to know, for two tiles: the one in work and the next.
  static constexpr int kQueue = 2;
  static constexpr int kWordsPerToken = 6;
  static constexpr int kEntryBytes = 32 + kTokens * kWordsPerToken * 4;

  static constexpr int kLimitBytes = 232448;  ///< shared memory of a block, compute capability 9.0
  static constexpr int kFixedBytes =
      1024 + kXSlots * kXSlotBytes + 4 * kWarpgroups * kStageBytes + kQueue * kEntryBytes;
  static constexpr int kBarrierBytes = 512;
  static constexpr int kSlots = std::min(16, (kLimitBytes - kFixedBytes - kBarrierBytes) / kSlotBytes);
  static constexpr int kSharedBytes = kFixedBytes + kBarrierBytes + kSlots * kSlotBytes;

  static_assert(kN % 32 == 0 && kN <= 256 && kSlots >= 4);
  static_assert(8 * (3 * kSlots + 2 * kXSlots + 2 * kQueue + 1) <= kBarrierBytes);
};

}  // namespace moescope::cuda
