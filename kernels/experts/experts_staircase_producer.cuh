#pragma once

#include <limits>

#include "kernels/experts/experts_staircase_common.cuh"

/// The producer warpgroup of the staircase kernel. Warp 0 loads W and V through the bulk copy engine, warps 1
/// and 2 gather X, warp 3 fetches work items and gathers log-probabilities. All run ahead of the consumers,
/// into the next tile, as far as the rings allow.
namespace moescope::cuda {

/// W, then (past the slots of the log-probabilities) V of every work item. One thread.
template <class Tiles>
__device__ __forceinline__ void load_weights(const StaircaseArguments& args, const StaircaseMaps& maps,
                                             const StaircaseShared<Tiles>& shared) {
  RingPosition<Tiles::kSlots> ring;
  RingPosition<Tiles::kQueue> queue;
  const int chunks = (args.hidden_size + Tiles::kChunk - 1) / Tiles::kChunk;
  // Where strips have several tiles, the later a block takes its next one the closer in time blocks work on
  // tiles of one strip, and the more of W and V they share in L2. Otherwise early: no start is waited for.
  const bool many_tiles = args.strips.counts[1] >= 2 * (args.grid_rows + args.grid_cols);
  const int wanted_at = many_tiles ? chunks / 2 : 0;  // columns of V
  while (true) {
    barrier_wait(shared.item_full(queue.slot), queue.parity);
    const StaircaseItem<Tiles>& item = shared.items[queue.slot];
    const int count = item.count;
    const int strip = item.strip;
    const int first = item.first;
    const bool is_col = item.is_col != 0;
    barrier_arrive(shared.item_empty(queue.slot));
    queue.advance();
    if (count == 0) {
      return;
    }
    const auto load = [&](const CUtensorMap* map, bool announces) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (announces && chunk == wanted_at) {
          barrier_arrive(shared.next_wanted());
        }
#pragma unroll
        for (int part = 0; part < Tiles::kParts; ++part) {
          const int expert = first + part * Tiles::kN;
          barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
          barrier_expect(shared.full(ring.slot), Tiles::kN * Tiles::kRowBytes);
          barrier_arrive_for(shared.full(ring.slot), 32);
          load_box(shared.slot(ring.slot), map, chunk * Tiles::kChunk, is_col ? strip : expert,
                   is_col ? expert : strip, shared.full(ring.slot));
          ring.advance();
        }
      }
    };
    if constexpr (Tiles::kPass == StaircasePass::kScores) {
      load(is_col ? &maps.w_col : &maps.w_row, true);
      continue;
    }
    load(is_col ? &maps.w_col : &maps.w_row, false);
    for (int i = 0; i < Tiles::kLogSlots; ++i) {
      barrier_wait(shared.empty(ring.slot), ring.parity ^ 1U);
      barrier_arrive(shared.granted(ring.slot));
      ring.advance();
    }
    load(is_col ? &maps.v_col : &maps.v_row, true);
  }
}

/// X rows of the tile's tokens, 64 columns at a time, in the swizzle of the tensor cores' operands. `half`:
/// which 64 tokens are this warp's.
template <class Tiles>
__device__ __forceinline__ void gather_tokens(const StaircaseArguments& args,
                                              const StaircaseShared<Tiles>& shared, int half, int lane) {
  RingPosition<Tiles::kXSlots> ring;
  RingPosition<Tiles::kQueue> queue;
  constexpr int kRows = 16;  // of a lane: first_row, first_row + 4, ...
  const int first_row = 64 * half + lane / 8;
  const std::uint32_t piece = lane % 8;                          // of a row's 8 pieces of 16 bytes
  const std::uint32_t pieces = args.hidden_size / 8;             // of a token in memory
  const std::uint32_t even = (piece ^ (first_row % 8)) * 16;     // the swizzle of rows 0, 8, ... on
  const std::uint32_t odd = (piece ^ (first_row % 8 + 4)) * 16;  // and of rows 4, 12, ...
  const auto* const source = reinterpret_cast<const uint4*>(args.hidden_states);
  while (true) {
    barrier_wait(shared.item_full(queue.slot), queue.parity);
    const StaircaseItem<Tiles>& item = shared.items[queue.slot];
    const int count = item.count;
    if (count == 0) {
      return;
    }
    std::uint32_t token[kRows];  // where the rows begin, in pieces
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      token[i] = first_row + 4 * i < count ? item.tokens[first_row + 4 * i] * pieces : 0;
    }
    const int rows = count > first_row ? (count - first_row + 3) / 4 : 0;
    for (std::uint32_t column = piece; column < pieces + piece; column += Tiles::kChunk / 8) {
      barrier_wait(shared.x_empty(ring.slot), ring.parity ^ 1U);
      const std::uint32_t target = shared.x_slot(ring.slot) + first_row * Tiles::kRowBytes;
      const bool valid = column < pieces;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i < rows) {
          copy_async_or_zero(target + (i % 2 == 0 ? even : odd) + i * 4 * Tiles::kRowBytes,
                             source + (valid ? token[i] + column : 0), valid);
        }
      }
      barrier_arrive_after_copies(shared.x_full(ring.slot));
      ring.advance();
    }
    barrier_arrive(shared.item_empty(queue.slot));
    queue.advance();
  }
}

