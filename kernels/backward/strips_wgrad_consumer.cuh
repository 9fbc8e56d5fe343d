#pragma once

#include "kernels/backward/strips_wgrad_common.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/experts/experts_staircase_weights.cuh"

/// The consumer warpgroups of the wgrad kernel. Of a work item's five tiles of 64 experts each takes two, and
/// half of the fifth's columns. A warp's 16 experts of each leave through its own staging room in boxes;
/// where a result is added, its old values come there first, while the products run.
namespace moescope::cuda {

/// L2 policy: evict these lines first.
__device__ __forceinline__ std::uint64_t drop_from_l2() {
  std::uint64_t policy = 0;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Box of a three-dimensional tensor map from shared memory.
__device__ __forceinline__ void store_box(const CUtensorMap* map, int x, int y, int z, std::uint32_t source,
                                          std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%1, %2, %3}], [%4], %5;" ::
          "l"(map),
      "r"(x), "r"(y), "r"(z), "r"(source), "l"(policy)
      : "memory");
}
__device__ __forceinline__ std::uint32_t load_shared_word(std::uint32_t address) {
  std::uint32_t v = 0;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void store_shared_word(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ float2 load_shared_floats(std::uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

template <class Tiles, class Gradient>
class WgradConsumer {
 public:
  __device__ __forceinline__ WgradConsumer(const WgradArguments& args, const WgradMaps& maps,
                                           const WgradShared<Tiles>& shared, int warpgroup, int warp,
                                           int lane)
      : args_(args),
        maps_(maps),
        shared_(shared),
        warpgroup_(warpgroup),
        warp_(warp),
        lane_(lane),
        stage_(shared.stages + (warpgroup * 4 + warp) * Tiles::kStageBytes),
        old_(shared.old(warpgroup * 4 + warp)),
        policy_(drop_from_l2()) {}

  __device__ __forceinline__ void run() {
    const int step = item_step();
    WgradEntries next = WgradEntries::of(args_, first_item());
    for (int at = first_item(); at < args_.items; at += step) {
      const WgradEntries entries = next;
      next = WgradEntries::of(args_, at + step);
      const int slots = entries.slots(Tiles::kSlotTokens);
      if (slots > 0 || args_.adds == 0) {
        work(WgradItem(args_, at), slots);
      }
    }
    wait_bulk();
  }

 private:
  static constexpr int kN = Tiles::kColumns;
  using Tile = float[kN / 2];
  using HalfTile = float[kN / 4];

  /// Where box `box` of this warp lies: the first four are tiles of the warpgroup by halves of the columns.
  struct Place {
    int expert;  ///< within the strip
    int column;
  };
  __device__ __forceinline__ Place place(const WgradItem& item, int box) const {
    const int tile = box < 4 ? 2 * warpgroup_ + box / 2 : 4;
    const int half = box < 4 ? box % 2 : warpgroup_;
    return {item.segment * Tiles::kExperts + tile * 64 + warp_ * 16,
            item.chunk * Tiles::kColumns + half * Tiles::kBoxColumns};
  }
  __device__ __forceinline__ bool exists(Place at) const {
    return at.expert < args_.length && at.column < args_.hidden_size;
  }

  /// One lane. The staging room's last stores have been read by then.
  __device__ __forceinline__ void load_old(const WgradItem& item, const CUtensorMap* map) const {
    int bytes = 0;
#pragma unroll
    for (int box = 0; box < Tiles::kBoxes; ++box) {
      bytes += exists(place(item, box)) ? Tiles::kBoxBytes : 0;
    }
    barrier_arrive_expect(old_, bytes);
#pragma unroll
    for (int box = 0; box < Tiles::kBoxes; ++box) {
      const Place at = place(item, box);
      if (exists(at)) {
        const bool is_col = args_.is_col != 0;
        load_box(stage_ + box * Tiles::kBoxBytes, map, at.column, is_col ? item.strip : at.expert,
                 is_col ? at.expert : item.strip, old_);
      }
    }
  }

  __device__ __forceinline__ void work(const WgradItem& item, int slots) {
    const CUtensorMap* const map = item.is_out != 0 ? &maps_.w_out : &maps_.w_in;
    if (lane_ == 0) {
      wait_bulk_read();
      if (args_.adds != 0) {
        load_old(item, map);
      }
    }
    __syncwarp();
    Tile first;
    Tile second;
    HalfTile fifth;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      first[i] = 0.0F;
      second[i] = 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      fifth[i] = 0.0F;
    }
    multiply(slots, first, second, fifth);
    if (args_.adds != 0) {
      barrier_wait(old_, old_parity_);
      old_parity_ ^= 1U;
      stage_all<true>(first, second, fifth);
    } else {
      stage_all<false>(first, second, fifth);
    }
    fence_proxy_async();
    __syncwarp();
    if (lane_ == 0) {
#pragma unroll
      for (int box = 0; box < Tiles::kBoxes; ++box) {
        const Place at = place(item, box);
        if (exists(at)) {
          const bool is_col = args_.is_col != 0;
          store_box(map, at.column, is_col ? item.strip : at.expert, is_col ? at.expert : item.strip,
                    stage_ + box * Tiles::kBoxBytes, policy_);
        }
      }
      commit_bulk();
    }
  }

  /// Over the strip's tokens. A slot is released when the next one's products are under way.
  __device__ __forceinline__ void multiply(int slots, Tile& first, Tile& second, HalfTile& fifth) {
    std::uint32_t before = 0;
    for (int slot = 0; slot < slots; ++slot) {
      barrier_wait(shared_.full(ring_.slot), ring_.parity);
      fence_proxy_async();  // X was written by cp.async
      wgmma_fence();
#pragma unroll
      for (int group = 0; group < Tiles::kGroups; ++group) {
        const std::uint32_t q = shared_.q(ring_.slot, group);
        const std::uint32_t x = shared_.x(ring_.slot, group);
        const std::uint64_t b = matrix_descriptor(x, Tiles::kAtomBytes);
        const std::uint64_t a = matrix_descriptor(q + warpgroup_ * 2 * Tiles::kAtomBytes);
        Wgmma<kN, 1>::multiply(first, a, b);
        Wgmma<kN, 1>::multiply(second, a + (Tiles::kAtomBytes >> 4U), b);
        Wgmma<kN / 2, 1>::multiply(
            fifth, matrix_descriptor(q + 4 * Tiles::kAtomBytes),
            matrix_descriptor(x + warpgroup_ * (Tiles::kAtoms == 2 ? Tiles::kAtomBytes : 64),
                              Tiles::kAtomBytes));
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (slot > 0) {
        release(before);
      }
      before = ring_.slot;
      ring_.advance();
    }
    wgmma_wait<0>();
    keep_order(first);
    keep_order(second);
    keep_order(fifth);
    if (slots > 0) {
      release(before);
    }
  }

  __device__ __forceinline__ void release(std::uint32_t slot) const {
    __syncwarp();
    if (lane_ == 0) {
      barrier_arrive(shared_.empty(slot));
      barrier_arrive_at_other(shared_.empty(slot));
    }
  }

  template <bool kAdds>
  __device__ __forceinline__ void stage_all(const Tile& first, const Tile& second, const HalfTile& fifth) {
    constexpr int kHalf = kN / 4;
    stage_box<kAdds>(0, first);
    stage_box<kAdds>(1, first + kHalf);
    stage_box<kAdds>(2, second);
    stage_box<kAdds>(3, second + kHalf);
    stage_box<kAdds>(4, fifth);
  }

  /// 16 experts by kBoxColumns columns into their box, in the swizzle of the bulk copy engine.
  template <bool kAdds>
  __device__ __forceinline__ void stage_box(int box, const float* values) const {
    const std::uint32_t row = lane_ / 4;
    const std::uint32_t target = stage_ + box * Tiles::kBoxBytes + row * 128;
#pragma unroll
    for (int n = 0; n < kN / 2 / 8; ++n) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {  // 8 experts further
        const float* const v = values + 4 * n + 2 * lower;
        if constexpr (sizeof(Gradient) == 2) {
          const std::uint32_t address = target + lower * 1024 + ((n ^ row) * 16) + lane_ % 4 * 4;
          float2 sum = {v[0], v[1]};
          if constexpr (kAdds) {
            const std::uint32_t old = load_shared_word(address);
            sum.x += __uint_as_float(old << 16U);
            sum.y += __uint_as_float(old & 0xffff0000U);
          }
          store_shared_word(address, pack_bf16(sum.x, sum.y));
        } else {
          const std::uint32_t address =
              target + lower * 1024 + (((2 * n + lane_ % 4 / 2) ^ row) * 16) + lane_ % 2 * 8;
          float2 sum = {v[0], v[1]};
          if constexpr (kAdds) {
            const float2 old = load_shared_floats(address);
            sum.x += old.x;
            sum.y += old.y;
          }
          store_pair(address, __float_as_int(sum.x), __float_as_int(sum.y));
        }
      }
    }
  }

  const WgradArguments& args_;
  const WgradMaps& maps_;
  const WgradShared<Tiles>& shared_;
  int warpgroup_;
  int warp_;
  int lane_;
  std::uint32_t stage_;
  std::uint32_t old_;
  std::uint32_t old_parity_ = 0;
  std::uint64_t policy_;
  RingPosition<Tiles::kSlots> ring_;
};

}  // namespace moescope::cuda
