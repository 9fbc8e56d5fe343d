// router_select_backward: with h = gate * d(gate), A_t[r] the sum of h over the pairs of row r, B_t[r] the
// sum of gates there, and D_t the sum of all h, da_t[r] = A_t[r] - D_t B_t[r] for gates that are a softmax
// over the selected scores, and A_t[r] - D_t softmax(a_t)[r] for gates exp(score). Columns likewise.
//
// A warp has a token, or where there are few of them a part of one's pairs. They come 32 at a time, in order;
// lanes that meet in one row or column add one after the other, and the parts' sums are added in order: no
// atomics, the same bits in every run.
#include <algorithm>

#include "kernels/contract/backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/ordered_sums.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kMaxWarps = 8;
constexpr int kMaxThreads = kMaxWarps * kWarp;

struct SelectArgs {
  const std::int32_t* expert_ids;
  const float* gates;
  const float* gate_gradients;
  DeviceLogProbs log_probs;
  float* logits_gradient;
  std::int64_t num_tokens;
  std::int64_t top_k;
  std::int32_t rows;
  std::int32_t cols;
  std::int32_t parts;       ///< warps of a token; more than one: sums are in shared memory
  std::int32_t part_pairs;  ///< a multiple of 32
  bool softmax;
  bool in_shared;  ///< sums in shared memory; else at once where they go
};

/// Adds up neighbouring lanes of one key, whose keys ascend; the last lane of each has the sum and is the one
/// that stays.
__device__ __forceinline__ void sum_runs(int key, float& value, bool& has) {
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const float below = __shfl_up_sync(kAllLanes, value, offset);
    const int its_key = __shfl_up_sync(kAllLanes, key, offset);
    if (lane >= offset && its_key == key) {
      value += below;
    }
  }
  const int next = __shfl_down_sync(kAllLanes, key, 1);
  has = has && (lane == kWarp - 1 || next != key);
}

struct Pair {
  std::int32_t id = -1;  ///< below 0: none
  float gate = 0;
  float gradient = 0;
};

__device__ __forceinline__ Pair load_pair(const SelectArgs& args, std::int64_t base, std::int64_t k,
                                          std::int64_t end) {
  Pair pair;
  if (k < end) {
    pair.id = args.expert_ids[base + k];
    pair.gate = args.gates[base + k];
    pair.gradient = args.gate_gradients[base + k];
  }
  return pair;
}

__global__ void __launch_bounds__(kMaxThreads) select_backward_kernel(const SelectArgs args) {
  extern __shared__ float shared_sums[];
  __shared__ float shared_totals[kMaxWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int parts = args.parts;
  const int part = warp % parts;
  const std::int64_t token =
      std::int64_t{blockIdx.x} * (static_cast<int>(blockDim.x) / kWarp / parts) + warp / parts;
  // A block whose tokens have one warp each has no barriers; else it has one token.
  if (token >= args.num_tokens) {
    return;
  }
  const int sides = args.rows + args.cols;
  float* const out = args.logits_gradient + token * sides;
  float* const sums = args.in_shared ? shared_sums + static_cast<std::ptrdiff_t>(warp) * sides : out;
  const std::int64_t base = token * args.top_k;
  const std::int64_t begin = std::int64_t{part} * args.part_pairs;
  const std::int64_t end = min(begin + args.part_pairs, args.top_k);

  float total = 0;
#pragma unroll 4
  for (std::int64_t k = begin + lane; k < end; k += kWarp) {
    total = fmaf(args.gates[base + k], args.gate_gradients[base + k], total);
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(kAllLanes, total, offset);
  }
  if (parts > 1) {
    if (lane == 0) {
      shared_totals[warp] = total;
    }
    __syncthreads();
    total = 0;
    for (int i = 0; i < parts; ++i) {
      total += shared_totals[i];
    }
  }
  for (int i = lane; i < sides; i += kWarp) {
    sums[i] = args.softmax || part > 0 ? 0.0F
              : i < args.rows
                  ? -total * expf(args.log_probs.row[token * args.log_probs.row_lead + i])
                  : -total * expf(args.log_probs.col[token * args.log_probs.col_lead + i - args.rows]);
  }
  __syncwarp();
  // The next pairs are asked for before those at hand are added.
  Pair next = load_pair(args, base, begin + lane, end);
  for (std::int64_t first = begin; first < end; first += kWarp) {
    const Pair pair = next;
    next = load_pair(args, base, first + kWarp + lane, end);
    bool has = pair.id >= 0;
    float h = has ? pair.gate * (pair.gradient - (args.softmax ? total : 0.0F)) : 0.0F;
    const int row = has ? pair.id / args.cols : -1;
    add_in_order(sums, has ? args.rows + pair.id - row * args.cols : 0, h, has);
    sum_runs(row, h, has);
    add_in_order(sums, has ? row : 0, h, has);
  }
  if (parts > 1) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < sides; i += parts * kWarp) {
      float sum = 0;
      for (int other = 0; other < parts; ++other) {
        sum += shared_sums[static_cast<std::ptrdiff_t>(other) * sides + i];
      }
      out[i] = sum;
    }
  } else if (args.in_shared) {
    for (int i = lane; i < sides; i += kWarp) {
      out[i] = sums[i];
    }
  }
}