/// Takes the next work item that exists into the queue. Returns its number of tokens, 0 at the end.
template <class Tiles>
__device__ __forceinline__ int fetch_item(const StaircaseArguments& args, StaircaseItem<Tiles>& item,
                                          int num_items, int lane) {
  constexpr float kLog2E = 1.4426950408889634F;
  const DeviceStrips& strips = args.strips;
  StripTile tile;
  int work = 0;
  int first = 0;
  bool is_col = false;
  while (true) {
    if (lane == 0) {
      // The backward may run both of its passes after one clearing: each has a counter of its own.
      work = atomicAdd(strips.counts + (Tiles::kPass == StaircasePass::kScores ? 3 : 2), 1);
    }
    work = __shfl_sync(~0U, work, 0);
    if (work >= num_items) {
      if (lane == 0) {
        item.count = 0;
      }
      return 0;
    }
    tile = strips.tiles[work / args.segments];
    first = work % args.segments * Tiles::kExperts;
    is_col = tile.strip >= args.grid_rows;
    if (tile.count > 0 && first < (is_col ? args.grid_rows : args.grid_cols)) {
      break;  // the shorter kind of strip has fewer segments
    }
  }
  const int strip = is_col ? tile.strip - args.grid_rows : tile.strip;
  const float* const own = is_col ? strips.col_log_probs + strip : strips.row_log_probs + strip;
  const int own_stride = is_col ? args.grid_cols : args.grid_rows;
  for (int row = lane; row < tile.count; row += 32) {
    const int token = strips.strip_tokens[tile.first_entry + row];
    const int limit = strips.tie_limit[token];
    item.tokens[row] = token;
    item.own[row] = own[std::int64_t{token} * own_stride];
    item.threshold[row] = strips.threshold[token];
    // Ids of a strip ascend: strip * grid_cols + k, or k * grid_cols + strip.
    const int last = !is_col          ? limit - strip * args.grid_cols
                     : limit >= strip ? (limit - strip) / args.grid_cols
                                      : -1;
    item.last_tie[row] = last - first;
    const float shift = strips.gate_shift[token] * kLog2E;
    if constexpr (Tiles::kPass == StaircasePass::kForward) {
      item.gate_offset[row] = static_cast<float>(args.exponents[token]) - shift;
    } else if constexpr (Tiles::kPass == StaircasePass::kDgrad) {
      item.gate_offset[row] = args.probability_gates != 0 ? 0.0F : -shift;
      item.scale[row] = __int_as_float((127 + args.exponents[token]) << 23);  // normal: |exponent| <= 100
    }
  }
  if (lane == 0) {
    item.count = tile.count;
    item.strip = strips.places == nullptr ? strip : strips.places[tile.strip];
    item.is_col = is_col ? 1 : 0;
    item.first = first;
    item.work = work;
    item.entry = tile.first_entry;
  }
  return tile.count;
}

/// What log-probabilities of experts behind a strip's end are copied from.
struct MinusInfinity {
  static constexpr int kMost = 256;
  alignas(16) float values[kMost];
  constexpr MinusInfinity() : values() {
    for (float& value : values) {
      value = -std::numeric_limits<float>::infinity();
    }
  }
};
static __device__ const MinusInfinity kMinusInfinity;

