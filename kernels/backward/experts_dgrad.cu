// experts_dgrad over lists of pairs, token by token: of every pair z = x . w_in, u = dy . w_out, from these
// the gate's gradient u a, p = gate a and q = u gate act'(z), and dx_t = sum of q w_in. Each pair reads one
// row of W and one of V once, 16 bytes a lane; who reads what, and the order of all sums, is
// token_split.hpp's and token_sums.cuh's, as in the forward.
//
// Registers decide. X and dY lie in shared memory, each lane's own part, so that there is room for V's row,
// for W's, and for W's next one, which is asked for while the row at hand still waits for its score. Where
// few tokens leave a multiprocessor one block, L2 is asked for the rows after those, too.
#include "kernels/contract/backward.hpp"
#include "kernels/device/activation_slope.cuh"
#include "kernels/experts/token_pairs.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

struct DgradArgs : TokenPairsArgs {
  const void* dy = nullptr;         ///< [L, d]
  const float* saved = nullptr;     ///< [L*K] z; null: computed
  float* save = nullptr;            ///< [L*K] where z goes; null: nowhere
  float* gate_gradients = nullptr;  ///< [L*K]
  float* p = nullptr;               ///< [L*K]
  float* q = nullptr;               ///< [L*K]
};

/// The lane's part of a . b, with `a` as load_chunk(c) gives it, packed.
template <class Part, int kChunks, class LoadChunk>
__device__ __forceinline__ float dot_parts(const LoadChunk& load_chunk, const Part& b) {
  float dot = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    float left[Part::kElements];
    float right[Part::kElements];
    b.unpack(c, right);
    Part a;
    a.raw[c] = load_chunk(c);
    a.pin(c);
    a.unpack(c, left);
#pragma unroll
    for (int i = 0; i < Part::kElements; ++i) {
      dot = fmaf(left[i], right[i], dot);
    }
  }
  return dot;
}

/// Sums of two values over a worker's warps and lanes; every lane gets both. The halves of a warp take one
/// each: 7 exchanges instead of 10.
__device__ __forceinline__ float2 worker_sums(float first, float second, float* slots, unsigned& parity,
                                              int team_log2) {
  constexpr unsigned kAll = 0xffffffffU;
  const bool upper = threadIdx.x % 32 >= 16;
  float mine = upper ? second : first;
  mine += __shfl_xor_sync(kAll, upper ? first : second, 16);
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) {
    mine += __shfl_xor_sync(kAll, mine, offset);
  }
  if (team_log2 == 0) {
    return {__shfl_sync(kAll, mine, 0), __shfl_sync(kAll, mine, 16)};
  }
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* const set = slots + parity * 2 * TokenSplit::kWarpsPerBlock;
  parity ^= 1U;
  if (threadIdx.x % 16 == 0) {
    set[2 * warp + (upper ? 1 : 0)] = mine;
  }
  sync_team(team_log2);
  const float* const of_team = set + 2 * (warp >> team_log2 << team_log2);
  float2 sum = {0, 0};
#pragma unroll 1
  for (int member = 0; member < 1 << team_log2; ++member) {
    sum.x += of_team[2 * member];
    sum.y += of_team[2 * member + 1];
  }
  return sum;
}

/// Asks L2 for a worker's part of a row of W (lower lanes) and of V (upper lanes): loads cost registers until
/// they are there, this does not.
template <class Part, class T>
__device__ __forceinline__ void prefetch_rows(const T* w_row, const T* v_row, int member, int d) {
  constexpr int kLineElements = 128 / static_cast<int>(sizeof(T));
  constexpr int kLines = Part::kSlice / kLineElements;  // 4 a chunk: at most 16
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int line = lane % 16;
  const int col = member * Part::kSlice + line * kLineElements;
  if (line < kLines && col < d) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"((lane < 16 ? w_row : v_row) + col));
  }
}

