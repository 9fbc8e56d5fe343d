#pragma once

#include "kernels/backward/strips_dgrad_slopes.cuh"
#include "kernels/contract/strips_backward.hpp"
#include "kernels/experts/experts_staircase_consumer.cuh"

/// Consumers of the backward's two passes in the staircase kernel's frame, for 64 tokens each.
namespace moescope::cuda {

struct StripsDgradArguments {
  StaircaseArguments strips;  ///< hidden_states: X with kScores, dY with kDgrad
  uint4* z = nullptr;
  __nv_bfloat16* p = nullptr;
  __nv_bfloat16* q = nullptr;
  __nv_bfloat16* h = nullptr;
  float* h_sums = nullptr;
  float* gate_sums = nullptr;
  std::int32_t pitch = 0;
};

/// Place of a thread's first 8 values of z: a work item's 64 tokens by 16 experts lie as the accumulators of
/// one warpgroup, 16 bytes a thread.
template <class Tiles>
__device__ __forceinline__ uint4* z_of_item(const StripsDgradArguments& args, int work, int warpgroup,
                                            int warp, int lane) {
  constexpr std::int64_t kPerWarpgroup = Tiles::kExperts / 16 * 128;
  return args.z + (std::int64_t{work} * Tiles::kWarpgroups + warpgroup) * kPerWarpgroup + warp * 32 + lane;
}

/// Keeps z, which is rounded to bf16 here alone: the forward goes on with its accumulators.
template <class Tiles, class Scores>
__device__ __forceinline__ void keep_scores(uint4* z, const Scores& s) {
  constexpr int kSteps = Tiles::kN / 16;
#pragma unroll
  for (int part = 0; part < Tiles::kParts; ++part) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const float* const v = s[part] + 8 * k;
      z[(part * kSteps + k) * 128] = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                                pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
  }
}

/// z = X W^T, kept.
template <class Tiles>
class StripsScoresConsumer : public StaircaseConsumer<Tiles, Activation::kSilu> {
  using Base = StaircaseConsumer<Tiles, Activation::kSilu>;

 public:
  __device__ __forceinline__ StripsScoresConsumer(const StripsDgradArguments& args,
                                                  const StaircaseShared<Tiles>& shared, int warpgroup,
                                                  int warp, int lane)
      : Base(args.strips, shared, warpgroup, warp, lane), args_(args) {}

  __device__ __forceinline__ void run() {
    this->each_item(
        [&](const StaircaseItem<Tiles>& item, int /*count*/, int chunks) {
          typename Base::Scores s;
          this->score(s, chunks);
          keep_scores<Tiles>(z_of_item<Tiles>(args_, item.work, this->warpgroup_, this->warp_, this->lane_),
                             s);
        },
        [&](int chunks) { this->pass(chunks); });
  }

 private:
  const StripsDgradArguments& args_;
};

/// The forward, with z kept between its products.
template <class Tiles, Activation kActivation>
class StripsForwardConsumer : public StaircaseConsumer<Tiles, kActivation> {
  using Base = StaircaseConsumer<Tiles, kActivation>;

 public:
  __device__ __forceinline__ StripsForwardConsumer(const StripsDgradArguments& args,
                                                   const StaircaseShared<Tiles>& shared, int warpgroup,
                                                   int warp, int lane)
      : Base(args.strips, shared, warpgroup, warp, lane), args_(args) {}

  __device__ __forceinline__ void run() {
    this->each_item(
        [&](const StaircaseItem<Tiles>& item, int count, int chunks) {
          typename Base::Weights p;
          {
            typename Base::Scores s;
            this->score(s, chunks);
            keep_scores<Tiles>(z_of_item<Tiles>(args_, item.work, this->warpgroup_, this->warp_, this->lane_),
                               s);
            this->weigh_all(item, s, p);
          }
          this->combine(item, count, p, chunks);
        },
        [&](int chunks) {
          this->pass(chunks);
          this->skip(Tiles::kLogSlots + chunks * Tiles::kParts);
        });
  }

 private:
  const StripsDgradArguments& args_;
};

/// u = dY V^T; p, q and h of every pair from it and z; sums += Q W.
template <class Tiles, Activation kActivation>
class StripsDgradConsumer : public StaircaseConsumer<Tiles, kActivation> {
  using Base = StaircaseConsumer<Tiles, kActivation>;
  using Base::kSteps;
  using Item = StaircaseItem<Tiles>;
  using Weights = typename Base::Weights;

 public:
  __device__ __forceinline__ StripsDgradConsumer(const StripsDgradArguments& args,
                                                 const StaircaseShared<Tiles>& shared, int warpgroup,
                                                 int warp, int lane)
      : Base(args.strips, shared, warpgroup, warp, lane), args_(args) {}

