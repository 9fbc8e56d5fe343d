#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/contract/launch.hpp"
#include "kernels/device/hopper.cuh"
#include "kernels/device/mma_bf16.cuh"
#include "kernels/experts/staircase_tiles.hpp"

/// What producers and consumers of the staircase kernel share: arguments, shared memory, ring positions.
namespace moescope::cuda {

/// Boxes of W and V for row strips and column strips.
struct StaircaseMaps {
  CUtensorMap w_row, w_col, v_row, v_col;
};

struct StaircaseArguments {
  const __nv_bfloat16* hidden_states = nullptr;  ///< what is gathered: X, or dY of the backward
  DeviceStrips strips;
  void* sums = nullptr;
  const std::int32_t* exponents = nullptr;
  std::int32_t hidden_size = 0;
  std::int32_t grid_rows = 0;
  std::int32_t grid_cols = 0;
  std::int32_t segments =
      0;  ///< of the longer kind of strip: work item w is segment w % segments of tile w / segments
  std::int32_t probability_gates = 0;  ///< of the backward: gates are exp(S) as they are
};

/// A work item and what its readers need of each token. Lives in shared memory.
template <class Tiles>
struct StaircaseItem {
  std::int32_t count;  ///< tokens; 0 ends the work
  std::int32_t strip;  ///< where the grid row's or column's experts lie
  std::int32_t is_col;
  std::int32_t first;  ///< the segment's first expert within the strip
  std::int32_t work;   ///< index of the work item
  std::int32_t entry;  ///< of the first token in strip_tokens
  std::int32_t unused[2];
  std::int32_t tokens[Tiles::kTokens];
  float own[Tiles::kTokens];  ///< log-probability of the strip
  float threshold[Tiles::kTokens];
  std::int32_t last_tie[Tiles::kTokens];  ///< experts up to here (within the segment) count at the threshold
  /// Forward: gate * 2^exponent = 2^(S log2(e) + gate_offset). Backward: the gate alone.
  float gate_offset[Tiles::kTokens];
  float scale[Tiles::kTokens];  ///< of the backward's sums: 2^exponent
};

/// A block's shared memory. Barriers `full` complete when a slot's data have landed, `empty` when all its
/// readers are done with it.
template <class Tiles>
struct StaircaseShared {
  std::uint32_t slots;    ///< [kSlots][kSlotBytes], 1024-byte aligned
  std::uint32_t x_slots;  ///< [kXSlots][kXSlotBytes]
  std::uint32_t stages;   ///< [4 kWarpgroups][kStageBytes]
  std::uint32_t barriers;
  StaircaseItem<Tiles>* items;  ///< [kQueue]
  std::byte* base;              ///< of `slots`, for ordinary accesses

  __device__ __forceinline__ explicit StaircaseShared(std::byte* memory) {
    const std::uint32_t start = shared_address(memory);
    const std::uint32_t aligned = (start + 1023U) & ~1023U;
    base = memory + (aligned - start);
    slots = aligned;
    x_slots = slots + Tiles::kSlots * Tiles::kSlotBytes;
    stages = x_slots + Tiles::kXSlots * Tiles::kXSlotBytes;
    const std::uint32_t entries = stages + 4 * Tiles::kWarpgroups * Tiles::kStageBytes;
    items = reinterpret_cast<StaircaseItem<Tiles>*>(base + (entries - aligned));
    static_assert(sizeof(StaircaseItem<Tiles>) == Tiles::kEntryBytes);
    barriers = entries + Tiles::kQueue * Tiles::kEntryBytes;
  }

  __device__ __forceinline__ std::uint32_t slot(std::uint32_t i) const {
    return slots + i * Tiles::kSlotBytes;
  }
  __device__ __forceinline__ std::uint32_t x_slot(std::uint32_t i) const {
    return x_slots + i * Tiles::kXSlotBytes;
  }
  __device__ __forceinline__ std::uint32_t full(std::uint32_t i) const { return barriers + 8 * i; }
  __device__ __forceinline__ std::uint32_t empty(std::uint32_t i) const { return full(Tiles::kSlots + i); }
  __device__ __forceinline__ std::uint32_t x_full(std::uint32_t i) const {
    return full(2 * Tiles::kSlots + i);
  }
  __device__ __forceinline__ std::uint32_t x_empty(std::uint32_t i) const {
    return x_full(Tiles::kXSlots + i);
  }
  __device__ __forceinline__ std::uint32_t item_full(std::uint32_t i) const {
    return x_full(2 * Tiles::kXSlots + i);
  }
  __device__ __forceinline__ std::uint32_t item_empty(std::uint32_t i) const {
    return item_full(Tiles::kQueue + i);
  }

  /// Completes when the weights' producer, which alone follows every slot's `empty`, leaves the slot to the
  /// log-probabilities' producer. (A barrier tells a phase from its neighbours only: a producer that passed
  /// over others' slots would have to keep within a round of them.)
  __device__ __forceinline__ std::uint32_t granted(std::uint32_t i) const {
    return item_empty(Tiles::kQueue + i);
  }

  /// Completes once a work item when the weights' producer has come so far that the next one is wanted.
  __device__ __forceinline__ std::uint32_t next_wanted() const { return granted(Tiles::kSlots); }

  /// By one thread, before anyone else uses the barriers.
  __device__ __forceinline__ void init_barriers() const {
    constexpr int kConsumerWarps = 4 * Tiles::kWarpgroups;
    for (std::uint32_t i = 0; i < Tiles::kSlots; ++i) {
      barrier_init(full(i),
                   32);  // every lane whose cp.async copies fill it; one lane for all where bulk copies do
      // Of log-probabilities every lane arrives that read them, for the reason below; otherwise one for all.
      barrier_init(empty(i), 32 * kConsumerWarps);
      barrier_init(granted(i), 1);
    }
    barrier_init(next_wanted(), 1);
    for (std::uint32_t i = 0; i < Tiles::kXSlots; ++i) {
      barrier_init(x_full(i), 64);  // every lane of the two gathering warps
      barrier_init(x_empty(i), kConsumerWarps);
    }
    for (std::uint32_t i = 0; i < Tiles::kQueue; ++i) {
      // Every lane arrives that writes an item or reads it, but for the weights' one thread: what a lane
      // did is then ordered by its own arrival. racecheck follows that, but not __syncwarp() and then one
      // lane's arrival; once a tile it costs nothing.
      barrier_init(item_full(i), 32);
      barrier_init(item_empty(i), 32 * (kConsumerWarps + 3) + 1);
    }
    fence_proxy_async();
  }
};

}  // namespace moescope::cuda