/// kAhead: L2 is asked ahead; a block has the multiprocessor to itself.
template <class T, int kChunks, bool kFull, bool kAhead>
__global__ void __launch_bounds__(TokenSplit::kWarpsPerBlock * 32, kAhead ? 1 : 2)
    dgrad_kernel(const DgradArgs args) {
  using Part = RowPart<T, kChunks, kFull, false>;
  constexpr int kElements = Part::kElements;
  extern __shared__ float4 sums[];
  __shared__ float slots[4 * TokenSplit::kWarpsPerBlock];

  release_successor();
  announce_block(args);
  const int d = args.hidden_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int worker = warp >> args.team_log2;
  const int member = warp & ((1 << args.team_log2) - 1);
  const std::int64_t token = args.first_token() + (worker >> args.block_splits_log2);
  const unsigned block_of_token = blockIdx.x & ((1U << (args.cluster_log2 + args.clusters_log2)) - 1);
  const unsigned worker_of_block = static_cast<unsigned>(worker) & ((1U << args.block_splits_log2) - 1);
  const unsigned split = (block_of_token << args.block_splits_log2) + worker_of_block;
  const unsigned splits = args.splits();

  const int col = member * Part::kSlice + lane * kElements;
  const int valid = col < d ? min((d - col - 1) / Part::kStride + 1, kChunks) : 0;

  const bool has_pairs = token < args.num_tokens && split < args.top_k;
  // X and dY, of each lane what it reads itself: no other looks at it.
  __shared__ uint4 kept[TokenSplit::kWarpsPerBlock][2][kChunks][32];
  if (has_pairs) {
    Part x;
    Part dy;
    x.load(static_cast<const T*>(args.x) + token * d, col, valid);
    dy.load(static_cast<const T*>(args.dy) + token * d, col, valid);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      kept[warp][0][c][lane] = kFull || c < valid ? x.raw[c] : uint4{0, 0, 0, 0};
      kept[warp][1][c][lane] = kFull || c < valid ? dy.raw[c] : uint4{0, 0, 0, 0};
    }
  }
  wait_for_predecessor();

  float acc[kChunks][kElements] = {};
  if (has_pairs) {
    const T* const w_in = static_cast<const T*>(args.w_in);
    const T* const w_out = static_cast<const T*>(args.w_out);
    const std::int64_t base = token * args.top_k;
    const std::int32_t* const ids = args.expert_ids + base;
    // Past the last pair its rows are read again: no branch, and no traffic.
    const unsigned last = split + ((args.top_k - 1 - split) & ~(splits - 1));
    const auto row = [&](const T* matrix, std::int32_t id) {
      return matrix + static_cast<std::int64_t>(id) * d;
    };
    const std::int32_t first_id = __ldg(ids + split);
    std::int32_t next_id = __ldg(ids + min(split + splits, last));
    Part w;
    Part v;
    w.load(row(w_in, first_id), col, valid);
    v.load(row(w_out, first_id), col, valid);
    unsigned parity = 0;
#pragma unroll 1
    for (unsigned k = split; k <= last; k += splits) {
      const std::int32_t id_after = __ldg(ids + min(k + 2 * splits, last));
      const std::int64_t pair = base + k;
      const float gate = __ldg(args.gates + pair);
      const float saved = args.saved != nullptr ? __ldg(args.saved + pair) : 0.0F;
      if constexpr (kAhead) {
        prefetch_rows<Part>(row(w_in, id_after), row(w_out, id_after), member, d);
      }
      const float u_part = dot_parts<Part, kChunks>([&](int c) { return kept[warp][1][c][lane]; }, v);
      v.load(row(w_out, next_id), col, valid);
      Part w_next;
      w_next.load(row(w_in, next_id), col, valid);
      const float z_part = args.saved != nullptr
                               ? 0.0F
                               : dot_parts<Part, kChunks>([&](int c) { return kept[warp][0][c][lane]; }, w);
      const float2 both = worker_sums(z_part, u_part, slots, parity, args.team_log2);
      const float z = args.saved != nullptr ? saved : both.x;
      const float u = both.y;
      const ActivationValue a = activate_with_slope(args.activation, z);
      const float q = u * gate * a.slope;
      if (lane == 0 && member == 0) {
        args.gate_gradients[pair] = u * a.value;
        args.p[pair] = gate * a.value;
        args.q[pair] = q;
        if (args.save != nullptr) {
          args.save[pair] = z;
        }
      }
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float out[kElements];
        w.pin(c);
        w.unpack(c, out);
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          acc[c][i] = fmaf(q, out[i], acc[c][i]);
        }
      }
      w = w_next;
      next_id = id_after;
    }
  }

  const auto store = [&](auto&& put) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (kFull || c < valid) {
#pragma unroll
        for (int i = 0; i < kElements; i += 4) {
          put((col + c * Part::kStride + i) / 4,
              make_float4(acc[c][i], acc[c][i + 1], acc[c][i + 2], acc[c][i + 3]));
        }
      }
    }
  };
  if (splits > 1) {
    store([&](int at, float4 sum) { sums[worker * (d / 4) + at] = sum; });
    sum_workers(sums, args);
  } else if (token < args.num_tokens) {
    store([&](int at, float4 sum) { args.output.store(token * (d / 4) + at, sum); });
  }
}

template <class T, bool kFull, bool kAhead>
auto kernel_for(std::int64_t chunks) {
  return chunks == 1   ? dgrad_kernel<T, 1, kFull, kAhead>
         : chunks == 2 ? dgrad_kernel<T, 2, kFull, kAhead>
         : chunks == 3 ? dgrad_kernel<T, 3, kFull, kAhead>
                       : dgrad_kernel<T, 4, kFull, kAhead>;
}

struct ChooseKernel {
  bool bf16;

  template <bool kFull, bool kAhead>
  auto of(std::int64_t chunks) const {
    return bf16 ? kernel_for<__nv_bfloat16, kFull, kAhead>(chunks) : kernel_for<float, kFull, kAhead>(chunks);
  }
  auto operator()(const TokenSplit& rows, bool full) const {
    return full ? of<true, false>(rows.chunks) : of<false, false>(rows.chunks);
  }
  /// A token that has a cluster's blocks to itself: a tenth less time at L = 64, K = 512. With two blocks a
  /// multiprocessor asking L2 ahead makes it lose what others share: a tenth more at L = 4096 (measured).
  template <class Kernel>
  auto operator()(const TokenSplit& split, bool full, Kernel kernel) const {
    return full && split.cluster_blocks > 1 ? of<true, true>(split.chunks) : kernel;
  }
};

}  // namespace

std::int64_t experts_dgrad_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu) {
  return token_centric_workspace_bytes(shape, gpu);
}

void launch_experts_dgrad(const LayerShape& shape, const DgradInputs& inputs, const DeviceWeights& weights,
                          DeviceRouting routing, DevicePairGradients pairs, void* workspace, bool adds,
                          float* dx, cudaStream_t stream) {
  const StageRange range(Stage::kExpertsDgrad);
  DgradArgs args;
  args.x = inputs.hidden_states;
  args.w_in = weights.w_in;
  args.w_out = weights.w_out;
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.output = SumOutput({.y = dx, .addend = adds ? dx : nullptr});
  args.dy = inputs.dy;
  args.saved = inputs.saved;
  args.save = inputs.save;
  args.gate_gradients = pairs.gates;
  args.p = pairs.p;
  args.q = pairs.q;
  launch_token_split(shape, args, workspace, ChooseKernel{shape.dtype == Dtype::kBF16}, stream);
}

}  // namespace moescope::cuda