  __device__ __forceinline__ void run() {
    this->each_item([&](const Item& item, int count, int chunks) { work(item, count, chunks); },
                    [&](int chunks) {
                      this->pass(chunks);
                      this->skip(Tiles::kLogSlots + chunks * Tiles::kParts);
                    });
  }

 private:
  static constexpr int kAhead = 3;  ///< loads of z under way

  __device__ __forceinline__ void work(const Item& item, int count, int chunks) {
    Weights q;
    {
      typename Base::Scores u;
      this->score(u, chunks);
      differentiate(item, count, u, q);
    }
    combine(item, count, q, chunks);
  }

  __device__ __forceinline__ int first_row() const { return this->warpgroup_ * 64 + this->warp_ * 16; }
  __device__ __forceinline__ std::uint32_t stage() const {
    return this->shared_.stages + (this->warpgroup_ * 4 + this->warp_) * Tiles::kStageBytes;
  }

  /// Of 16 rows of 128 bytes in the warp's staging room this lane's 16 bytes of rows lane / 8 + 4 i, to
  /// `target` + i `stride` bf16 values.
  __device__ __forceinline__ void store_rows(__nv_bfloat16* target, std::int64_t stride, int count,
                                             bool wanted) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = this->lane_ / 8 + 4 * i;
      const uint4 values = load_shared(stage() + row * Tiles::kStageStride + this->lane_ % 8 * 16);
      if (wanted && first_row() + row < count) {
        *reinterpret_cast<uint4*>(target + i * stride) = values;
      }
    }
    __syncwarp();  // read, before the next rows come
  }

  __device__ __forceinline__ void differentiate(const Item& item, int count, const typename Base::Scores& u,
                                                Weights& q) {
    const int row = first_row() + this->lane_ / 4;
    const StaircaseToken upper = Base::token_of(item, row);
    const StaircaseToken lower = Base::token_of(item, row + 8);
    const int group = first_row() / Tiles::kLogTokens;
    const uint4* const z = z_of_item<Tiles>(args_, item.work, this->warpgroup_, this->warp_, this->lane_);
    const int piece = this->lane_ % 8;
    const std::int64_t stride = std::int64_t{args_.pitch} * 4;
    const std::int64_t at =
        (std::int64_t{item.entry} + first_row() + this->lane_ / 8) * args_.pitch + item.first;
    // Rows of 32 experts' p, then 32 experts' h; and of 64 experts' q.
    __nv_bfloat16* const ph = (piece < 4 ? args_.p : args_.h) + at + piece % 4 * 8;
    __nv_bfloat16* const out_q = args_.q + at + piece * 8;
    const std::uint32_t target = stage() + (this->lane_ % 16) * Tiles::kStageStride + this->lane_ / 16 * 16;
    if constexpr (Tiles::kSums == StaircaseSums::kFixedPoint) {
      wait_bulk_read();  // the staging rows' last sums
    }
    __syncwarp();
    uint4 ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ahead[i] = z[i * 128];
    }
    float h_upper = 0;
    float h_lower = 0;
    float gate_upper = 0;
    float gate_lower = 0;
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      this->skip(group);
      barrier_wait(this->shared_.full(this->ring_.slot), this->ring_.parity);
      const std::byte* const logs = this->shared_.base + this->ring_.slot * Tiles::kSlotBytes +
                                    row % Tiles::kLogTokens * Tiles::kLogStride + this->lane_ % 4 * 8;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        constexpr int kLoads = Tiles::kParts * kSteps;
        const int load = part * kSteps + k;
        const uint4 packed = ahead[load % kAhead];
        if (load + kAhead < kLoads) {
          ahead[load % kAhead] = z[(load + kAhead) * 128];
        }
        std::uint32_t p[4];
        std::uint32_t h[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // blocks of 8 columns
          const int n = 2 * k + half;
          const int column = part * Tiles::kN + n * 8 + this->lane_ % 4 * 2;
          const float2 high = *reinterpret_cast<const float2*>(logs + n * 32);
          const float2 low = *reinterpret_cast<const float2*>(logs + 8 * Tiles::kLogStride + n * 32);
          const std::uint32_t z_high = half == 0 ? packed.x : packed.z;
          const std::uint32_t z_low = half == 0 ? packed.y : packed.w;
          const float* const value = u[part] + 4 * n;
          const auto pair = [&](const StaircaseToken& token, float2 logs_of, std::uint32_t zs,
                                const float* us, int place, float& sum, float& gate_sum) {
            const PairGradients a =
                pair_gradients<kActivation>(token, logs_of.x, column, __uint_as_float(zs << 16U), us[0]);
            const PairGradients b = pair_gradients<kActivation>(token, logs_of.y, column + 1,
                                                                __uint_as_float(zs & 0xffff0000U), us[1]);
            p[place] = pack_bf16(a.p, b.p);
            q[part][k][place] = pack_bf16(a.q, b.q);
            h[place] = pack_bf16(a.h, b.h);
            sum += a.h + b.h;
            gate_sum += a.gate + b.gate;
          };
          pair(upper, high, z_high, value, 2 * half, h_upper, gate_upper);
          pair(lower, low, z_low, value + 2, 2 * half + 1, h_lower, gate_lower);
        }
        store_matrices(target + k % 2 * 32, p[0], p[1], p[2], p[3]);
        store_matrices(target + 64 + k % 2 * 32, h[0], h[1], h[2], h[3]);
        if (k % 2 == 1) {
          store_rows(ph + part * Tiles::kN + (k - 1) * 16, stride, count, true);
        }
      }
      // As in the forward: every lane arrives for what it has read, the copy engine fills the slot next.
      fence_proxy_async();
      barrier_arrive(this->shared_.empty(this->ring_.slot));
      this->ring_.advance();
      this->skip(Tiles::kLogGroups - 1 - group);
