// experts_wgrad over lists of pairs, of the experts that have some: their rows of dW and dV are stored, or
// added to what is there, and no other row is asked for or written. Sums are those of experts_wgrad.cu.
//
// How many experts there are is known on the device alone. Warps take units in turn: a few neighbours of the
// list of touched experts by one slice of columns. A unit's pairs stand one after the other, whatever expert
// they are of, so rows of X or dY are asked for ahead across the borders between experts: with few tokens an
// expert has one pair or two. Warps of a block take the slices of the same experts, so that rows are stored
// whole.
#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/row_pieces.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kBlocksPerSm = 4;
constexpr int kPiecesAhead = 4;
constexpr int kMostExperts = 16;   ///< of a unit; with the end of the last one in a warp's lanes
constexpr int kUnitsOfAWarp = 2;  ///< at least, where experts suffice: their loads differ

struct TouchedArgs {
  const void* x;
  const void* dy;
  const float* p;
  const float* q;
  DevicePairsByExpert sorted;
  void* w_in;
  void* w_out;
  std::int32_t hidden_size;
  std::int32_t top_k;
  std::int32_t slices;  ///< of a row
};

template <class T, class Out, bool kAdds>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksPerSm) touched_wgrad_kernel(const TouchedArgs args) {
  constexpr int kElements = Piece<T>::kElements;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t warps = std::int64_t{gridDim.x} * kWarps;
  const std::int64_t count = *args.sorted.touched_count;
  const std::int32_t parts = 2 * args.slices;
  const auto experts_of_unit = static_cast<int>(
      min(max(count * parts / (warps * kUnitsOfAWarp), std::int64_t{1}), std::int64_t{kMostExperts}));
  const std::int64_t units = (count + experts_of_unit - 1) / experts_of_unit * parts;
  const std::int64_t d = args.hidden_size;

  for (std::int64_t unit = std::int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
       unit < units; unit += warps) {
    const std::int64_t first = unit / parts * experts_of_unit;
    const auto slice = static_cast<std::int32_t>(unit % parts);
    const bool is_w_in = slice < args.slices;
    const std::int32_t col = (is_w_in ? slice : slice - args.slices) * kWarp * kElements + lane * kElements;
    const bool inside = col < args.hidden_size;  // d is a multiple of 8
    const T* const source = static_cast<const T*>(is_w_in ? args.x : args.dy) + (inside ? col : 0);
    const float* const scales = is_w_in ? args.q : args.p;
    Out* const target = static_cast<Out*>(is_w_in ? args.w_in : args.w_out) + (inside ? col : 0);
    const auto experts = static_cast<int>(min(std::int64_t{experts_of_unit}, count - first));
    const std::int32_t bound = args.sorted.touched_offsets[first + min(lane, experts)];
    const std::int32_t expert = args.sorted.touched[first + min(lane, experts - 1)];
    const std::int32_t begin = __shfl_sync(kAllLanes, bound, 0);
    const std::int32_t end = __shfl_sync(kAllLanes, bound, experts);

    int at = 0;  // the unit's expert whose pairs are being added
    std::int32_t row_end = __shfl_sync(kAllLanes, bound, 1);
    float sum[kElements] = {};
    OldRow<Out, kElements> old;
    OldRow<Out, kElements> next_old;
    const auto load_old = [&](OldRow<Out, kElements>& row, int of) {
      const std::int64_t id = __shfl_sync(kAllLanes, expert, min(of, kWarp - 1));
      if (of < experts) {
        row.load(target + id * d);
      }
    };
    if constexpr (kAdds) {
      load_old(old, 0);
      load_old(next_old, 1);
    }
    for (std::int32_t batch = begin; batch < end; batch += kWarp) {
      const int pairs = min(kWarp, end - batch);
      std::int32_t token = 0;
      float scale = 0;
      if (lane < pairs) {
        const std::int32_t pair = args.sorted.pairs[batch + lane];
        token = pair / args.top_k;
        scale = scales[pair];
      }
      for (int k = 0; k < pairs; k += kPiecesAhead) {
        uint4 raw[kPiecesAhead];
#pragma unroll
        for (int j = 0; j < kPiecesAhead; ++j) {
          const std::int64_t t = __shfl_sync(kAllLanes, token, k + j);
          if (k + j < pairs) {
            raw[j] = __ldg(reinterpret_cast<const uint4*>(source + t * d));
          }
        }
#pragma unroll
        for (int j = 0; j < kPiecesAhead; ++j) {
          const float s = __shfl_sync(kAllLanes, scale, k + j);
          if (k + j < pairs) {
            Piece<T>::add(raw[j], s, sum);
            if (batch + k + j + 1 == row_end) {
              const std::int64_t id = __shfl_sync(kAllLanes, expert, at);
              if constexpr (kAdds) {
                old.add_to(sum);
              }
              if (inside) {
                store_row(target + id * d, sum);
              }
              ++at;
              row_end = __shfl_sync(kAllLanes, bound, at + 1);
              if constexpr (kAdds) {
                old = next_old;
                load_old(next_old, at + 1);
              }
#pragma unroll
              for (int i = 0; i < kElements; ++i) {
                sum[i] = 0;
              }
            }
          }
        }
      }
    }
  }
}

template <class T, class Out, bool kAdds>
void launch_kind(const LayerShape& shape, TouchedArgs args, cudaStream_t stream) {
  constexpr std::int64_t kColumns = std::int64_t{kWarp} * Piece<T>::kElements;
  args.slices = static_cast<std::int32_t>((shape.hidden_size + kColumns - 1) / kColumns);
  const std::int64_t most = std::min(shape.num_experts(), shape.num_pairs()) * 2 * args.slices;
  const std::int64_t blocks =
      std::min<std::int64_t>(current_gpu().num_sms * kBlocksPerSm, (most + kWarps - 1) / kWarps);
  touched_wgrad_kernel<T, Out, kAdds><<<static_cast<unsigned>(blocks), kWarps * kWarp, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

template <class T, class Out>
void launch(const LayerShape& shape, const TouchedArgs& args, bool adds, cudaStream_t stream) {
  adds ? launch_kind<T, Out, true>(shape, args, stream) : launch_kind<T, Out, false>(shape, args, stream);
}

}  // namespace

void launch_touched_experts_wgrad(const LayerShape& shape, const void* hidden_states, const void* dy,
                                  DevicePairGradients pairs, DevicePairsByExpert sorted, WgradOutput output,
                                  cudaStream_t stream) {
  const StageRange range(Stage::kExpertsWgrad);
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  if (sorted.touched_offsets == nullptr) {
    throw InternalError("the rows of touched experts alone need to know where their pairs begin");
  }
  const TouchedArgs args{.x = hidden_states,
                         .dy = dy,
                         .p = pairs.p,
                         .q = pairs.q,
                         .sorted = sorted,
                         .w_in = output.w_in,
                         .w_out = output.w_out,
                         .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
                         .top_k = static_cast<std::int32_t>(shape.top_k),
                         .slices = 0};
  const bool adds = output.form == GradientForm::kAdded;
  const bool bf16 = shape.dtype == Dtype::kBF16;
  if (output.dtype == Dtype::kF32) {
    bf16 ? launch<__nv_bfloat16, float>(shape, args, adds, stream)
         : launch<float, float>(shape, args, adds, stream);
  } else if (bf16) {
    launch<__nv_bfloat16, __nv_bfloat16>(shape, args, adds, stream);
  } else {
    launch<float, __nv_bfloat16>(shape, args, adds, stream);
  }
}

}  // namespace moescope::cuda