/// Log-probabilities of the segment's experts, of 32 tokens and one product in a slot, from `slot` on, the
/// products in turn; -inf where the strip has ended. A lane to a token.
template <class Tiles>
__device__ __forceinline__ void gather_log_probs(const StaircaseArguments& args,
                                                 const StaircaseShared<Tiles>& shared,
                                                 const StaircaseItem<Tiles>& item, std::uint32_t& slot,
                                                 std::uint32_t& parities, int lane) {
  const int length = item.is_col != 0 ? args.grid_rows : args.grid_cols;
  const float* const others = item.is_col != 0 ? args.strips.uncovered_rows : args.strips.col_log_probs;
  const bool aligned = length % 4 == 0;  // then rows are multiples of 16 bytes
  for (int block = 0; block < Tiles::kLogSlots; ++block) {
    barrier_wait(shared.granted(slot), parities >> slot & 1U);
    parities ^= 1U << slot;
    const int begin = item.first + block / Tiles::kLogGroups * Tiles::kN;
    const int columns = length - begin < 0 ? 0 : length - begin < Tiles::kN ? length - begin : Tiles::kN;
    const int first_row = block % Tiles::kLogGroups * Tiles::kLogTokens;
    const int rows = min(max(item.count - first_row, 0), Tiles::kLogTokens);
    const std::uint32_t first_target = shared.slot(slot);
    const std::uint32_t full = shared.full(slot);
    if (aligned) {
      if (lane == 0) {
        barrier_expect(full, rows * Tiles::kLogBytes);
        barrier_arrive_for(full, 32);
      }
      __syncwarp();
      if (lane < rows) {
        const std::uint32_t target = first_target + lane * Tiles::kLogStride;
        if (columns > 0) {
          load_bulk(target, others + std::int64_t{item.tokens[first_row + lane]} * length + begin,
                    columns * 4, full);
        }
        if (columns < Tiles::kN) {
          load_bulk(target + columns * 4, kMinusInfinity.values, (Tiles::kN - columns) * 4, full);
        }
      }
    } else {
      for (int row = 0; row < rows; ++row) {
        const float* const source = others + std::int64_t{item.tokens[first_row + row]} * length + begin;
        for (int column = lane; column < Tiles::kN; column += 32) {
          copy_async_word(first_target + row * Tiles::kLogStride + column * 4,
                          column < columns ? source + column : kMinusInfinity.values);
        }
      }
      barrier_arrive_after_copies(full);  // every lane, for its own
    }
    slot = (slot + 1) % Tiles::kSlots;
  }
}

/// Work items and their log-probabilities. The next item is fetched when load_weights() asks for it.
template <class Tiles>
__device__ __forceinline__ void fetch_items(const StaircaseArguments& args,
                                            const StaircaseShared<Tiles>& shared, int lane) {
  RingPosition<Tiles::kQueue> queue;
  const int weight_slots = (args.hidden_size + Tiles::kChunk - 1) / Tiles::kChunk * Tiles::kParts;
  std::uint32_t slot = weight_slots % Tiles::kSlots;
  std::uint32_t parities = 0;  // bit i: of slot i's `granted`
  const int num_items = args.strips.counts[1] * args.segments;
  const auto fetch = [&] {
    barrier_wait(shared.item_empty(queue.slot), queue.parity ^ 1U);
    const int count = fetch_item<Tiles>(args, shared.items[queue.slot], num_items, lane);
    __syncwarp();  // this warp reads other lanes' entries itself
    barrier_arrive(shared.item_full(queue.slot));
    queue.advance();
    return count;
  };
  std::uint32_t current = queue.slot;
  std::uint32_t wanted_parity = 0;
  while (fetch() > 0) {
    if constexpr (Tiles::kPass != StaircasePass::kScores) {
      gather_log_probs<Tiles>(args, shared, shared.items[current], slot, parities, lane);
    }
    slot = (slot + 2 * weight_slots) % Tiles::kSlots;  // past V and the next item's W
    barrier_arrive(shared.item_empty(current));
    barrier_wait(shared.next_wanted(), wanted_parity);
    wanted_parity ^= 1U;
    current = queue.slot;
  }
}

template <class Tiles>
__device__ __forceinline__ void produce(const StaircaseArguments& args, const StaircaseMaps& maps,
                                        const StaircaseShared<Tiles>& shared, int warp, int lane) {
  if (warp == 0) {
    if (lane == 0) {
      load_weights<Tiles>(args, maps, shared);
    }
  } else if (warp == 3) {
    fetch_items<Tiles>(args, shared, lane);
  } else {
    gather_tokens<Tiles>(args, shared, warp - 1, lane);
  }
}

}  // namespace moescope::cuda
