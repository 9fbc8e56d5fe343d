#pragma once

#include "kernels/device/wgmma.cuh"
#include "kernels/experts/experts_staircase_common.cuh"
#include "kernels/experts/experts_staircase_weights.cuh"

/// The consumer warpgroups of the staircase kernel: S = X W^T, P = gate * sigma(S) where selected, Y += P V,
/// for 64 tokens each.
namespace moescope::cuda {

template <class Tiles, Activation kActivation>
class StaircaseConsumer {
 public:
  __device__ __forceinline__ StaircaseConsumer(const StaircaseArguments& args,
                                               const StaircaseShared<Tiles>& shared, int warpgroup, int warp,
                                               int lane)
      : args_(args),
        shared_(shared),
        warpgroup_(warpgroup),
        warp_(warp),
        lane_(lane),
        policy_(keep_in_l2()) {}

  __device__ __forceinline__ void run() {
    each_item([&](const StaircaseItem<Tiles>& item, int count, int chunks) { work(item, count, chunks); },
              [&](int chunks) {
                pass(chunks);
                skip(Tiles::kLogSlots + chunks * Tiles::kParts);
              });
  }

 protected:
  /// work(item, tokens, chunks) for work items with tokens for this warpgroup, pass(chunks) for others.
  template <class Work, class Pass>
  __device__ __forceinline__ void each_item(const Work& work, const Pass& pass) {
    const int chunks = (args_.hidden_size + Tiles::kChunk - 1) / Tiles::kChunk;
    RingPosition<Tiles::kQueue> queue;
    while (true) {
      barrier_wait(shared_.item_full(queue.slot), queue.parity);
      const StaircaseItem<Tiles>& item = shared_.items[queue.slot];
      const int count = item.count;
      if (count == 0) {
        break;
      }
      if (warpgroup_ * 64 < count) {
        work(item, count, chunks);
      } else {
        pass(chunks);
      }
      barrier_arrive(shared_.item_empty(queue.slot));
      queue.advance();
    }
    wait_bulk();
  }

  static constexpr int kSteps = Tiles::kN / 16;  ///< K steps of the second product per slot
  using Scores = float[Tiles::kParts][Tiles::kN / 2];
  using Weights = std::uint32_t[Tiles::kParts][kSteps][4];

  /// Where this lane adds: with fp16 one of 8 pieces of 16 bytes in each of 4 rows, otherwise a whole row.
  struct SumRows {
    static constexpr int kRows = 4;
    static constexpr std::uint32_t kNone = ~0U;
    std::uint32_t place[kRows];  ///< in pieces from the start of the sums
    std::int32_t token;          ///< -1: none

    __device__ __forceinline__ SumRows(const StaircaseItem<Tiles>& item, int count, int hidden_size,
                                       int first_row, int lane)
        : token(lane < 16 && first_row + lane < count ? item.tokens[first_row + lane] : -1) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = first_row + lane / 8 + 4 * i;
        place[i] =
            row < count ? item.tokens[row] * static_cast<std::uint32_t>(hidden_size / 8) + lane % 8 : kNone;
      }
    }
  };

  __device__ __forceinline__ void arrive(std::uint32_t barrier) const {
    __syncwarp();
    if (lane_ == 0) {
      barrier_arrive(barrier);
    }
  }
  /// A slot that the tensor cores have read, or nobody of this warp.
  __device__ __forceinline__ void release(std::uint32_t slot) const {
    __syncwarp();
    if (lane_ == 0) {
      barrier_arrive_for(shared_.empty(slot), 32);
    }
  }

  /// Lets slots of the ring go by.
  __device__ __forceinline__ void skip(int slots) {
#pragma unroll 1
    for (int i = 0; i < slots; ++i) {
      barrier_wait(shared_.full(ring_.slot), ring_.parity);
      release(ring_.slot);
      ring_.advance();
    }
  }

  /// A work item without tokens for this warpgroup: keeps in step with the rings through its first product.
  __device__ __forceinline__ void pass(int chunks) {
    for (int i = 0; i < chunks; ++i) {
      barrier_wait(shared_.x_full(x_ring_.slot), x_ring_.parity);
      arrive(shared_.x_empty(x_ring_.slot));
      x_ring_.advance();
      skip(Tiles::kParts);
    }
  }

  __device__ __forceinline__ void work(const StaircaseItem<Tiles>& item, int count, int chunks) {
    Weights p;
    {
      Scores s;
      score(s, chunks);
      weigh_all(item, s, p);
    }
    combine(item, count, p, chunks);
  }

  /// S = X W^T. Every slot is released as soon as its products are done: while loads are what is
  /// waited for, another slot in flight is worth more than products without a pause (the other warpgroup
  /// fills it).
  __device__ __forceinline__ void score(Scores& s, int chunks) {
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < Tiles::kN / 2; ++i) {
        s[part][i] = 0.0F;
      }
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      barrier_wait(shared_.x_full(x_ring_.slot), x_ring_.parity);
      fence_proxy_async();  // X was written by cp.async
      const std::uint64_t x =
          matrix_descriptor(shared_.x_slot(x_ring_.slot) + warpgroup_ * 64 * Tiles::kRowBytes);
