// The last kernel of FFN experts under a rule for tokens: how many results a token adds is known on the
// device alone. A block per token lists its rows, experts ascending, then every thread adds its columns of
// them. Floor: results of the pairs that run read once, Y written once.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/contract/ffn_launch.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/experts/token_sums.cuh"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxRows = static_cast<int>(kMaxFfnExperts);

struct RuledSumArguments {
  const void* results;
  FfnRuledRows rows;
  const float* gates;  ///< of the router's pairs
  SumOutput output;
  std::int32_t hidden_size;
  std::int32_t places;  ///< of a token in pair_rows or token_rows
};

template <class T>
__device__ __forceinline__ float4 load4(const T* from) {
  if constexpr (sizeof(T) == 2) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    return {__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000U), __uint_as_float(raw.y << 16),
            __uint_as_float(raw.y & 0xffff0000U)};
  } else {
    return *reinterpret_cast<const float4*>(from);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) ruled_sums_kernel(const RuledSumArguments args) {
  __shared__ std::int32_t row_of[kMaxRows];
  __shared__ float gate_of[kMaxRows];
  __shared__ int num_rows;
  release_successor();
  wait_for_predecessor();
  const std::int64_t token = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  if (thread < kWarp) {
    const bool of_pairs = args.rows.pair_rows != nullptr;
    const std::int64_t first = token * args.places;
    const std::int32_t* const places = (of_pairs ? args.rows.pair_rows : args.rows.token_rows) + first;
    int listed = 0;
    for (int begin = 0; begin < args.places; begin += kWarp) {
      const int place = begin + lane;
      const std::int32_t row = place < args.places ? places[place] : -1;
      const unsigned mask = __ballot_sync(kAllLanes, row >= 0);
      if (row >= 0) {
        const int at = listed + __popc(mask & ((1U << lane) - 1));
        row_of[at] = row;
        gate_of[at] = of_pairs ? args.gates[first + place] : args.rows.row_gates[row];
      }
      listed += __popc(mask);
    }
    if (lane == 0) {
      num_rows = listed;
    }
  }
  __syncthreads();
  const int columns = args.hidden_size / 4;
  for (int column = thread; column < columns; column += kThreads) {
    float4 sum{};
#pragma unroll 8
    for (int i = 0; i < num_rows; ++i) {
      const float4 result = load4(static_cast<const T*>(args.results) +
                                  std::int64_t{row_of[i]} * args.hidden_size + 4 * column);
      const float gate = gate_of[i];
      sum = {fmaf(gate, result.x, sum.x), fmaf(gate, result.y, sum.y), fmaf(gate, result.z, sum.z),
             fmaf(gate, result.w, sum.w)};
    }
    args.output.store(token * columns + column, sum);
  }
}

}  // namespace

void launch_ruled_sums(const SystemShape& shape, const void* results, const FfnRuledRows& rows,
                       DeviceRouting routing, ExpertOutput output, cudaStream_t stream) {
  const RuledSumArguments args{
      .results = results,
      .rows = rows,
      .gates = routing.gates,
      .output = SumOutput(output),
      .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
      .places = static_cast<std::int32_t>(rows.pair_rows != nullptr ? shape.top_k : shape.num_experts)};
  launch_dependent(shape.dtype == Dtype::kBF16 ? ruled_sums_kernel<__nv_bfloat16> : ruled_sums_kernel<float>,
                   {.grid = dim3(static_cast<unsigned>(shape.num_tokens)), .block = dim3(kThreads)}, stream,
                   args);
}

}  // namespace moescope::cuda
