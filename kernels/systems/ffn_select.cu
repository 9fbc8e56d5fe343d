// Stage router_select of the FFN-expert systems: per token, by one warp, the K largest of N probabilities,
// which its lanes hold in registers (element 32 m + lane in x[m]). The threshold is bisected on the floats'
// bits; it ends as soon as exactly K are left, or at the K-th largest itself, where ties go to the lower ids.
#include <cstddef>
#include <utility>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/router_select_token.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

struct FfnSelectArguments {
  const float* logits;
  DeviceRouting routing;
  unsigned long long* bad_logit;
  std::int64_t num_tokens;
  std::int32_t num_experts;
  std::int32_t top_k;
  bool softmax;
};

/// Which of a token's experts are taken: bit m of this lane's word is element 32 m + lane.
template <int kPerLane>
__device__ __forceinline__ unsigned take_largest(const unsigned (&key)[kPerLane], int count, int top_k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto count_from = [&](unsigned threshold) {
    unsigned own = 0;
#pragma unroll
    for (int m = 0; m < kPerLane; ++m) {
      own += key[m] >= threshold ? 1U : 0U;
    }
    return static_cast<int>(__reduce_add_sync(kAllLanes, own));
  };
  unsigned least = ~0U;
  unsigned largest = 0;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    least = m * kWarp + lane < count ? min(least, key[m]) : least;
    largest = max(largest, key[m]);
  }
  // At least K are >= low, fewer than K are >= high. Keys of places beyond the count are 0, below all others.
  unsigned low = __reduce_min_sync(kAllLanes, least);
  unsigned high = __reduce_max_sync(kAllLanes, largest) + 1;
  int from_low = count;
  while (high - low > 1 && from_low != top_k) {
    const unsigned middle = low + (high - low) / 2;
    const int from_middle = count_from(middle);
    if (from_middle >= top_k) {
      low = middle;
      from_low = from_middle;
    } else {
      high = middle;
    }
  }
  int ties_left = from_low == top_k ? count : top_k - count_from(low + 1);
  unsigned taken = 0;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    const bool ties = key[m] == low;
    const unsigned all_ties = __ballot_sync(kAllLanes, ties);
    const bool in_time = __popc(all_ties & ((1U << lane) - 1)) < ties_left;
    taken |= key[m] > low || (ties && in_time) ? 1U << m : 0U;
    ties_left -= __popc(all_ties);
  }
  return taken;
}

template <int kPerLane>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) ffn_select_kernel(const FfnSelectArguments args) {
  release_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t token =
      std::int64_t{blockIdx.x} * kWarpsPerBlock + static_cast<int>(threadIdx.x) / kWarp;
  if (token >= args.num_tokens) {
    return;
  }
  const float* const logits = args.logits + token * args.num_experts;
  std::int32_t* const ids = args.routing.expert_ids + token * args.top_k;
  float* const gates = args.routing.gates + token * args.top_k;
  float p[kPerLane];
  const bool finite = load_values(logits, args.num_experts, p);
  if (!__all_sync(kAllLanes, finite)) {
    find_bad(logits, args.num_experts, [&](int i) {
      atomicMin(args.bad_logit, static_cast<unsigned long long>(token * args.num_experts + i));
    });
    // Later kernels of the layer still run before the host sees the flag: give them a valid routing.
    for (int k = lane; k < args.top_k; k += kWarp) {
      ids[k] = k;
      gates[k] = 0;
    }
    return;
  }
  const float best = log_softmax(p);
  unsigned key[kPerLane];
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    key[m] = m * kWarp + lane < args.num_experts ? to_key(p[m]) : 0;
  }
  const unsigned taken = take_largest(key, args.num_experts, args.top_k);
  float sum = 0;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    p[m] = expf(args.softmax ? p[m] - best : p[m]);
    sum += (taken >> m & 1U) != 0 ? p[m] : 0.0F;
  }
  const float scale = args.softmax ? 1.0F / warp_sum(sum) : 1.0F;
  int before = 0;
#pragma unroll
  for (int m = 0; m < kPerLane; ++m) {
    const bool takes = (taken >> m & 1U) != 0;
    const unsigned mask = __ballot_sync(kAllLanes, takes);
    if (takes) {
      const int at = before + __popc(mask & ((1U << lane) - 1));
      ids[at] = m * kWarp + lane;
      gates[at] = p[m] * scale;
    }
    before += __popc(mask);
  }
}

}  // namespace

void launch_ffn_select(const SystemShape& shape, const float* logits, DeviceRouting routing,
                       std::int64_t* bad_logit, cudaStream_t stream) {
  if (shape.num_experts > kMaxFfnExperts) {
    throw InvalidArgument("num_experts", fmt::to_string(shape.num_experts),
                          fmt::format("at most {} on the GPU", kMaxFfnExperts));
  }
  const StageRange range(Stage::kRouterSelect);
  const FfnSelectArguments args{.logits = logits,
                                .routing = routing,
                                .bad_logit = reinterpret_cast<unsigned long long*>(bad_logit),
                                .num_tokens = shape.num_tokens,
                                .num_experts = static_cast<std::int32_t>(shape.num_experts),
                                .top_k = static_cast<std::int32_t>(shape.top_k),
                                .softmax = shape.gate_mode == GateMode::kSoftmax};
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(ceil_div(shape.num_tokens, kWarpsPerBlock))),
                           .block = dim3(kWarpsPerBlock * kWarp)};
  const std::int64_t per_lane = ceil_div(shape.num_experts, kWarp);
  const auto kernel = per_lane <= 1    ? ffn_select_kernel<1>
                      : per_lane <= 2  ? ffn_select_kernel<2>
                      : per_lane <= 4  ? ffn_select_kernel<4>
                      : per_lane <= 8  ? ffn_select_kernel<8>
                      : per_lane <= 16 ? ffn_select_kernel<16>
                                       : ffn_select_kernel<32>;
  launch_dependent(kernel, launch, stream, args);
}

}  // namespace moescope::cuda
