#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"

/// By how many warps the selection kernels serve a token, for them and for whoever models them: few tokens
/// are bound by one token's latency and get eight, many by instructions, of which one warp wastes fewest.
namespace moescope {

/// router_select.cu: pairs written row by row by eight warps (router_select_rows.cuh), else from lists by
/// one. Two blocks of eight warps run on a multiprocessor at a time, if the pairs (8 bytes each) fit its
/// shared memory; with twice as many tokens the lists are as fast (measured, docs/performance/).
constexpr bool csr_by_eight_warps(const LayerShape& shape, const GpuTraits& gpu) {
  constexpr std::int64_t kBlocksPerSm = 2;
  return shape.num_tokens <= kBlocksPerSm * gpu.num_sms && shape.top_k <= 4096;
}

/// router_select_strips.cu: all blocks of few tokens run at once, four on a multiprocessor, or two where a
/// side's values take more than 10 registers a lane.
constexpr bool strips_by_eight_warps(const LayerShape& shape, const GpuTraits& gpu) {
  constexpr std::int64_t kSideInTenRegisters = 320;
  const std::int64_t blocks_per_sm =
      std::max(shape.grid_rows, shape.grid_cols) <= kSideInTenRegisters ? 4 : 2;
  return shape.num_tokens <= blocks_per_sm * gpu.num_sms;
}

}  // namespace moescope