#pragma unroll
      for (int k = 0; k < kSteps; k += 4) {
        constexpr int kMost = 4;
        const int steps = kSteps - k < kMost ? kSteps - k : kMost;
#pragma unroll
        for (int i = 0; i < steps; ++i) {
          store_matrices(target + i * 32, q[part][k + i][0], q[part][k + i][1], q[part][k + i][2],
                         q[part][k + i][3]);
        }
        store_rows(out_q + part * Tiles::kN + k * 16, stride, count, piece < 2 * steps);
      }
    }
    store_sums(args_.h_sums, item, count, h_upper, h_lower);
    store_sums(args_.gate_sums, item, count, gate_upper, gate_lower);
  }

  /// Sums over the segment's experts: of four lanes, in a fixed order.
  __device__ __forceinline__ void store_sums(float* sums, const Item& item, int count, float upper,
                                             float lower) const {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      upper += __shfl_xor_sync(~0U, upper, step);
      lower += __shfl_xor_sync(~0U, lower, step);
    }
    const int row = first_row() + this->lane_ / 4;
    float* const target =
        sums + (std::int64_t{item.entry} + row) * args_.strips.segments + item.first / Tiles::kExperts;
    if (this->lane_ % 4 == 0 && row < count) {
      *target = upper;
    }
    if (this->lane_ % 4 == 0 && row + 8 < count) {
      target[std::int64_t{8} * args_.strips.segments] = lower;
    }
  }

  /// The forward's combine with sums scaled as they are added: q itself goes to dW as it is.
  __device__ __forceinline__ void combine(const Item& item, int count, const Weights& q, int chunks) {
    const typename Base::SumRows sums(item, count, args_.strips.hidden_size, first_row(), this->lane_);
    const float upper = item.scale[first_row() + this->lane_ / 4];
    const float lower = item.scale[first_row() + this->lane_ / 4 + 8];
    const auto add = [&](int chunk, float(&y)[Tiles::kChunk / 2]) {
#pragma unroll
      for (int n = 0; n < Tiles::kChunk / 8; ++n) {
        y[4 * n] *= upper;
        y[4 * n + 1] *= upper;
        y[4 * n + 2] *= lower;
        y[4 * n + 3] *= lower;
      }
      this->add(sums, chunk * Tiles::kChunk, y);
    };
    float even[Tiles::kChunk / 2];
    float odd[Tiles::kChunk / 2];
    RingPosition<Tiles::kSlots> done = this->ring_;
    this->multiply(q, even);
    int chunk = 0;
    for (; chunk + 2 < chunks; chunk += 2) {
      this->multiply(q, odd);
      this->template retire<Tiles::kParts>(even, done);
      add(chunk, even);
      this->multiply(q, even);
      this->template retire<Tiles::kParts>(odd, done);
      add(chunk + 1, odd);
    }
    if (chunk + 1 < chunks) {
      this->multiply(q, odd);
      this->template retire<Tiles::kParts>(even, done);
      add(chunk, even);
      this->template retire<0>(odd, done);
      add(chunk + 1, odd);
    } else {
      this->template retire<0>(even, done);
      add(chunk, even);
    }
  }

  const StripsDgradArguments& args_;
};

}  // namespace moescope::cuda
