// experts_wgrad over lists of pairs: dW_i = sum of q x_t, dV_i = sum of p dy_t over the pairs of expert i,
// tokens ascending. A warp owns 16 bytes a lane of the rows of several experts: it adds an expert's pairs in
// order, in registers, and stores once. No atomics; rows without pairs are stored as zero.
//
// X and dY stay in L2: each pair asks 2 d of it, and dW and dV are written once. Warps of a block take
// neighbouring experts of one slice of columns: these share a grid row, hence tokens, and find each other's
// pieces of X in L1. Blocks go over the slices of the same experts first, so that rows are stored whole.
#include "core/base/error.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/row_pieces.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kBlocksPerSm = 4;  // 64 registers a thread
constexpr int kPiecesAhead = 4;  // of rows, under way at once: more warps do better than more pieces

struct WgradArgs {
  const void* x;
  const void* dy;
  const float* p;
  const float* q;
  DevicePairsByExpert sorted;
  void* w_in;
  void* w_out;
  std::int64_t num_experts;
  std::int32_t hidden_size;
  std::int32_t top_k;
  std::int32_t slices;  ///< of a row
};

/// kExperts: of one warp, one after the other.
template <class T, class Out, int kExperts>
__global__ void __launch_bounds__(kWarps * 32, kBlocksPerSm) wgrad_kernel(const WgradArgs args) {
  constexpr int kElements = Piece<T>::kElements;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const auto slice = static_cast<std::int32_t>(blockIdx.x % (2U * static_cast<unsigned>(args.slices)));
  const std::int64_t block = blockIdx.x / (2U * static_cast<unsigned>(args.slices));
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
  const std::int32_t bound = args.sorted.offsets[first + min(lane, experts)];

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
        const std::int32_t pair = args.sorted.pairs[batch + lane];
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
  const std::int64_t blocks =
      2 * args.slices * ((shape.num_experts() + kWarps * kExperts - 1) / (kWarps * kExperts));
  wgrad_kernel<T, Out, kExperts><<<static_cast<unsigned>(blocks), kWarps * 32, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void launch_experts_wgrad(const LayerShape& shape, const void* hidden_states, const void* dy,
                          DevicePairGradients pairs, DevicePairsByExpert sorted, WgradOutput output,
                          cudaStream_t stream) {
  if (output.form != GradientForm::kStored) {
    launch_touched_experts_wgrad(shape, hidden_states, dy, pairs, sorted, output, stream);
    return;
  }
  const StageRange range(Stage::kExpertsWgrad);
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const WgradArgs args{.x = hidden_states,
                       .dy = dy,
                       .p = pairs.p,
                       .q = pairs.q,
                       .sorted = sorted,
                       .w_in = output.w_in,
                       .w_out = output.w_out,
                       .num_experts = shape.num_experts(),
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