#pragma unroll
      for (int part = 0; part < Tiles::kParts; ++part) {
        barrier_wait(shared_.full(ring_.slot), ring_.parity);
        const std::uint64_t w = matrix_descriptor(shared_.slot(ring_.slot));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tiles::kChunk / 16; ++k) {
          Wgmma<Tiles::kN>::multiply(s[part], x + 2 * k, w + 2 * k);  // 32 bytes on, in units of 16
        }
        wgmma_commit();
        wgmma_wait<0>();
        keep_order(s[part]);
        release(ring_.slot);
        ring_.advance();
      }
      arrive(shared_.x_empty(x_ring_.slot));
      x_ring_.advance();
    }
  }

  __device__ __forceinline__ static StaircaseToken token_of(const StaircaseItem<Tiles>& item, int row) {
    return {item.own[row], item.threshold[row], item.gate_offset[row], item.last_tie[row]};
  }

  /// P from S. The accumulators' layout is that of the second product's A fragments.
  __device__ __forceinline__ void weigh_all(const StaircaseItem<Tiles>& item, const Scores& s, Weights& p) {
    const int row = warpgroup_ * 64 + warp_ * 16 + lane_ / 4;
    const StaircaseToken upper = token_of(item, row);
    const StaircaseToken lower = token_of(item, row + 8);
    const int group = (warpgroup_ * 64 + warp_ * 16) / Tiles::kLogTokens;
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      skip(group);
      barrier_wait(shared_.full(ring_.slot), ring_.parity);
      const std::byte* const logs = shared_.base + ring_.slot * Tiles::kSlotBytes +
                                    row % Tiles::kLogTokens * Tiles::kLogStride + lane_ % 4 * 8;
#pragma unroll
      for (int n = 0; n < Tiles::kN / 8; ++n) {  // blocks of 8 columns
        const int column = part * Tiles::kN + n * 8 + lane_ % 4 * 2;
        const float2 high = *reinterpret_cast<const float2*>(logs + n * 32);
        const float2 low = *reinterpret_cast<const float2*>(logs + 8 * Tiles::kLogStride + n * 32);
        const float* const score = s[part] + 4 * n;
        p[part][n / 2][n % 2 * 2] = pack_bf16(weigh<kActivation>(upper, high.x, column, score[0]),
                                              weigh<kActivation>(upper, high.y, column + 1, score[1]));
        p[part][n / 2][n % 2 * 2 + 1] = pack_bf16(weigh<kActivation>(lower, low.x, column, score[2]),
                                                  weigh<kActivation>(lower, low.y, column + 1, score[3]));
      }
      // Every lane arrives for what it has read. The bulk copy engine fills the slot next, and an arrival
      // alone orders ordinary reads before ordinary writes only: reads were still under way when a context
      // switch came between, and met the next slot's weights.
      fence_proxy_async();
      barrier_arrive(shared_.empty(ring_.slot));
      ring_.advance();
      skip(Tiles::kLogGroups - 1 - group);
    }
  }

  /// sums[tokens] += P V, 64 columns at a time.
  __device__ __forceinline__ void combine(const StaircaseItem<Tiles>& item, int count, const Weights& p,
                                          int chunks) {
    const SumRows sums(item, count, args_.hidden_size, warpgroup_ * 64 + warp_ * 16, lane_);
    // Two chunks in turn: while one's products run, the other's sums are added. Every wait has a constant
    // count of products in flight, or ptxas serialises them all.
    float even[Tiles::kChunk / 2];
    float odd[Tiles::kChunk / 2];
    RingPosition<Tiles::kSlots> done = ring_;
    multiply(p, even);
    int chunk = 0;
    for (; chunk + 2 < chunks; chunk += 2) {
      multiply(p, odd);
      retire<Tiles::kParts>(even, done);
      add(sums, chunk * Tiles::kChunk, even);
      multiply(p, even);
      retire<Tiles::kParts>(odd, done);
      add(sums, (chunk + 1) * Tiles::kChunk, odd);
    }
    if (chunk + 1 < chunks) {
      multiply(p, odd);
      retire<Tiles::kParts>(even, done);
      add(sums, chunk * Tiles::kChunk, even);
      retire<0>(odd, done);
      add(sums, (chunk + 1) * Tiles::kChunk, odd);
    } else {
      retire<0>(even, done);
      add(sums, chunk * Tiles::kChunk, even);
    }
  }

  /// Starts y = P V for the next chunk of V.
  __device__ __forceinline__ void multiply(const Weights& p, float (&y)[Tiles::kChunk / 2]) {
#pragma unroll
    for (int i = 0; i < Tiles::kChunk / 2; ++i) {
      y[i] = 0.0F;
    }
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      barrier_wait(shared_.full(ring_.slot), ring_.parity);
      const std::uint64_t v = matrix_descriptor(shared_.slot(ring_.slot));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        wgmma_registers(y, p[part][k], v + k * (16 * Tiles::kRowBytes / 16));
      }
      wgmma_commit();
      ring_.advance();
    }
  }

  /// Waits for a chunk's products, after which kPending slots' are in flight, and releases its slots.
  template <int kPending>
  __device__ __forceinline__ void retire(float (&y)[Tiles::kChunk / 2], RingPosition<Tiles::kSlots>& done) {
    wgmma_wait<kPending>();
    keep_order(y);
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      release(done.slot);
      done.advance();
    }
  }

  /// Adds a chunk of this warp's 16 tokens through its staging rows: fp16 by 16-byte atomics of all lanes,
  /// which keep clear of the bulk copy engine (at 128 bytes a piece the sums would hold up W and V in it);
  /// int32, which has no such atomics, by one bulk reduction per token.
  __device__ __forceinline__ void add(const SumRows& sums, int column,
                                      const float (&y)[Tiles::kChunk / 2]) const {
    const std::uint32_t stage = shared_.stages + (warpgroup_ * 4 + warp_) * Tiles::kStageBytes;
    if constexpr (Tiles::kSums == StaircaseSums::kFp16) {
      const std::uint32_t target = stage + (lane_ % 16) * Tiles::kStageStride + lane_ / 16 * 16;
      __syncwarp();
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 8; n += 2) {
        const float* const v = y + 4 * n;
        store_matrices(target + n * 16, pack_f16(v[0], v[1]), pack_f16(v[2], v[3]), pack_f16(v[4], v[5]),
                       pack_f16(v[6], v[7]));
      }
      __syncwarp();
      const bool inside = column + lane_ % 8 * 8 < args_.hidden_size;
      auto* const base = static_cast<uint4*>(args_.sums) + column / 8;
#pragma unroll
      for (int i = 0; i < SumRows::kRows; ++i) {
        const uint4 values = load_shared(stage + (lane_ / 8 + 4 * i) * Tiles::kStageStride + lane_ % 8 * 16);
        if (inside && sums.place[i] != SumRows::kNone) {
          reduce_f16(base + sums.place[i], values, policy_);
        }
      }
    } else {
      wait_bulk_read();
      __syncwarp();
      const std::uint32_t target = stage + lane_ / 4 * Tiles::kStageStride + lane_ % 4 * 8;
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 8; ++n) {
        store_pair(target + n * 32, __float2int_rn(y[4 * n]), __float2int_rn(y[4 * n + 1]));
        store_pair(target + n * 32 + 8 * Tiles::kStageStride, __float2int_rn(y[4 * n + 2]),
                   __float2int_rn(y[4 * n + 3]));
      }
      fence_proxy_async();
      __syncwarp();
      if (sums.token >= 0) {
        const int columns = args_.hidden_size - column;
        const int bytes = (columns < Tiles::kChunk ? columns : Tiles::kChunk) * Tiles::kSumBytes;
        auto* const target_row =
            static_cast<std::int32_t*>(args_.sums) + std::int64_t{sums.token} * args_.hidden_size + column;
        reduce_bulk_s32(target_row, stage + lane_ * Tiles::kStageStride, bytes, policy_);
        commit_bulk();
      }
    }
  }

  const StaircaseArguments& args_;
  const StaircaseShared<Tiles>& shared_;
  int warpgroup_;
  int warp_;  ///< within the warpgroup
  int lane_;
  std::uint64_t policy_;
  RingPosition<Tiles::kSlots> ring_;
  RingPosition<Tiles::kXSlots> x_ring_;
};

}  // namespace moescope::cuda