/// Warps for a token: while they fit on the device at once, with two rounds of pairs each at least.
std::int64_t parts_of_token(const LayerShape& shape, std::int64_t most) {
  constexpr std::int64_t kWarpsOfSm = 64;
  const std::int64_t rounds = (shape.top_k + kWarp - 1) / kWarp;
  std::int64_t parts = 1;
  while (2 * parts <= most && shape.num_tokens * 2 * parts <= kWarpsOfSm * current_gpu().num_sms &&
         rounds >= 4 * parts) {
    parts *= 2;
  }
  return parts;
}

}  // namespace

void launch_router_select_backward(const LayerShape& shape, DeviceRouting routing,
                                   const float* gate_gradients, DeviceLogProbs log_probs,
                                   float* logits_gradient, cudaStream_t stream) {
  const StageRange range(Stage::kRouterSelectBackward);
  const std::int64_t token_bytes =
      (shape.grid_rows + shape.grid_cols) * static_cast<std::int64_t>(sizeof(float));
  constexpr std::int64_t kSharedBytes = std::int64_t{48} << 10;
  // Few tokens go one to a block, so that they spread over the device.
  const std::int64_t by_tokens =
      (shape.num_tokens + 2 * current_gpu().num_sms - 1) / (2 * current_gpu().num_sms);
  const std::int64_t parts =
      parts_of_token(shape, std::min<std::int64_t>(kSharedBytes / token_bytes, kMaxWarps));
  const std::int64_t tokens =
      parts > 1 ? 1 : std::clamp<std::int64_t>(std::min(kSharedBytes / token_bytes, by_tokens), 1, kMaxWarps);
  const std::int64_t warps = tokens * parts;
  const bool in_shared = warps * token_bytes <= kSharedBytes;
  const std::int64_t rounds = (shape.top_k + kWarp - 1) / kWarp;
  const SelectArgs args{.expert_ids = routing.expert_ids,
                        .gates = routing.gates,
                        .gate_gradients = gate_gradients,
                        .log_probs = log_probs,
                        .logits_gradient = logits_gradient,
                        .num_tokens = shape.num_tokens,
                        .top_k = shape.top_k,
                        .rows = static_cast<std::int32_t>(shape.grid_rows),
                        .cols = static_cast<std::int32_t>(shape.grid_cols),
                        .parts = static_cast<std::int32_t>(parts),
                        .part_pairs = static_cast<std::int32_t>((rounds + parts - 1) / parts * kWarp),
                        .softmax = shape.gate_mode == GateMode::kSoftmax,
                        .in_shared = in_shared};
  const auto blocks = static_cast<unsigned>((shape.num_tokens + tokens - 1) / tokens);
  select_backward_kernel<<<blocks, static_cast<unsigned>(warps * kWarp),
                           static_cast<std::size_t>(in_shared ? warps * token_bytes : 0), stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
