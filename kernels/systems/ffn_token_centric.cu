// FFN experts token by token: every pair reads its expert's matrices, so that few tokens keep every
// multiprocessor at the weights (a grouped product of one tile has K f / 128 work items alone). Two kernels,
// a warp for each output: hidden = act(x gate^T) * (x up^T) of a pair, then y of a token over its pairs,
// experts ascending. Floor: 3 f d weights for each pair, of which repeated ones come from L2. Sums are taken
// in an order that depends on the shape alone.
#include <cuda_bf16.h>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/ffn_launch.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <class T>
struct FfnTokenArguments {
  const T* x;        ///< [L, d]
  const T* gate_up;  ///< [N, 2 f, d]
  const T* down;     ///< [N, d, f]
  const std::int32_t* expert_ids;
  const float* gates;
  T* hidden;  ///< [L*K, f]
  float* y;   ///< [L, d], or null: rounded
  T* rounded;
  const float* addend;  ///< [L, d] or null
  std::int32_t hidden_size;
  std::int32_t expert_size;
  std::int32_t top_k;
  std::int32_t blocks;  ///< of a pair, or of a token
};

template <class T>
inline constexpr int kElements = 16 / static_cast<int>(sizeof(T));

template <class T>
__device__ __forceinline__ void unpack(const uint4& raw, float (&out)[kElements<T>]) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    } else {
      out[i] = __uint_as_float(words[i]);
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 load16(const T* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}

template <class T>
__device__ __forceinline__ float dot(const uint4& a, const uint4& b, float sum) {
  float x[kElements<T>];
  float w[kElements<T>];
  unpack<T>(a, x);
  unpack<T>(b, w);
#pragma unroll
  for (int i = 0; i < kElements<T>; ++i) {
    sum = fmaf(x[i], w[i], sum);
  }
  return sum;
}

template <class T>
__device__ __forceinline__ void store_as(float value, T* to) {
  if constexpr (sizeof(T) == 2) {
    *to = __float2bfloat16_rn(value);
  } else {
    *to = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    ffn_token_up_kernel(const FfnTokenArguments<T> args, Activation activation) {
  release_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t pair = blockIdx.x / args.blocks;
  const int column =
      static_cast<int>(blockIdx.x % args.blocks) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (column >= args.expert_size) {
    return;
  }
  const std::int64_t d = args.hidden_size;
  const T* const x = args.x + pair / args.top_k * d;
  const T* const gate_row =
      args.gate_up + (std::int64_t{args.expert_ids[pair]} * 2 * args.expert_size + column) * d;
  const T* const up_row = gate_row + args.expert_size * d;
  float gate = 0;
  float up = 0;
#pragma unroll 4
  for (int k = lane * kElements<T>; k < d; k += kWarp * kElements<T>) {
    const uint4 g = load16(gate_row + k);
    const uint4 u = load16(up_row + k);
    const uint4 of_x = load16(x + k);
    gate = dot<T>(of_x, g, gate);
    up = dot<T>(of_x, u, up);
  }
  gate = warp_sum(gate);
  up = warp_sum(up);
  if (lane == 0) {
    store_as(activate(activation, gate) * up, args.hidden + pair * args.expert_size + column);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) ffn_token_down_kernel(const FfnTokenArguments<T> args) {
  release_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t token = blockIdx.x / args.blocks;
  const int column =
      static_cast<int>(blockIdx.x % args.blocks) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (column >= args.hidden_size) {
    return;
  }
  const std::int64_t f = args.expert_size;
  float sum = 0;
#pragma unroll 2
  for (int q = 0; q < args.top_k; ++q) {
    const std::int64_t pair = token * args.top_k + q;
    const T* const row = args.down + (std::int64_t{args.expert_ids[pair]} * args.hidden_size + column) * f;
    const T* const hidden = args.hidden + pair * f;
    float part = 0;
#pragma unroll 4
    for (int k = lane * kElements<T>; k < f; k += kWarp * kElements<T>) {
      // Written by the kernel before: not through the read-only path.
      part = dot<T>(*reinterpret_cast<const uint4*>(hidden + k), load16(row + k), part);
    }
    sum = fmaf(args.gates[pair], part, sum);
  }
  sum = warp_sum(sum);
  if (lane != 0) {
    return;
  }
  const std::int64_t at = token * args.hidden_size + column;
  sum += args.addend != nullptr ? args.addend[at] : 0.0F;
  if (args.rounded != nullptr) {
    store_as(sum, args.rounded + at);
  } else {
    args.y[at] = sum;
  }
}

template <class T>
void launch(const SystemShape& shape, FfnTokenArguments<T> args, cudaStream_t stream) {
  const auto grid = [](std::int64_t rows, std::int32_t blocks) {
    const std::int64_t all = rows * blocks;
    if (all >= std::int64_t{1} << 31U) {
      throw InvalidArgument("num_tokens * top_k", fmt::to_string(rows),
                            fmt::format("makes {} thread blocks, must be below 2^31", all));
    }
    return dim3(static_cast<unsigned>(all));
  };
  args.blocks = static_cast<std::int32_t>(ceil_div(shape.expert_size, std::int64_t{kWarps}));
  launch_dependent(ffn_token_up_kernel<T>,
                   {.grid = grid(shape.num_tokens * shape.top_k, args.blocks), .block = dim3(kThreads)},
                   stream, args, shape.activation);
  args.blocks = static_cast<std::int32_t>(ceil_div(shape.hidden_size, std::int64_t{kWarps}));
  launch_dependent(ffn_token_down_kernel<T>,
                   {.grid = grid(shape.num_tokens, args.blocks), .block = dim3(kThreads)}, stream, args);
}

template <class T>
FfnTokenArguments<T> arguments(const SystemShape& shape, const void* hidden_states,
                               const FfnMatrices& weights, DeviceRouting routing, void* hidden,
                               const ExpertOutput& output) {
  return {.x = static_cast<const T*>(hidden_states),
          .gate_up = static_cast<const T*>(weights.gate_up),
          .down = static_cast<const T*>(weights.down),
          .expert_ids = routing.expert_ids,
          .gates = routing.gates,
          .hidden = static_cast<T*>(hidden),
          .y = output.y,
          .rounded = static_cast<T*>(output.rounded),
          .addend = output.addend,
          .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
          .expert_size = static_cast<std::int32_t>(shape.expert_size),
          .top_k = static_cast<std::int32_t>(shape.top_k),
          .blocks = 1};
}

}  // namespace

void launch_ffn_token_centric(const SystemShape& shape, const void* hidden_states, const FfnMatrices& weights,
                              DeviceRouting routing, void* hidden, ExpertOutput output, cudaStream_t stream) {
  if (shape.dtype == Dtype::kBF16) {
    launch(shape, arguments<__nv_bfloat16>(shape, hidden_states, weights, routing, hidden, output), stream);
  } else {
    launch(shape, arguments<float>(shape, hidden_states, weights, routing, hidden, output), stream);
  }
}

}  // namespace moescope::cuda
