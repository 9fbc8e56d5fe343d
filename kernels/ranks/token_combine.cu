// Stage token_combine: partial sums back to the tokens' homes, where they are added in order of the ranks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "core/tiling/tile_config.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/device/scaled_sums.cuh"
#include "kernels/ranks/rank_links.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
/// Of sums on their way: enough for the links' rate; the shared MLP has the other multiprocessors.
constexpr int kPushThreads = 1024;
constexpr std::int64_t kPushBlocks = 32;

struct SumArguments {
  const std::int32_t* exponents;
  const float* log_scales;  ///< null: nothing
  std::int64_t num_tokens;
  std::int64_t most_home;  ///< tokens of the home with most
  std::int64_t to;         ///< RankArena::sums
  std::int32_t row4;       ///< groups of 4 values in a row
};

__device__ __forceinline__ float scale_of_token(const SumArguments& args, std::int64_t token) {
  const float scale = scale_of(args.exponents[token]);
  return args.log_scales == nullptr ? scale : scale * expf(args.log_scales[token]);
}

__device__ __forceinline__ uint2 to_bf16(float4 value) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(value.x, value.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(value.z, value.w);
  return make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
}

__device__ __forceinline__ float4 from_bf16(uint2 value) {
  return make_float4(__uint_as_float(value.x << 16U), __uint_as_float(value.x & 0xffff0000U),
                     __uint_as_float(value.y << 16U), __uint_as_float(value.y & 0xffff0000U));
}

/// A thread per 8 values of a token of another home, and stride.
template <class Sum>
__global__ void __launch_bounds__(kPushThreads)
    push_sums(const RankLinks links, const SumArguments args, const Sum* sums) {
  wait_for_predecessor();
  const std::int32_t row8 = args.row4 / 2;
  const std::int64_t own_first = links.group.first_of(links.rank, args.num_tokens);
  const std::int64_t own = links.group.first_of(links.rank + 1, args.num_tokens) - own_first;
  const std::int64_t count = is_silent(links, RankPhase::kSums) ? 0 : (args.num_tokens - own) * row8;
  const std::int64_t stride = std::int64_t{gridDim.x} * kPushThreads;
#pragma unroll 2
  for (std::int64_t i = std::int64_t{blockIdx.x} * kPushThreads + threadIdx.x; i < count; i += stride) {
    const std::int64_t other = i / row8;
    const std::int64_t token = other < own_first ? other : other + own;
    const auto piece = static_cast<std::int32_t>(i - other * row8);
    const std::int64_t home = links.group.owner_of(token, args.num_tokens);
    const std::int64_t row =
        links.rank * args.most_home + token - links.group.first_of(home, args.num_tokens);
    const float scale = scale_of_token(args, token);
    const Sum* const from = sums + (token * row8 + piece) * 8;
    const float4 low = to_floats(from);
    const float4 high = to_floats(from + 4);
    const uint2 first = to_bf16(make_float4(low.x * scale, low.y * scale, low.z * scale, low.w * scale));
    const uint2 second = to_bf16(make_float4(high.x * scale, high.y * scale, high.z * scale, high.w * scale));
    reinterpret_cast<uint4*>(links.arenas[home] + args.to)[row * row8 + piece] =
        make_uint4(first.x, first.y, second.x, second.y);
  }
  signal_behind_grid(links, static_cast<int>(RankPhase::kSums));
}

template <class Sum>
__global__ void __launch_bounds__(kThreads)
    add_sums(const RankLinks links, const SumArguments args, const Sum* sums, HomeTokens home,
             const float4* addend, uint2* output) {
  wait_for_predecessor();
  const auto* const partial = reinterpret_cast<const uint2*>(links.own + args.to);
  for (std::int64_t token = blockIdx.x; token < home.count; token += gridDim.x) {
    const float scale = scale_of_token(args, home.first + token);
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < args.row4; i += kThreads) {
      float4 y = make_float4(0, 0, 0, 0);
      for (std::int64_t rank = 0; rank < links.group.ranks; ++rank) {
        float4 part;
        if (rank == links.rank) {
          const float4 own = to_floats(sums + ((home.first + token) * args.row4 + i) * 4);
          part = make_float4(own.x * scale, own.y * scale, own.z * scale, own.w * scale);
        } else {
          part = from_bf16(partial[(rank * args.most_home + token) * args.row4 + i]);
        }
        y = make_float4(y.x + part.x, y.y + part.y, y.z + part.z, y.w + part.w);
      }
      const std::int64_t at = token * args.row4 + i;
      if (addend != nullptr) {
        const float4 more = addend[at];
        y = make_float4(y.x + more.x, y.y + more.y, y.z + more.z, y.w + more.w);
      }
      output[at] = to_bf16(y);
    }
  }
}

SumArguments sum_arguments(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                           const StaircaseOutput& sums) {
  return {.exponents = sums.exponents,
          .log_scales = sums.log_scales,
          .num_tokens = shape.num_tokens,
          .most_home = (shape.num_tokens + links.group.ranks - 1) / links.group.ranks,
          .to = arena.sums,
          .row4 = static_cast<std::int32_t>(shape.hidden_size / 4)};
}

/// launch(sums, typed).
template <class Launch>
void with_typed_sums(const StaircaseOutput& sums, const Launch& launch) {
  if (sums.kind == StaircaseSums::kFp16) {
    launch(static_cast<const __half*>(sums.sums));
  } else {
    launch(static_cast<const std::int32_t*>(sums.sums));
  }
}

}  // namespace

void launch_push_sums(const RankLinks& links, const LayerShape& shape, const RankArena& arena,
                      const StaircaseOutput& sums, cudaStream_t stream) {
  const StageRange range(Stage::kTokenCombine);
  const SumArguments args = sum_arguments(links, shape, arena, sums);
  const std::int64_t pieces = shape.num_tokens * shape.hidden_size / 8;
  const auto blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(pieces, kPushThreads), 1, kPushBlocks));
  with_typed_sums(sums, [&](const auto* typed) {
    launch_dependent(push_sums<std::remove_cvref_t<decltype(*typed)>>,
                     {.grid = dim3(blocks), .block = dim3(kPushThreads)}, stream, links, args, typed);
  });
}

void launch_add_sums(const RankLinks& links, const LayerShape& shape, const RankArena& arena, HomeTokens home,
                     const StaircaseOutput& sums, const float* addend, void* output, cudaStream_t stream) {
  const StageRange range(Stage::kTokenCombine);
  if (home.count == 0) {
    return;
  }
  const SumArguments args = sum_arguments(links, shape, arena, sums);
  const auto blocks = static_cast<unsigned>(std::min(home.count, 8 * current_gpu().num_sms));
  with_typed_sums(sums, [&](const auto* typed) {
    launch_dependent(add_sums<std::remove_cvref_t<decltype(*typed)>>,
                     {.grid = dim3(blocks), .block = dim3(kThreads)}, stream, links, args, typed, home,
                     static_cast<const float4*>(static_cast<const void*>(addend)),
                     static_cast<uint2*>(output));
  });
}

}  // namespace moescope::cuda
