#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "kernels/device/hopper.cuh"
#include "kernels/device/mma_bf16.cuh"

/// What producers and consumers of the wgrad kernel share: tiles, arguments, work items, shared memory.
namespace moescope::cuda {

/// A work item is kExperts experts of one strip by kColumns columns of dW or dV, over all tokens of the
/// strip, which pass through a ring kSlotTokens at a time.
template <class Gradient>
struct WgradTiles {
  static constexpr int kMTiles = 5;  ///< of 64 experts
  static constexpr int kExperts = 64 * kMTiles;
  static constexpr int kBoxColumns = 128 / static_cast<int>(sizeof(Gradient));  ///< the swizzle's width
  static constexpr int kColumns = 2 * kBoxColumns;
  static constexpr int kAtoms = kColumns / 64;  ///< of 64 columns of X or dY
  static constexpr int kGroupTokens = 16;       ///< of one product
  static constexpr int kGroups = 2;
  static constexpr int kSlotTokens = kGroups * kGroupTokens;
  static constexpr int kAtomBytes = kGroupTokens * 128;
  static constexpr int kQBytes = kMTiles * kAtomBytes;  ///< of a group's q or p
  static constexpr int kXBytes = kAtoms * kAtomBytes;   ///< of a group's X or dY
  static constexpr int kSlotBytes = kGroups * (kQBytes + kXBytes);
  static constexpr int kSlots = 5;
  static constexpr int kConsumerWarps = 8;
  static constexpr int kThreads = 128 + 32 * kConsumerWarps;
  /// A warp's part of the result: boxes of 16 experts by 128 bytes.
  static constexpr int kBoxes = kMTiles;
  static constexpr int kBoxBytes = 16 * 128;
  static constexpr int kStageBytes = kBoxes * kBoxBytes;
  static constexpr int kBarrierBytes = 8 * (2 * kSlots + kConsumerWarps);
  static constexpr int kSharedBytes =
      1024 + kSlots * kSlotBytes + kConsumerWarps * kStageBytes + kBarrierBytes;
  static_assert(kSharedBytes <= 232448 && kSlotBytes % 1024 == 0 && kQBytes % 1024 == 0);
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = 224;
};

/// p and q as they lie, W's and V's gradients of one kind of strip.
struct WgradMaps {
  CUtensorMap p, q, w_in, w_out;
};

struct WgradArguments {
  const __nv_bfloat16* hidden_states = nullptr;
  const __nv_bfloat16* dy = nullptr;
  const std::int32_t* strip_offsets = nullptr;
  const std::int32_t* strip_tokens = nullptr;
  std::int32_t hidden_size = 0;
  std::int32_t first_strip = 0;  ///< of the kind
  std::int32_t length = 0;       ///< experts of a strip
  std::int32_t is_col = 0;
  std::int32_t adds = 0;    ///< to what is there
  std::int32_t chunks = 0;  ///< pairs of kColumns columns
  std::int32_t segments = 0;
  std::int32_t items = 0;  ///< of pairs of blocks: strips * segments * 2 * chunks
};

/// This block's place in its pair.
__device__ __forceinline__ std::uint32_t pair_rank() {
  std::uint32_t rank = 0;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void pair_arrive() { asm volatile("barrier.cluster.arrive;" ::: "memory"); }
__device__ __forceinline__ void pair_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }
/// Arrives at the other block's barrier.
__device__ __forceinline__ void barrier_arrive_at_other(std::uint32_t barrier) {
  asm volatile(
      "{\n.reg .b32 other;\nmapa.shared::cluster.u32 other, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [other];\n}" ::"r"(barrier),
      "r"(pair_rank() ^ 1U)
      : "memory");
}
/// First work item of this block and the step to its next.
__device__ __forceinline__ int first_item() { return static_cast<int>(blockIdx.x / 2); }
__device__ __forceinline__ int item_step() { return static_cast<int>(gridDim.x / 2); }

/// Work items strip by strip: neighbours share rows of p or q, and tokens, in L2.
struct WgradItem {
  std::int32_t strip;    ///< within its kind
  std::int32_t segment;  ///< of kExperts experts
  std::int32_t is_out;   ///< dV, else dW
  std::int32_t chunk;    ///< of columns

  __device__ __forceinline__ WgradItem(const WgradArguments& args, int item)
      : strip(item / (args.chunks * 2 * args.segments)), segment(0), is_out(0), chunk(0) {
    int rest = item - strip * args.chunks * 2 * args.segments;
    segment = rest / (args.chunks * 2);
    rest -= segment * args.chunks * 2;
    is_out = rest >= args.chunks ? 1 : 0;
    chunk = 2 * (rest - is_out * args.chunks) + static_cast<int>(pair_rank());
  }
};

/// First entry and end of a work item's strip; nothing past the last item.
struct WgradEntries {
  std::int32_t begin = 0;
  std::int32_t end = 0;

  __device__ __forceinline__ static WgradEntries of(const WgradArguments& args, int item) {
    if (item >= args.items) {
      return {};
    }
    const std::int32_t* const offsets =
        args.strip_offsets + args.first_strip + item / (args.chunks * 2 * args.segments);
    return {offsets[0], offsets[1]};
  }
  __device__ __forceinline__ int slots(int slot_tokens) const {
    return (end - begin + slot_tokens - 1) / slot_tokens;
  }
};

template <class Tiles>
struct WgradShared {
  std::uint32_t slots;
  std::uint32_t stages;
  std::uint32_t barriers;

  __device__ __forceinline__ explicit WgradShared(std::byte* memory) {
    slots = (shared_address(memory) + 1023U) & ~1023U;
    stages = slots + Tiles::kSlots * Tiles::kSlotBytes;
    barriers = stages + Tiles::kConsumerWarps * Tiles::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t q(std::uint32_t slot, int group) const {
    return slots + slot * Tiles::kSlotBytes + group * Tiles::kQBytes;
  }
  __device__ __forceinline__ std::uint32_t x(std::uint32_t slot, int group) const {
    return q(slot, Tiles::kGroups) + group * Tiles::kXBytes;
  }
  __device__ __forceinline__ std::uint32_t full(std::uint32_t slot) const { return barriers + 8 * slot; }
  __device__ __forceinline__ std::uint32_t empty(std::uint32_t slot) const {
    return full(Tiles::kSlots + slot);
  }
  /// Completes when a warp's old values have come.
  __device__ __forceinline__ std::uint32_t old(int warp) const {
    return full(static_cast<std::uint32_t>(2 * Tiles::kSlots + warp));
  }
  __device__ __forceinline__ void init_barriers() const {
    for (std::uint32_t i = 0; i < Tiles::kSlots; ++i) {
      barrier_init(full(i), 32 * Tiles::kGroups + 1);     // lanes that gather, and the thread that loads q
      barrier_init(empty(i), 2 * Tiles::kConsumerWarps);  // of both blocks
    }
    for (int i = 0; i < Tiles::kConsumerWarps; ++i) {
      barrier_init(old(i), 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_proxy_async();
  }
};

}  // namespace moescope::cuda
