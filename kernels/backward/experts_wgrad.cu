// experts_wgrad over lists of pairs: dW_i = sum of q x_t, dV_i = sum of p dy_t over the pairs of expert i,
// tokens ascending. A warp owns 16 bytes a lane of the rows of several experts: it adds an expert's pairs in
// order, in registers, and stores once. No atomics; rows without pairs are stored as zero.
//
// X and dY stay in L2: each pair asks 2 d of it, and dW and dV are written once. Warps of a block take
// neighbouring experts of one slice of columns: these share a grid row, hence tokens, and find each other's
// pieces of X in L1.
#include <cuda_bf16.h>

#include "core/base/error.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kWarps = 8;
constexpr int kPiecesAhead = 8;  // pieces of rows under way at once

struct WgradArgs {
  const void* x;
  const void* dy;
  const float* p;
  const float* q;
  const std::int32_t* offsets;
  const std::int32_t* pairs;
  void* w_in;
  void* w_out;
  std::int64_t num_experts;
  std::int64_t blocks_per_slice;  ///< of one matrix's slice of columns
  std::int32_t hidden_size;
  std::int32_t top_k;
  std::int32_t slices;  ///< of a row
};

template <class T>
struct Piece {
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));

  static __device__ __forceinline__ void add(const uint4& raw, float scale, float (&sum)[kElements]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        sum[2 * i] = fmaf(scale, __uint_as_float(words[i] << 16), sum[2 * i]);
        sum[2 * i + 1] = fmaf(scale, __uint_as_float(words[i] & 0xffff0000U), sum[2 * i + 1]);
      } else {
        sum[i] = fmaf(scale, __uint_as_float(words[i]), sum[i]);
      }
    }
  }
};

/// Stores kCount values at `to`, 16 bytes at a time (8 of four values in bf16), past L1 and L2's favour.
template <class Out, int kCount>
__device__ __forceinline__ void store_row(Out* to, const float (&sum)[kCount]) {
  if constexpr (sizeof(Out) == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      __stcs(reinterpret_cast<float4*>(to + i), make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
  } else {
    unsigned words[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
      words[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    if constexpr (kCount == 8) {
      __stcs(reinterpret_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
    } else {
      __stcs(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
    }
  }
}

/// kExperts: of one warp, one after the other.
template <class T, class Out, int kExperts>
__global__ void __launch_bounds__(kWarps * 32) wgrad_kernel(const WgradArgs args) {
  constexpr int kElements = Piece<T>::kElements;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const auto slice = static_cast<std::int32_t>(blockIdx.x / args.blocks_per_slice);
  const std::int64_t block = blockIdx.x % args.blocks_per_slice;
  const std::int64_t first = (block * kWarps + warp) * kExperts;
  if (first >= args.num_experts) {
    return;
  }
  const bool is_w_in = slice < args.slices;
  const std::int32_t col = (is_w_in ? slice : slice - args.slices) * 32 * kElements + lane * kElements;
  const bool inside = col < args.hidden_size;  // d is a multiple of 8
  const std::int64_t d = args.hidden_size;
  const T* const source = static_cast<const T*>(is_w_in ? args.x : args.dy) + (inside ? col : 0);
  const float* const scales = is_w_in ? args.q : args.p;
  Out* const target = static_cast<Out*>(is_w_in ? args.w_in : args.w_out) + col;
  const auto experts = static_cast<int>(min(std::int64_t{kExperts}, args.num_experts - first));
  const std::int32_t bound = args.offsets[first + min(lane, experts)];

  for (int e = 0; e < experts; ++e) {
    const std::int32_t begin = __shfl_sync(kAllLanes, bound, e);
    const std::int32_t end = __shfl_sync(kAllLanes, bound, e + 1);
    float sum[kElements] = {};
    for (std::int32_t batch = begin; batch < end; batch += 32) {
      const int count = min(32, end - batch);
      // Lanes without a pair bring a scale of zero for token 0: finite times zero.
      std::int32_t token = 0;
      float scale = 0;
      if (lane < count) {
        const std::int32_t pair = args.pairs[batch + lane];
        token = pair / args.top_k;
        scale = scales[pair];
      }
      for (int k = 0; k < count; k += kPiecesAhead) {
        uint4 raw[kPiecesAhead];
#pragma unroll
        for (int j = 0; j < kPiecesAhead; ++j) {
          const std::int64_t t = __shfl_sync(kAllLanes, token, k + j);
          if (k + j < count) {
            raw[j] = __ldg(reinterpret_cast<const uint4*>(source + t * d));
          }
        }
#pragma unroll
        for (int j = 0; j < kPiecesAhead; ++j) {
          const float s = __shfl_sync(kAllLanes, scale, k + j);
          if (k + j < count) {
            Piece<T>::add(raw[j], s, sum);
          }
        }
      }
    }
    if (inside) {
      store_row(target + (first + e) * d, sum);
    }
  }
}

template <class T, class Out>
void launch(const LayerShape& shape, WgradArgs args, cudaStream_t stream) {
  constexpr int kExperts = 16;
  constexpr std::int64_t kColumns = std::int64_t{32} * Piece<T>::kElements;
  args.slices = static_cast<std::int32_t>((shape.hidden_size + kColumns - 1) / kColumns);
  args.blocks_per_slice = (shape.num_experts() + kWarps * kExperts - 1) / (kWarps * kExperts);
  const std::int64_t blocks = 2 * args.slices * args.blocks_per_slice;
  wgrad_kernel<T, Out, kExperts><<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void launch_experts_wgrad(const LayerShape& shape, const void* hidden_states, const void* dy,
                          DevicePairGradients pairs, DevicePairsByExpert sorted, WgradOutput output,
                          cudaStream_t stream) {
  const StageRange range(Stage::kExpertsWgrad);
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const WgradArgs args{.x = hidden_states,
                       .dy = dy,
                       .p = pairs.p,
                       .q = pairs.q,
                       .offsets = sorted.offsets,
                       .pairs = sorted.pairs,
                       .w_in = output.w_in,
                       .w_out = output.w_out,
                       .num_experts = shape.num_experts(),
                       .blocks_per_slice = 0,
                       .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
                       .top_k = static_cast<std::int32_t>(shape.top_k),
                       .slices = 0};
  const bool bf16 = shape.dtype == Dtype::kBF16;
  if (output.dtype == Dtype::kF32) {
    bf16 ? launch<__nv_bfloat16, float>(shape, args, stream) : launch<float, float>(shape, args, stream);
  } else if (bf16) {
    launch<__nv_bfloat16, __nv_bfloat16>(shape, args, stream);
  } else {
    launch<float, __nv_bfloat16>(shape, args, stream);
  }
}

}  // namespace moescope::cuda
