#pragma once

#include "kernels/backward/strips_wgrad_common.cuh"

/// The producer warpgroup of the wgrad kernel: warp 0 loads p or q through the bulk copy engine, warps 1 and
/// 2 gather rows of X or dY, 16 tokens of a slot each.
namespace moescope::cuda {

/// 16 bytes from global to shared memory with an L2 policy; zeros when not `valid` (then nothing is read).
__device__ __forceinline__ void copy_async_or_zero(std::uint32_t target, const void* source, bool valid,
                                                   std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(target), "l"(source),
               "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

/// load_box() to the same place of both blocks of a pair.
__device__ __forceinline__ void load_box_to_both(std::uint32_t target, const CUtensorMap* map, int x, int y,
                                                 int z, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, "
      "%3, %4}], [%5], %6;" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(static_cast<std::uint16_t>(3))
      : "memory");
}

/// p or q of every slot. One thread; each block of a pair loads one group for both.
template <class Tiles>
__device__ __forceinline__ void load_pairs(const WgradArguments& args, const WgradMaps& maps,
                                           const WgradShared<Tiles>& shared) {
  RingPosition<Tiles::kSlots> ring;
  const int step = item_step();
  WgradEntries next = WgradEntries::of(args, first_item());
  for (int at = first_item(); at < args.items; at += step) {
    const WgradEntries entries = next;
    next = WgradEntries::of(args, at + step);
    const WgradItem item(args, at);
    const CUtensorMap* const map = item.is_out != 0 ? &maps.p : &maps.q;
    for (int first = entries.begin; first < entries.end; first += Tiles::kSlotTokens) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
      barrier_arrive_expect(shared.full(ring.slot), Tiles::kGroups * Tiles::kQBytes);
      const auto group = static_cast<int>(pair_rank());
      load_box_to_both(shared.q(ring.slot, group), map, 0, first + group * Tiles::kGroupTokens,
                       item.segment * Tiles::kMTiles, shared.full(ring.slot));
      ring.advance();
    }
  }
}

/// Steps through the slots of a block's work items and asks for the tokens of one group of each.
template <class Tiles>
class TokenCursor {
 public:
  __device__ __forceinline__ TokenCursor(const WgradArguments& args, int group, int lane)
      : args_(args),
        offset_(group * Tiles::kGroupTokens + lane % Tiles::kGroupTokens),
        item_(first_item()),
        entries_(WgradEntries::of(args, item_)),
        next_(WgradEntries::of(args, item_ + item_step())) {}

  /// The next slot's token of this lane, -1 behind the strip's end, and its work item, -1 after the last.
  __device__ __forceinline__ void advance(std::int32_t& token, std::int32_t& item) {
    while (entries_.begin >= entries_.end) {
      if (item_ >= args_.items) {
        item = -1;
        return;
      }
      item_ += item_step();
      entries_ = next_;
      next_ = WgradEntries::of(args_, item_ + item_step());
    }
    const int at = entries_.begin + offset_;
    token = at < entries_.end ? args_.strip_tokens[at] : -1;
    item = item_;
    entries_.begin += Tiles::kSlotTokens;
  }

 private:
  const WgradArguments& args_;
  int offset_;
  int item_;
  WgradEntries entries_;  ///< what is left of them
  WgradEntries next_;
};

/// Rows of X or dY, in the swizzle of the tensor cores' operands; zeros behind a strip's end.
template <class Tiles>
__device__ __forceinline__ void gather_rows(const WgradArguments& args, const WgradShared<Tiles>& shared,
                                            int group, int lane) {
  constexpr int kAhead = 4;  // slots whose tokens are under way
  constexpr int kRows = 4;   // of a lane: lane / 8 + 4 i
  RingPosition<Tiles::kSlots> ring;
  TokenCursor<Tiles> cursor(args, group, lane);
  std::int32_t tokens[kAhead];
  std::int32_t items[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    tokens[i] = -1;
    items[i] = -1;
    cursor.advance(tokens[i], items[i]);
  }
  const int piece = lane % 8;                     // of 128 bytes' 8 pieces of 16
  const int pieces = args.hidden_size / 8;        // of a token in memory
  const int even = (piece ^ (lane / 8)) * 16;     // the swizzle of rows 0 to 3 and 8 to 11
  const int odd = (piece ^ (lane / 8 + 4)) * 16;  // and of the others
  const std::uint64_t policy = keep_in_l2();
  std::int32_t current = -1;
  const uint4* source = nullptr;
  int column = 0;
  while (items[0] >= 0) {
    const std::int32_t token = tokens[0];
    if (items[0] != current) {
      current = items[0];
      const WgradItem item(args, current);
      source = reinterpret_cast<const uint4*>(item.is_out != 0 ? args.dy : args.hidden_states);
      column = item.chunk * (Tiles::kColumns / 8) + piece;
    }
#pragma unroll
    for (int i = 1; i < kAhead; ++i) {
      tokens[i - 1] = tokens[i];
      items[i - 1] = items[i];
    }
    cursor.advance(tokens[kAhead - 1], items[kAhead - 1]);
    std::int32_t row[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      row[i] = __shfl_sync(~0U, token, lane / 8 + 4 * i);
    }
    barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
    const std::uint32_t target = shared.x(ring.slot, group) + lane / 8 * 128;
#pragma unroll
    for (int atom = 0; atom < Tiles::kAtoms; ++atom) {
      const bool inside = column + 8 * atom < pieces;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool valid = inside && row[i] >= 0;
        copy_async_or_zero(target + atom * Tiles::kAtomBytes + i * 4 * 128 + (i % 2 == 0 ? even : odd),
                           source + (valid ? std::int64_t{row[i]} * pieces + column + 8 * atom : 0), valid,
                           policy);
      }
    }
    barrier_arrive_after_copies(shared.full(ring.slot));
    ring.advance();
  }
}

template <class Tiles>
__device__ __forceinline__ void produce_wgrad(const WgradArguments& args, const WgradMaps& maps,
                                              const WgradShared<Tiles>& shared, int warp, int lane) {
  if (warp == 0) {
    if (lane == 0) {
      load_pairs<Tiles>(args, maps, shared);
    }
  } else if (warp <= Tiles::kGroups) {
    gather_rows<Tiles>(args, shared, warp - 1, lane);
  }
  wait_copies<0>();
}

}  // namespace moescope::cuda
